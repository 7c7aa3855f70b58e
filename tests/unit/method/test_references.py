"""Every method of this package has its entry in references.bib, and every entry its use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gks_eval.cli.main import build_app
from gks_eval.errors import ResultsError
from gks_eval.method import references as module
from gks_eval.method.declaration import CONTROL
from gks_eval.method.decorators import merge
from gks_eval.method.references import Reference, _of_version, references, source_of, used_by
from gks_eval.method.registry import MERGES, ROUTERS, RULES
from gks_eval.method.setting import Setting

OWN = [
    (registry.kind, method)
    for registry in (RULES, ROUTERS, MERGES)
    for method in registry.usable()
    if registry.is_own(method)
]
SOFTWARE = {"eval-harness", "gks-eval"}
PEFT = {"peft", *SOFTWARE}


def write(folder: Path, ours: Mapping[str, Any] | None) -> None:
    folder.mkdir(parents=True)
    content = {
        "results": {"t": {"acc,none": 0.5, "sample_len": 2}},
        "n-samples": {"t": {"original": 2, "effective": 2}},
        "config": {"model": "hf"} | ({} if ours is None else {"gks_eval": ours}),
    }
    file = folder / "results_2026-01-02T03-04-05.000006.json"
    file.write_text(json.dumps(content), encoding="utf-8")


def recorded(setting: str) -> dict[str, Any]:
    return {"setting": Setting.parse(setting)[0].identity(), "versions": {"lm-eval": "0.4.13"}}


def cite(*arguments: object) -> str:
    done = CliRunner().invoke(build_app(), ["cite", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stderr == ""
    return done.stdout


def keys(text: str) -> list[str]:
    return re.findall(r"^@\w+\{(.+),$", text, re.MULTILINE)


def test_the_file_is_read_whole() -> None:
    text = (Path(module.__file__).parent / "references.bib").read_text("utf-8")
    assert "\n".join(entry.bibtex() for entry in references().values()) == text
    for entry in references().values():
        assert {"author", "title", "year"} <= entry.fields.keys()
        assert (entry.fields.get("eprint") or "") in entry.fields.get("url", "")
        assert text.count(f"{{{entry.key},") == 1
        shown = {"title", "booktitle", "journal", "publisher", "year", "note", "url"}
        for name in shown & entry.fields.keys():
            assert module._plain(entry.fields[name]) in entry.text()


@pytest.mark.parametrize(("kind", "method"), OWN, ids=lambda value: getattr(value, "name", value))
def test_each_method_of_ours_has_an_entry(kind: str, method: Any) -> None:
    if method.paper == CONTROL:
        assert source_of(method, kind) is None
        return
    entry = source_of(method, kind)
    assert entry is references()[entry.key if entry else ""]
    # "Ostapenko et al. 2024": the first author and the year are those of the entry.
    if author := re.search(r"([A-Z]\w+)(?: et al\.| and [\w ]+)? (\d{4})", method.paper):
        assert entry.fields["author"].startswith(author[1])
        assert entry.fields["year"] == author[2]


def test_no_entry_is_unused() -> None:
    used = {entry.key for kind, method in OWN if (entry := source_of(method, kind))}
    assert used | PEFT | {"mezzadri2007"} == set(references())


def test_citation_cff_names_all_of_them() -> None:
    text = (Path(__file__).parents[3] / "CITATION.cff").read_text("utf-8")
    entries = yaml.safe_load(text)["references"]
    expected = {e.fields["title"]: e.fields["year"] for e in references().values()}
    del expected[references()["gks-eval"].fields["title"]]
    plain = {re.sub("[{}]", "", title): int(year) for title, year in expected.items()}
    assert {entry["title"]: entry["year"] for entry in entries} == plain


@pytest.mark.parametrize(
    ("setting", "papers"),
    [
        ("base", None),
        ("arrow", {"ostapenko2024"}),
        ("gks:avg;rule=orthogonal", {"ostapenko2024", "modularllm"}),
        ("expert:topic", set()),
        ("merge:dare_ties", {"yu2024"}),
        ("merge:knots;subtract=en", {"stoica2025"}),
        ("random", set()),
        ("expert:arrow", set()),
        ("gks:en;general=random", {"ostapenko2024"}),
        ("gks:en;general=rotated", {"ostapenko2024", "mezzadri2007"}),
        ("spectr;rule=pico", {"fleshman2025spectr", "tang2026"}),
    ],
)
def test_a_run_cites_what_it_ran(setting: str, papers: set[str] | None) -> None:
    found, missing = used_by(recorded(setting))
    assert missing == []
    expected = SOFTWARE if papers is None else PEFT | papers | {"bagherifard2025"}
    assert {entry.key for entry in found} == expected


def test_software_is_cited_in_the_version_that_ran() -> None:
    versions = {"eval-harness": "0.4.13", "peft": "0.18.0", "gks-eval": "0.2.0"}
    names = {"eval-harness": "lm-eval"}
    run = {
        **recorded("arrow"),
        "versions": {names.get(key, key): value for key, value in versions.items()},
    }
    notes = {entry.key: entry.fields.get("note", "") for entry in used_by(run)[0]}
    assert {key: notes[key] for key in versions} == {
        key: f"Version {value}" for key, value in versions.items()
    }


def test_the_command_prints_each_entry_once_papers_first(tmp_path: Path) -> None:
    write(tmp_path / "arrow", recorded("arrow"))
    write(tmp_path / "mean", recorded("merge:mean"))
    write(tmp_path / "plain", None)
    text = cite(tmp_path)
    assert keys(text) == [
        *("bagherifard2025", "ostapenko2024", "wortsman2022"),
        *("eval-harness", "peft", "gks-eval"),
    ]
    assert "  note = {Version 0.4.13}," in text
    assert text.count("{") == text.count("}")
    assert keys(cite(tmp_path / "plain")) == ["eval-harness"]
    lines = cite(tmp_path, "--format", "text").splitlines()
    assert len(lines) == 7
    assert lines[1].startswith("Ostapenko, Oleksiy; Su, Zhan; ")
    assert "by Building and Reusing a Library of LoRAs. " in lines[1]
    assert ".." not in "".join(lines)


def test_a_method_of_another_package_is_cited_by_its_source(tmp_path: Path) -> None:
    @merge(paper="Ünal & Co.\n2026 {draft}, https://example.org/a_b{c}")
    def largest(layer, parameters):
        """The largest."""

    with MERGES.lent(largest):
        write(tmp_path / "a", recorded("merge:largest"))
        text = cite(tmp_path)
    assert keys(text)[1] == "merge-largest"
    title = r"  title = {{Ünal \& Co. 2026 \textbraceleft{}draft\textbraceright{}}},"
    assert title in text
    assert "  url = {https://example.org/a_bc}," in text
    assert "  note = {merge largest}," in text
    # Without its package, only the name is known; the family distinguishes it from an expert's.
    setting = {"router": "theirs", "subtract": []}
    write(tmp_path / "b", {"setting": setting, "family": "experts"})
    assert "not installed" not in cite(tmp_path / "b")
    write(tmp_path / "c", {"setting": setting, "family": "routers"})
    assert "% router=theirs is not installed; its reference is missing." in cite(tmp_path / "c")
    assert "% merge=largest is not installed; its reference is missing." in cite(tmp_path)


def test_records_of_strangers_start_no_entry(tmp_path: Path) -> None:
    setting = {"router": "merge:x\n@misc{evil,\n", "rule": ["delta"], "general": {}}
    write(tmp_path / "a", {"setting": setting, "versions": "x"})
    assert keys(cite(tmp_path)) == ["bagherifard2025", "eval-harness", "peft", "gks-eval"]
    write(tmp_path / "b", {"setting": "arrow"})
    assert keys(cite(tmp_path / "b")) == ["eval-harness"]


def test_a_folder_without_results_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="holds no results_"):
        cite(tmp_path)


@pytest.mark.parametrize("text", ["a}", "{b", "}{", r"\}", r"50% \ {x^2} ~_&#$", "{{}"])
def test_any_text_of_a_stranger_keeps_an_entry_s_braces_balanced(text: str) -> None:
    """BibTeX counts braces without regard to backslashes; the plain text is the text again."""
    entry = _of_version(Reference("k", "misc", {}), text)
    depth = 0
    for character in entry.bibtex():
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert depth == 0
    assert entry.text() == f"Version {text}"
