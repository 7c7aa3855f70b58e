"""Make tests/golden/lm_eval_versions/: what releases of lm-eval write, one folder per format.

Run:  python tests/golden/make_lm_eval_versions.py [--releases FOLDER] [--all FOLDER] [RELEASE ...]
Made: 2026-11-28, Python 3.11, transformers 5.24, datasets 5.2; about a minute per release.

Every release is installed without its dependencies into a folder of its own (`--releases` keeps
them) and runs lm-eval's own command with the dummy model on the tasks below. `mixed`: a nested
group next to a lone task and to a task that is a member of the group as well. `kinds`: one task per
kind of metric. `passes`: a function that names its metrics itself. The releases in `KEPT` stand for
all formats: 0.4.0 to 0.4.2, 0.4.3, 0.4.4 and 0.4.5, 0.4.7 and 0.4.8, 0.4.9 to 0.4.11, 0.4.12 and
0.4.13; `--all` writes those of every release. Old releases run on newer dependencies than their
own: `_stand_ins` says what they need for that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

OUT = Path(__file__).parent / "lm_eval_versions"
RELEASES = (
    *("0.4.0", "0.4.1", "0.4.2", "0.4.3", "0.4.4", "0.4.5", "0.4.7", "0.4.8"),
    *("0.4.9", "0.4.9.1", "0.4.9.2", "0.4.10", "0.4.11", "0.4.12", "0.4.13"),
)
KEPT = ("0.4.2", "0.4.3", "0.4.5", "0.4.8", "0.4.11", "0.4.12")

HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {data}}}}}
validation_split: validation
metadata: {{version: 1.0}}
"""
CHOICE = """output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
"""
GENERATE = """output_type: generate_until
doc_to_text: "Repeat: {{question}}\\n"
doc_to_target: "{{question}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
"""
METRIC = "  - {{metric: {name}, aggregation: {aggregation}, higher_is_better: {higher}}}\n"
FILTERS = """filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - name: letters
    filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]
"""
ROLLING = """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list:
"""
LAST_WORD = """output_type: loglikelihood
doc_to_text: "{{question}} is"
doc_to_target: " {{choices[0]}}"
metric_list:
"""
PASS_AT = """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{question}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
  - metric: !function ev_metrics.pass_at_k
    aggregation: mean
    higher_is_better: true
    k: [1]
"""
# A function of several results, as humaneval's: lm-eval's key is `pass@1`, its direction's name
# `pass_at_k`.
METRICS = '''def pass_at_k(references, predictions, k):
    """Score one item under the name that `k` gives."""
    return {f"pass@{k[0]}": float("o" in references[0])}
'''
GROUP = """group: {name}
task: {members}
"""
# Before 0.4.4 a group averages every metric by size, and its file may not say more.
AVERAGE = """aggregate_metric_list:
  - {{metric: acc, weight_by_size: {weighted}}}
metadata: {{version: 1.0}}
"""


def _metrics(*entries: tuple[str, str, str]) -> str:
    return "".join(METRIC.format(name=n, aggregation=a, higher=h) for n, a, h in entries)


_ACC = _metrics(("acc", "mean", "true"), ("acc_norm", "mean", "true"))
TASKS = {
    "ev_maths": (7, CHOICE + _ACC),
    "ev_birds": (4, CHOICE + _ACC),
    "ev_trees": (3, CHOICE + _ACC),
    "ev_lone": (5, CHOICE + _ACC),
    "ev_filters": (4, GENERATE + _metrics(("exact_match", "mean", "true")) + FILTERS),
    "ev_bleu": (4, GENERATE + _metrics(("bleu", "bleu", "true"))),
    "ev_rolling": (
        4,
        ROLLING
        + _metrics(
            ("word_perplexity", "weighted_perplexity", "false"),
            ("byte_perplexity", "weighted_perplexity", "false"),
            ("bits_per_byte", "bits_per_byte", "false"),
        ),
    ),
    "ev_words": (
        4,
        LAST_WORD + _metrics(("perplexity", "perplexity", "false"), ("acc", "mean", "true")),
    ),
    "ev_mcc": (6, CHOICE + _metrics(("mcc", "matthews_corrcoef", "true"), ("f1", "f1", "true"))),
    "ev_pass": (4, PASS_AT),
}
GROUPS = (
    ("ev_inner", "[ev_maths, ev_birds]", "true"),
    ("ev_outer", "[ev_inner, ev_trees]", "false"),
)
RUNS = {
    "mixed": "ev_outer,ev_maths,ev_lone",
    "kinds": "ev_filters,ev_bleu,ev_rolling,ev_words,ev_mcc",
    "passes": "ev_pass",  # from 0.4.8 on
}


