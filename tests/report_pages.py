"""Pages of `gks-eval report` for tests: a small one, and one of ten settings by thirty tasks."""

from __future__ import annotations

import json
import random
from pathlib import Path

from evidence_factory import sample, write_run

from gks_eval.evidence.report.build import Options, build_page
from gks_eval.evidence.runs import find_runs

HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


def observed(folder: Path) -> None:
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


def grid(folder: Path, sizes: dict[str, int], runs: int = 3) -> Path:
    model = "pretrained=microsoft/Phi-3-mini-4k-instruct"
    for label, chance in (("base", 0.6), ("arrow", 0.66), ("gks-avg", 0.7))[:runs]:
        rng = random.Random(label)
        tasks = {}
        for name, n in sizes.items():
            shared = random.Random(name)
            tasks[name] = [
                sample(
                    i,
                    float(shared.random() * 0.5 + rng.random() * 0.5 < chance),
                    question=HOSTILE if i == 0 else f"Question {i} of {name}: {'word ' * 30}?",
                    choices=("the first answer", "the second, somewhat longer answer"),
                )
                for i in range(n)
            ]
        groups = {"gks_paper_english": (tuple(sizes), False)}
        write_run(folder / label, tasks, groups=groups, model_args=model)
    return folder


def small_page(folder: Path) -> Path:
    """Three settings by three tasks, with the paper's values, routing and a library."""
    grid(folder, {"gks_paper_piqa": 400, "gks_paper_boolq": 300, "gks_paper_arc_easy": 200})
    observed(folder)
    return _written(folder, Options(title="A <b>report</b> & more"))


def large_page(folder: Path) -> Path:
    """Ten settings by thirty tasks with long names."""
    tasks = [f"bbh_cot_fewshot_tracking_shuffled_objects_{i}" for i in range(28)] + ["a", "b"]
    names = ["base", "arrow", "gks-en", "gks-avg", "uniform", "oracle"]
    names += [f"gks-avg_rule-orthogonal_top_k-{k}" for k in (1, 2, 4, 8)]
    for label in names:
        rng = random.Random(label)
        scores = {name: [float(rng.random() < 0.5) for _ in range(30)] for name in tasks}
        groups = {"large": (tasks[:20], False), "small": (tasks[20:28], True)}
        write_run(folder / label, scores, groups=groups)
    observed(folder)
    return _written(folder, Options())


def _written(folder: Path, options: Options) -> Path:
    path = folder / "report.html"
    html = build_page(find_runs([str(folder)]), [folder], options)
    path.write_text(html, encoding="utf-8")
    return path
