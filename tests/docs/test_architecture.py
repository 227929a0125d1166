"""docs/architecture.md lists the layers that the imports keep, and every module in the order that it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.rules.test_imports import FLOORS, SIDEWAYS, imports

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
SECTIONS = {
    "mmsa_shards": ROOT / "shards" / "mmsa_shards",
    **{f"mmsa_dist.{part}": ROOT / "mmsa_dist" / part for part in ("train", "embed", "evaluate")},
}


def test_the_layers():
    rows = PAGE.partition("| layer, from the top |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    named = [set(re.findall(r"`(\w+)`", layer)) for layer, _ in cells]
    assert named == [set(layer) for layer in reversed(FLOORS)]
    for _, within in cells:
        for sentence in filter(None, re.split("[,;] ", within)):
            if "imports" in sentence:
                importer, *imported = re.findall(r"`(\w+)`", sentence)
                assert {(importer, part) for part in imported} <= SIDEWAYS


@pytest.mark.parametrize("package", SECTIONS)
def test_the_modules(package):
    folder = SECTIONS[package]
    (listed,) = re.findall(rf"^### `{re.escape(package)}`\n\n```\n(.*?)```$", PAGE, re.DOTALL | re.MULTILINE)
    lines = [re.split(" {2,}", line)[0].split(", ") for line in listed.splitlines()]
    line_of = {module: number for number, line in enumerate(lines) for module in line}
    files = {file: file.relative_to(folder).parts[0].removesuffix(".py") for file in folder.rglob("*.py")}
    assert sorted(module for line in lines for module in line) == sorted({*files.values()} - {"__init__"})
    for file, module in files.items():
        for name in imports(ast.parse(file.read_text())):
            other = name.removeprefix(f"{package}.").split(".")[0] if name.startswith(f"{package}.") else None
            if module in line_of and other in line_of:
                assert line_of[other] >= line_of[module], f"{file.name} imports {other}, which is listed above it"
