"""Each schema and each file name stands in one file of the package."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCHEMA = re.compile(r"gks_eval\.\w+/\d+")
NAME = re.compile(r"[\w*.-]+\.(json|jsonl|yaml|safetensors|bin|pt|pth|png|j2|html|md)")


def literals(file: Path) -> set[str]:
    """The strings of a file, docstrings aside."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documentation
    }


def test_each_schema_and_file_name_has_one_owner() -> None:
    owners: defaultdict[str, list[str]] = defaultdict(list)
    for folder in ("gks_eval", "benchmarks"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for text in literals(file):
                if SCHEMA.fullmatch(text) or NAME.fullmatch(text):
                    owners[text].append(str(file.relative_to(ROOT)))
    assert "gks_eval.routing/1" in owners
    assert "adapter_config.json" in owners
    assert {text: files for text, files in owners.items() if len(files) > 1} == {}
