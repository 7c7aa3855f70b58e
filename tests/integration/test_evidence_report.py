"""The report in a real headless Chromium: phone to desk, filters, hostile texts, 20,000 items."""

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

from gks_eval.evidence.compare import Settings, compare
from gks_eval.evidence.comparison import Comparison
from gks_eval.evidence.observed import RoutingShares
from gks_eval.evidence.report.build import Options, build_page
from gks_eval.evidence.report.folds import folds, sheet
from gks_eval.evidence.report.forest import Forest, difference_forest, ticks
from gks_eval.evidence.report.library import routing_heat
from gks_eval.evidence.runs import find_runs
from gks_eval.evidence.tables.content import difference_table

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
    plots = routing_heat(RoutingShares.model_validate(routing))
    assert plots
    assert [name for name in plots[1].rows if name.endswith("q")] == [
        f"{i}.self_attn.q" for i in (0, 2, 10)
    ]


def test_a_run_without_a_difference_has_no_place_in_the_plot(tmp_path):
    for label, task in (("base", "a"), ("arrow", "a"), ("other", "b")):
        _factory().write_run(tmp_path / label, {task: [1.0, 0.0] * 20})
    comparison = compare(find_runs([str(tmp_path)]), Settings(force=True), alone=True)
    forest = difference_forest(comparison, comparison)
    assert forest
    assert (forest.labels, [lane.name for lane in forest.lanes]) == (["arrow"], ["a"])


def _comparison(folder: Path) -> Comparison:
    """Two runs of four tasks: two in a small group, three in a large one, one in none."""
    groups = {"large": (("a", "b", "c"), False), "small": (("a", "b"), False)}
    for label, right in (("base", 20), ("arrow", 25)):
        scores = [1.0] * right + [0.0] * (40 - right)
        _factory().write_run(folder / label, dict.fromkeys("abcd", scores), groups=groups)
    return compare(find_runs([str(folder)]), Settings(force=True), alone=True)


def test_a_task_stands_in_its_smallest_group_only(tmp_path):
    found = folds(_comparison(tmp_path))
    assert [(fold.title, [row.name for row in fold.comparison.rows]) for fold in found] == [
        ("", ["large", "small"]),
        ("large", ["c"]),
        ("small", ["a", "b"]),
        ("tasks in no group", ["d"]),
    ]


def test_positions_in_a_plot_are_the_values(tmp_path):
    comparison = _comparison(tmp_path)
    forest = difference_forest(comparison, comparison)
    assert forest
    # Two ticks fix the scale; every value and bound must lie on it.
    (x0, t0), *_, (x1, t1) = [(x, float(text)) for x, text in forest.ticks]
    place = {row.name: row.differences[0] for row in comparison.rows}
    for lane in forest.lanes:
        (mark,), d = lane.marks, place[lane.name]
        for x, value in ((mark.at, d.difference), (mark.low, d.low), (mark.high, d.high)):
            assert t0 + (x - x0) / (x1 - x0) * (t1 - t0) == pytest.approx(100 * value, abs=0.05)
    assert forest.zero == pytest.approx(x0 + (0 - t0) / (t1 - t0) * (x1 - x0), abs=0.02)


def test_an_axis_has_three_to_six_ticks():
    rng = random.Random(5)
    for _ in range(500):
        low = rng.uniform(-100, 100)
        high = low + 10 ** rng.uniform(-2, 2)
        found = ticks(low, high)
        assert 3 <= len(found) <= 6
        assert all(low <= value <= high for value in found)


def test_no_two_series_look_alike():
    looks = {(Forest.colour(series), Forest.shape(series)) for series in range(64)}
    assert len(looks) == 64


def test_a_note_belongs_to_the_run_so_that_a_task_is_named_once(tmp_path):
    for label, n in (("base", 40), ("arrow", 40), ("other", 30)):
        rows = [_factory().sample(i, float(i % 2)) for i in range(n)]
        _factory().write_run(tmp_path / label, {"a": rows})
    comparison = compare(find_runs([str(tmp_path)]), Settings(force=True), alone=True)
    (body,) = sheet(difference_table(comparison)).bodies
    assert body.name == "a"
    assert [row[0][0] for row in body.rows] == ["arrow", "other [1]"]


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
        session.set_window_size(1280, 900)
        yield session
        session.quit()


def _texts(browser: Any, css: str) -> list[str]:
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent.trim())", css
    )
    return found


