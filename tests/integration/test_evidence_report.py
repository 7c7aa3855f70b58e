"""The report in a real headless Chromium: sorting, filters, hostile texts, 20,000 items."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gks_eval.evidence.observed import RoutingShares
from gks_eval.evidence.report.build import Options, build_page
from gks_eval.evidence.report.plots import routing_plot
from gks_eval.evidence.runs import find_runs

TESTS = Path(__file__).parents[1]
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


def _factory() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_factory", TESTS / "evidence_factory.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _observed(folder: Path) -> None:
    experts = [f"expert_{i}" for i in range(6)]
    layers = [f"model.layers.{i}.self_attn.o_proj" for i in range(12)]
    rng = random.Random(3)

    def shares() -> list[list[float]]:
        rows = [[rng.random() for _ in experts] for _ in layers]
        return [[value / sum(row) for value in row] for row in rows]

    tasks = {
        name: {
            "tokens": 12_345,
            "share": shares(),
            "mean_coefficient": shares(),
            "entropy": [1.0] * len(layers),
        }
        for name in ("gks_piqa", "gks_boolq", "gks_swag")
    }
    routing = {"schema": "gks_eval.routing/1", "library": "demo", "setting": "gks:avg"}
    routing |= {"top_k": 3, "experts": experts, "layers": layers, "tasks": tasks}
    (folder / "routes_gks-avg.json").write_text(json.dumps(routing))
    square = [[1.0 if i == j else 0.3 for j in range(6)] for i in range(6)]
    by_layer = {name: [1.0] * len(layers) for name in experts}
    geometry = {
        "schema": "gks_eval.geometry/1",
        "library": "demo",
        "experts": experts,
        "general": ["en", "de"],
        "layers": layers,
        "norm": by_layer,
        "residual_norm": {"factors": by_layer, "delta": by_layer},
        "cosine_general": [[0.4, 0.2]] * 6,
        "cosine_experts": {"none": square, "delta": square},
        "prototype_similarity": {"none": square},
    }
    (folder / "geometry.json").write_text(json.dumps(geometry))


def _grid(folder: Path, sizes: dict[str, int], runs: int = 3) -> Path:
    factory = _factory()
    model = "pretrained=microsoft/Phi-3-mini-4k-instruct"
    for label, chance in (("base", 0.6), ("arrow", 0.66), ("gks-avg", 0.7))[:runs]:
        rng = random.Random(label)
        tasks = {}
        for name, n in sizes.items():
            shared = random.Random(name)
            tasks[name] = [
                factory.sample(
                    i,
                    float(shared.random() * 0.5 + rng.random() * 0.5 < chance),
                    question=HOSTILE if i == 0 else f"Question {i} of {name}: {'word ' * 30}?",
                    choices=("the first answer", "the second, somewhat longer answer"),
                )
                for i in range(n)
            ]
        groups = {"gks_paper_english": (tuple(sizes), False)}
        factory.write_run(folder / label, tasks, groups=groups, model_args=model)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = _grid(
        tmp_path_factory.mktemp("grid"),
        {"gks_paper_piqa": 400, "gks_paper_boolq": 300, "gks_paper_arc_easy": 200},
    )
    _observed(folder)
    html = build_page(find_runs([str(folder)]), [folder], Options(title="A <b>report</b> & more"))
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


# --- without a browser --------------------------------------------------------------------------


def test_the_page_loads_nothing_from_outside(page):
    html = page.read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", html)
    assert "@import" not in html
    assert "default-src 'none'" in html
    urls = set(re.findall(r"https?://[^\"'\s<>)\\]+", html))
    assert all("w3.org" in url for url in urls)  # names of XML dialects, never fetched


def test_hostile_texts_stay_texts(page):
    html = page.read_text()
    assert "<script>window.broken" not in html
    assert "<img src=x" not in html
    assert "A &lt;b&gt;report&lt;/b&gt; &amp; more" in html
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert data
    items = json.loads(data.group(1))["items"]
    assert len(items) == 900
    assert items[0][2] == f"{HOSTILE}\nAnswer:"


def test_real_runs_of_lm_eval_make_a_page(tmp_path):
    golden = TESTS / "golden" / "evidence"
    runs = find_runs([str(golden / name) for name in ("llama-0", "llama-1", "dummy")])
    html = build_page(runs, [])
    assert "compared by force: ev_maths in dummy" in html
    assert html.count("<h2") == 4


def test_a_single_run_makes_a_page():
    html = build_page(find_runs([str(TESTS / "golden" / "evidence" / "dummy")]), [])
    assert "Change from" not in html


def test_layers_stand_in_the_order_of_the_model():
    layers = [f"model.layers.{i}.self_attn.{m}" for i in (0, 10, 2) for m in ("q", "v")]
    task = {"tokens": 1, "share": [[1.0]] * 6, "mean_coefficient": [[1.0]] * 6, "entropy": [0] * 6}
    routing = {"schema": "gks_eval.routing/1", "library": "l", "setting": "arrow", "top_k": 1}
    routing |= {"experts": ["e"], "layers": layers, "tasks": {"t": task}}
    _, svg = routing_plot(RoutingShares.model_validate(routing))
    assert re.findall(r"layers\.(\d+)\.self_attn\.q", svg) == ["0", "2", "10"]


def test_a_run_without_a_difference_has_no_place_in_the_plot(tmp_path):
    for label, task in (("base", "a"), ("arrow", "a"), ("other", "b")):
        _factory().write_run(tmp_path / label, {task: [1.0, 0.0] * 20})
    html = build_page(find_runs([str(tmp_path)]), [])
    figure = re.search(r"<svg.*?</svg>", html, re.S)
    assert figure
    assert "arrow" in figure.group()
    assert "other" not in figure.group()


def test_samples_beyond_the_limit_are_left_out_changed_ones_last(tmp_path):
    folder = _grid(tmp_path, {"a": 300})
    html = build_page(find_runs([str(folder)]), [], Options(most=50))
    data = json.loads(re.search(r'id="data">(.*?)</script>', html, re.S).group(1))
    assert (data["total"], len(data["items"])) == (300, 50)
    assert all(len(set(item[6])) > 1 for item in data["items"])


# --- with a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        missing = "no chromium and chromedriver here (Debian: chromium, chromium-driver)"
        # CI sets this: there the page is never left untested.
        if os.environ.get("NEED_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --disable-quic --disable-dev-shm-usage"
    ).split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('browser')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        session = webdriver.Chrome(options=options, service=Service(driver))
        session.set_window_size(1200, 900)
        yield session
        session.quit()


def _texts(browser: Any, css: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", css
    )
    return found


def test_sorting_filtering_and_opening_a_sample(browser, page):
    browser.get(page.as_uri())
    names = _texts(browser, "#board tbody th")
    buttons = browser.find_elements("css selector", "#board thead button")
    buttons[3].click()
    values = [
        float(re.match(r"[\d.]+", t).group()) for t in _texts(browser, "#board td:nth-child(4)")
    ]
    assert values == sorted(values, reverse=True)
    assert _texts(browser, "#board th[aria-sort=descending]") == ["base"]
    buttons[3].send_keys("\n")  # by keyboard
    values = [
        float(re.match(r"[\d.]+", t).group()) for t in _texts(browser, "#board td:nth-child(4)")
    ]
    assert values == sorted(values)
    buttons[3].click()
    assert _texts(browser, "#board tbody th") == names

    assert _texts(browser, "#count") == ["900 of 900 samples"]
    assert len(_texts(browser, "#list > li")) == 50
    browser.execute_script(
        "const s = document.getElementById('f-task'); s.value = '1'; "
        "s.dispatchEvent(new Event('change'))"
    )
    assert _texts(browser, "#count") == ["300 of 900 samples"]
    browser.execute_script(
        "const s = document.getElementById('f-kind'); s.value = 'loss2'; "
        "s.dispatchEvent(new Event('change'))"
    )
    lost = int(_texts(browser, "#count")[0].split()[0])
    table = {row[0]: row for row in _rows(browser, "#changes-table") if row[1] == "gks-avg"}
    assert lost == int(table["gks_paper_boolq"][6].split("/")[1])

    browser.execute_script(
        "for (const id of ['f-task', 'f-kind']) { const s = document.getElementById(id); "
        "s.selectedIndex = 0; s.dispatchEvent(new Event('change')); }"
    )
    from selenium.webdriver.support.wait import WebDriverWait

    browser.find_element("css selector", "#list summary").click()
    # A browser tells of an opened box a moment later.
    shown = WebDriverWait(browser, 30).until(lambda _: _texts(browser, "#list .prompt"))
    assert HOSTILE in shown[0]
    assert _texts(browser, "#list td.choice")[0].startswith("the first answer")
    assert browser.execute_script("return window.broken") is None
    search = browser.find_element("id", "f-text")
    search.send_keys("question 77 of")
    browser.execute_async_script("setTimeout(arguments[0], 400)")
    assert _texts(browser, "#count") == ["3 of 900 samples"]
    _no_console_errors(browser)


def _rows(browser: Any, css: str) -> list[list[str]]:
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => "
        "[...r.cells].map(c => c.textContent.trim()))",
        css,
    )
    return found


def _no_console_errors(browser: Any) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_is_readable(browser, page, width, dark):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600},
    )
    browser.get(page.as_uri())
    if dark != (browser.execute_script("return document.documentElement.dataset.theme") == "dark"):
        browser.find_element("id", "theme").click()
    widths = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert widths[0] <= widths[1]
    ratios = browser.execute_script(
        """
        const parse = (c) => c.match(/[0-9.]+/g).map(Number);
        const light = (c) => { const [r, g, b] = parse(c).map((v) => { v /= 255;
          return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const back = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
          if (!c.startsWith('rgba(0, 0, 0, 0')) return c; e = e.parentElement; }
          return 'rgb(0,0,0)'; };
        return ['h1', '.note', 'tbody td', 'td small', '#list .where', '#list .right',
          '#list .wrong', 'figcaption', 'nav a', 'label'].map((css) => {
          const e = document.querySelector(css);
          const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
          return [css, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
        """
    )
    assert [entry for entry in ratios if entry[1] < 4.5] == []
    _no_console_errors(browser)


def test_everything_has_a_name_for_screen_readers(browser, page):
    browser.get(page.as_uri())
    nameless = browser.execute_script(
        """
        const named = (e) => (e.getAttribute('aria-label') || e.textContent || e.title ||
          (e.labels && e.labels[0] && e.labels[0].textContent) || '').trim();
        return [...document.querySelectorAll(
          'button, a, select, input, [role=img], [role=region], summary, section')]
          .filter((e) => !named(e)).map((e) => e.outerHTML.slice(0, 80));
        """
    )
    assert nameless == []
    ids = browser.execute_script("return [...document.querySelectorAll('[id]')].map((e) => e.id)")
    own = [
        name
        for name in ids
        if not re.match(
            r"(figure|patch|axes|line2d|text|xtick|ytick|matplotlib|legend|LineCollection|PathCollection|QuadMesh|m[0-9a-f]{10}|p[0-9a-f]{10}|image)",
            name,
        )
    ]
    assert len(own) == len(set(own))


def test_twenty_thousand_samples_stay_usable(browser, tmp_path):
    folder = _grid(tmp_path, {"a": 10_000, "b": 10_000}, runs=2)
    html = build_page(find_runs([str(folder)]), [])
    path = folder / "report.html"
    path.write_text(html, encoding="utf-8")
    browser.get(path.as_uri())
    assert _texts(browser, "#count") == ["20,000 of 20,000 samples"]
    assert browser.execute_script("return document.querySelectorAll('*').length") < 4_000
    browser.find_element("id", "f-text").send_keys("question 9999 of b")
    browser.execute_async_script("setTimeout(arguments[0], 600)")
    assert _texts(browser, "#count") == ["1 of 20,000 samples"]
    _no_console_errors(browser)
