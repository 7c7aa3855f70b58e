"""A hook for MkDocs: pages outside of docs/, and a page for the Python API.

Every page keeps its path in the repository, so links between README.md, docs/ and tasks/ need no
change. The API page is not a file; it lists the public names of `gks_eval/__init__.py`, which is
parsed and never imported, and mkdocstrings fills in their signatures and docstrings.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "tasks/**/*.md", "docs/**/*")
DATA = {".json", ".jsonl", ".xz", ".pyc"}  # of the study; no page shows them
API_HEAD = """\
# API reference

The signatures and docstrings of all public names. [python.md](python.md) has an example for each.
"""
PARTS = {
    "library": "Libraries",
    "method": "Settings and methods",
    "model": "Models",
    "grid": "Grids",
    "evidence": "Results",
    "util": "Tasks",
    "errors": "Errors",
}
FURTHER = {"Tests of your own methods": "gks_eval.testing"}


def homes() -> dict[str, str]:
    """Return the module of each public name, relative to the package."""
    tree = ast.parse((ROOT / "gks_eval" / "__init__.py").read_text(encoding="utf-8"))
    (table,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES"
    )
    found: dict[str, str] = ast.literal_eval(table)
    if others := {home.partition(".")[0] for home in found.values()} - PARTS.keys():
        raise PluginError(f".ci/docs_hook.py: name a part of the API page for {', '.join(others)}.")
    return found


def api_page() -> str:
    """Return the Markdown of the API page, with a mkdocstrings block per name."""
    lines = [API_HEAD]
    for folder, title in PARTS.items():
        lines.append(f"## {title}\n")
        lines += [
            f"::: gks_eval.{home}.{name}\n"
            for name, home in homes().items()
            if home.partition(".")[0] == folder
        ]
    for title, module in FURTHER.items():
        lines += [
            f"## {title}\n",
            f"::: {module}",
            "    options:",
            "      show_root_heading: false\n",
        ]
    return "\n".join(lines)


def on_files(files: Files, *, config: Any) -> Files:
    """Replace the files of docs/ by the pages of the repository, under their paths there."""
    kept = [file for file in files if file.src_dir != config.docs_dir]  # the theme's
    paths = sorted({path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()})
    ours = [
        File(
            path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls
        )
        for path in paths
        if path.suffix not in DATA
    ]
    api = File.generated(config, "docs/api.md", content=api_page())
    return Files([*kept, *ours, api])