def test_sorting_filtering_and_opening_a_sample(browser, page):
    browser.get(page.as_uri())
    names = _texts(browser, "#board-1 tbody th")
    buttons = browser.find_elements("css selector", "#board-1 thead button")

    def values() -> list[float]:
        cells = _texts(browser, "#board-1 td:nth-child(4) .value")
        return [float(cell.split()[0]) for cell in cells]

    buttons[3].click()
    assert values() == sorted(values(), reverse=True)
    assert _texts(browser, "#board-1 th[aria-sort=descending]") == ["base"]
    buttons[3].send_keys("\n")  # by keyboard
    assert values() == sorted(values())
    buttons[3].click()
    assert _texts(browser, "#board-1 tbody th") == names

    # The rows of a task stay together: its runs are sorted, and the tasks by the first of them.
    before = _rows(browser, "#changes-table-1")
    browser.find_elements("css selector", "#changes-table-1 thead button")[2].click()
    after = _rows(browser, "#changes-table-1")
    best = {row[0]: max(float(r[2].split()[0]) for r in before if r[0] == row[0]) for row in before}
    order = sorted(best, key=lambda name: best[name], reverse=True)
    assert list(dict.fromkeys(row[0] for row in after)) == order
    assert [row[1] for row in after] == ["gks-avg", "arrow"] * 3
    assert sorted(after) == sorted(before)

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
    table = {row[0]: row for row in _rows(browser, "#changes-table-1") if row[1] == "gks-avg"}
    assert lost == int(table["gks_paper_boolq"][6].split("/")[1])

    browser.execute_script(
        "for (const id of ['f-task', 'f-kind']) { const s = document.getElementById(id); "
        "s.selectedIndex = 0; s.dispatchEvent(new Event('change')); }"
    )
    from selenium.webdriver.support.wait import WebDriverWait

    browser.find_element("css selector", "#list summary").click()
    # A browser reports an opened box a moment later.
    shown = WebDriverWait(browser, 30).until(lambda _: _texts(browser, "#list .prompt"))
    assert HOSTILE in shown[0]
    assert _texts(browser, "#list th.choice")[0].startswith("the first answer")
    assert browser.execute_script("return window.broken") is None
    search = browser.find_element("id", "f-text")
    search.send_keys("question 77 of")
    browser.execute_async_script("setTimeout(arguments[0], 400)")
    assert _texts(browser, "#count") == ["3 of 900 samples"]
    _no_console_errors(browser)


def _rows(browser: Any, css: str) -> list[list[str]]:
    """The cells of each row, its task's name first."""
    found: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(r => "
        "[r.parentElement.querySelector('th'), ...r.querySelectorAll('td .value')]"
        ".map(c => c.textContent.trim()))",
        css,
    )
    return found


def _no_console_errors(browser: Any) -> None:
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def _open(browser: Any, page: Path, width: int, dark: bool = False) -> None:
    """Show the page as a screen of this width shows it, all folds open."""
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(page.as_uri())
    browser.execute_script(
        "document.querySelectorAll('details:not(#list *)').forEach(d => { d.open = true; });"
        "document.querySelector('#list details').open = true;"
    )
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 50))")


def _outside(browser: Any, css: str, width: int) -> list[str]:
    """The texts that do not lie whole, and at least 10 px high, within the window's width."""
    found: list[str] = browser.execute_script(
        """
        const seen = [...document.querySelectorAll(arguments[0])];
        if (!seen.length) return ['nothing is ' + arguments[0]];
        const width = arguments[1];
        return seen.filter((e) => { const box = e.getBoundingClientRect();
          return box.left < 0 || box.right > width || box.width < 4 || box.height < 10; })
          .map((e) => e.textContent.trim());
        """,
        css,
        width,
    )
    return found


