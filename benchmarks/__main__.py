"""The command line, `python -m benchmarks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gks_eval.cli.main import exit_with_sentence
from gks_eval.errors import UsageError

__all__ = ["build_app"]


def build_app() -> typer.Typer:
    """Return the typer application; it has one command."""
    app = typer.Typer(
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command("benchmarks")(_bench)
    return app


def _bench(
    rows: Annotated[
        str,
        typer.Option(
            help="Comma-separated: layer, router, experts, model, evaluation, startup, growth; "
            "generation: open-ended texts; library: 100 and 1,000 adapters on disk; "
            "full: Phi-3-mini's full size on a GPU."
        ),
    ] = "layer,router,experts,model,evaluation,startup,growth",
    json: Annotated[Path | None, typer.Option(help="File for all numbers.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for the picture of growth: .png, .svg or .pdf.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="Rounds, each with one run per contestant; a third for slow rows."
        ),
    ] = 6,
    items: Annotated[int, typer.Option(min=1, help="Items of each evaluated set.")] = 6,
    library: Annotated[
        str | None, typer.Option(help="Library of whole-model rows; default: smollm2-demo.")
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(min=1, help="Layers of the random Phi-3; default 2, and 32 for full."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny shapes, to test the benchmark in a minute.")
    ] = False,
) -> None:
    """Measure layers, models, evaluations and start-up against PEFT and lm-eval.

    GKS_DATA_ROOT=FOLDER, with data sets as FOLDER/org/name, adds the paper's sets to the demo's.
    """
    from benchmarks.request import BenchmarkRequest, rows_of

    request = BenchmarkRequest(rows_of(rows), device, dtype, repeats, items, library, layers, quick)
    request.check()
    if json is not None and json.is_dir():
        raise UsageError(f"--json {json} is a folder; name a file.")
    if plot is not None:
        from benchmarks.plot import check_plot

        check_plot(plot)
        if "growth" not in request.rows:
            raise UsageError("--plot draws the growth rows; add growth to --rows.")
    from rich.console import Console

    from benchmarks.suite import run_bench
    from benchmarks.tables import rendered
    from gks_eval.util.files import write_text
    from gks_eval.util.quiet import quiet_libraries

    quiet_libraries()
    log = Console(stderr=True, emoji=False)
    record = run_bench(request, lambda text: log.print(text, markup=False, highlight=False))
    print(rendered(record), end="", flush=True)
    if json is not None:
        write_text(json, record.to_json())
    if plot is not None and record.growth is not None:
        from benchmarks.plot import draw_growth

        draw_growth(record.growth, plot)


if __name__ == "__main__":
    exit_with_sentence(build_app(), "benchmarks")