def _write_tasks(folder: Path, averages: bool) -> None:
    folder.mkdir()
    words = ("wren", "oak", "trout", "chalk", "moss", "fern", "lynx")
    (folder / "ev_metrics.py").write_text(METRICS, encoding="utf-8")
    for name, (n, body) in TASKS.items():
        rows = [
            {"question": f"{name[3:]} {word}", "choices": [word, "no"], "answer": i % 2}
            for i, word in enumerate(words[:n])
        ]
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        text = HEAD.format(name=name, data=data) + body
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    for name, members, weighted in GROUPS:
        text = (GROUP + AVERAGE * averages).format(name=name, members=members, weighted=weighted)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _stand_ins() -> None:
    """Give old releases what newer dependencies no longer have or would fetch from the hub."""
    import datasets
    import evaluate
    import transformers

    for name in ("transformers.data.metrics", "transformers.data.metrics.squad_metrics"):
        sys.modules.setdefault(name, ModuleType(name))
    if not hasattr(transformers, "AutoModelForVision2Seq"):
        transformers.AutoModelForVision2Seq = transformers.AutoModelForImageTextToText

    relative_to = Path.relative_to

    def lenient(path: Path, *other: object) -> Path:
        """0.4.9.2 shows every task's file relative to lm-eval's own folder."""
        try:
            return relative_to(path, *other)
        except ValueError:
            return path

    Path.relative_to = lenient

    class ExactMatch:
        def compute(self, references: list[str], predictions: list[str], **_: object) -> object:
            pairs = zip(references, predictions, strict=True)
            return {"exact_match": sum(a == b for a, b in pairs) / len(references)}

    evaluate.load = lambda name, *_, **__: ExactMatch()
    datasets.load_metric = evaluate.load
    from lm_eval.api import metrics
    from lm_eval.models.dummy import DummyLM

    bootstrap = metrics.bootstrap_stderr
    metrics.bootstrap_stderr = lambda f, xs, iters: bootstrap(f, xs, iters=1000)
    # That of 0.4.3 and 0.4.4 cannot generate; from 0.4.10 on it asks the hub for a tokenizer.
    DummyLM.tokenizer_name = ""
    DummyLM.tokenizer = None
    DummyLM.generate_until = lambda self, requests, *_, **__: ["lol"] * len(requests)


def _run_release(tasks: Path, written: Path) -> None:
    """Run lm-eval's command in this process, which has the release first on its path."""
    _stand_ins()
    from lm_eval.__main__ import cli_evaluate

    for name, asked in RUNS.items():
        command = ["lm_eval", "--model", "dummy", "--tasks", asked, "--include_path", str(tasks)]
        if written.name in RELEASES[-2:]:  # that refuse a task next to its group
            command[4] = asked.replace(",ev_maths", "")
        sys.argv = [*command, "--log_samples", "--output_path", str(written / name)]
        try:
            cli_evaluate()
        except (KeyError, TypeError, ValueError):
            traceback.print_exc()


def _tidy(written: Path, target: Path, *folders: Path) -> None:
    for path in sorted(written.rglob("*.json*")):
        text = path.read_text(encoding="utf-8")
        for folder in folders:
            text = text.replace(str(folder), "/golden")
        if path.suffix == ".json":
            results = json.loads(text)
            for key in ("pretty_env_info", "upper_git_hash", "git_hash"):
                results.pop(key, None)
            text = json.dumps(results, indent=1, ensure_ascii=False)
        kept = target / path.relative_to(written).parts[0] / path.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(text, encoding="utf-8")


def main() -> None:
    """Install each release, run it, keep what it wrote."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--releases", type=Path)
    parser.add_argument("--all", type=Path)
    parser.add_argument("release", nargs="*")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gks-golden-") as temporary:
        work = Path(temporary)
        for averages in (False, True):
            _write_tasks(work / f"tasks-{averages}", averages)
        target = options.all or OUT
        for release in options.release or (RELEASES if options.all else KEPT):
            shutil.rmtree(target / release, ignore_errors=True)
            installed = (options.releases or work / "releases") / release
            if not installed.is_dir():
                pip = [sys.executable, "-m", "pip", "install", "--no-deps", f"lm-eval=={release}"]
                subprocess.run([*pip, "--target", str(installed)], check=True)
            written = work / "out" / release
            tasks = work / f"tasks-{release not in RELEASES[:4]}"
            environment = {
                **os.environ,
                "PYTHONPATH": str(installed),
                "HF_HUB_OFFLINE": "1",
                "OMP_NUM_THREADS": "1",
            }
            script = [sys.executable, __file__, "--one", str(tasks), str(written)]
            subprocess.run(script, check=not options.all, env=environment, cwd=work)
            _tidy(written, target / release, work, installed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _run_release(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