@pytest.fixture(scope="module")
def large_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten settings by thirty tasks with long names."""
    folder = tmp_path_factory.mktemp("large")
    tasks = [f"bbh_cot_fewshot_tracking_shuffled_objects_{i}" for i in range(28)] + ["a", "b"]
    names = ["base", "arrow", "gks-en", "gks-avg", "uniform", "oracle"]
    names += [f"gks-avg_rule-orthogonal_top_k-{k}" for k in (1, 2, 4, 8)]
    for label in names:
        rng = random.Random(label)
        scores = {name: [float(rng.random() < 0.5) for _ in range(30)] for name in tasks}
        groups = {"large": (tasks[:20], False), "small": (tasks[20:28], True)}
        _factory().write_run(folder / label, scores, groups=groups)
    _observed(folder)
    path = folder / "report.html"
    path.write_text(build_page(find_runs([str(folder)]), [folder]), encoding="utf-8")
    return path


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 390, 768, 1280])
@pytest.mark.parametrize("which", ["page", "large_page"])
def test_the_page_fits_its_window_and_is_readable(browser, request, which, width, dark):
    _open(browser, request.getfixturevalue(which), width, dark)
    assert browser.execute_script("return document.documentElement.dataset.theme") == (
        "dark" if dark else "light"
    )
    # A phone's innerWidth grows with a page that is too wide: the screen's width counts.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    ratios = browser.execute_script(
        """
        const canvas = document.createElement('canvas').getContext('2d');
        const parse = (c) => { canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data]; };
        const light = (c) => { const [r, g, b] = parse(c).map((v) => { v /= 255;
          return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const back = (e) => { while (e) { const c = getComputedStyle(e).backgroundColor;
          if (!c.startsWith('rgba(0, 0, 0, 0')) return c; e = e.parentElement; }
          return 'rgb(0,0,0)'; };
        return ['h1', '.note', 'td .value', 'td .key', 'td small', '.legend li', '#list .where',
          '#list .right', '#list .wrong', 'figcaption', 'nav a', 'label', '#theme'].map((css) => {
          const e = document.querySelector(css);
          const [a, b] = [light(getComputedStyle(e).color), light(back(e))];
          return [css, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
        """
    )
    assert [entry for entry in ratios if entry[1] < 4.5] == []
    # The names and numbers of every plot with an axis, and the rows' names of the heat maps.
    for css in (".legend li", ".lane .name", ".axis text", ".heat tbody th span"):
        assert _outside(browser, css, width) == []
    if width <= 768:
        for css in ("#board .key", "#board .value", "#changes-table-1 .value", ".sheet .value"):
            assert _outside(browser, css, width) == []
    _no_console_errors(browser)


@pytest.mark.parametrize("which", ["page", "large_page"])
def test_averages_come_first_and_each_fold_names_a_task_once(browser, request, which):
    _open(browser, request.getfixturevalue(which), 390)
    for part in ("#scores", "#changes"):
        tables = browser.execute_script(
            "return [...document.querySelectorAll(arguments[0] + ' table')].map(t => "
            "[...t.querySelectorAll('tbody th')].map(c => c.textContent.trim()))",
            part,
        )
        groups = _texts(browser, f"{part} details.fold > summary")
        assert set(tables[0]) >= {text.split()[0] for text in groups if "no group" not in text}
        names = [name for table in tables for name in table]
        assert len(names) == len(set(names))
    folded = browser.execute_script(
        "return [...document.querySelectorAll('#scores details, #changes details')].length"
    )
    assert folded == (2 if which == "page" else 6)


@pytest.mark.parametrize("width", [390, 768, 1280])
@pytest.mark.parametrize("which", ["page", "large_page"])
def test_every_mark_of_a_sample_has_its_run_in_sight(browser, request, which, width):
    _open(browser, request.getfixturevalue(which), width)
    runs = _texts(browser, "#key span")
    assert runs[0] == "base"
    assert _texts(browser, "#list li:nth-child(2) .run") == runs
    if width < 600:
        assert _outside(browser, "#list .run", width) == []
        return
    # Above each mark stands its run; the header stays in sight while the list scrolls.
    middles = browser.execute_script(
        """
        document.querySelector('#list li:nth-child(40)').scrollIntoView({block: 'center'});
        const middle = (e) => { const b = e.getBoundingClientRect(); return b.left + b.width / 2; };
        const at = (css) => [...document.querySelectorAll(css)].map(middle);
        const key = document.getElementById('key').getBoundingClientRect();
        return [at('#key span'), at('#list li:nth-child(40) .sign'), key.top, key.bottom];
        """
    )
    assert middles[0] == pytest.approx(middles[1], abs=2)
    assert middles[2] == pytest.approx(0, abs=1)
    assert 10 < middles[3] < 300


@pytest.mark.parametrize("dark", [False, True])
def test_the_theme_button_names_the_other_theme(browser, page, dark):
    _open(browser, page, 390, dark)
    texts = ["Light theme", "Dark theme"] if dark else ["Dark theme", "Light theme"]
    assert _texts(browser, "#theme") == texts[:1]
    button = browser.find_element("id", "theme")
    paper = "return getComputedStyle(document.body).backgroundColor"
    first = browser.execute_script(paper)
    button.send_keys("\n")  # by keyboard
    assert _texts(browser, "#theme") == texts[1:]
    assert browser.execute_script(paper) != first


def test_paper_gets_every_fold_in_light_colours(browser, large_page):
    _open(browser, large_page, 718, dark=True)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    closed = "return document.querySelectorAll('details:not([open], #list *)').length"
    browser.execute_script("document.querySelectorAll('.fold').forEach(d => { d.open = false; })")
    assert browser.execute_script(closed) == 6
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(closed) == 0
    assert browser.execute_script("return getComputedStyle(document.body).color") == (
        "rgb(28, 30, 33)"
    )
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(closed) == 6
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


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
    assert len(ids) == len(set(ids))


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
