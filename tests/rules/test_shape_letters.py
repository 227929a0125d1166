"""Names such as `u_BD` carry a tensor's shape; what their letters mean stands at the head of the file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mmsa_dist"
#: They mean one thing everywhere, which `mmsa_dist.data.batch` says.
EVERYWHERE = set("ABE")
SHAPED = re.compile(r"_*[a-z][a-z0-9_]*_([A-Z0-9]*[A-Z][A-Z0-9]*)")


def letters(tree: ast.Module) -> set[str]:
    """The size letters in the names of a file."""
    names = {getattr(node, kind, None) for node in ast.walk(tree) for kind in ("id", "arg", "attr")}
    found = [SHAPED.fullmatch(name) for name in names if isinstance(name, str)]
    return {letter for match in found if match for letter in match[1] if letter.isalpha()}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_every_size_letter_is_explained(file: Path) -> None:
    tree = ast.parse(file.read_text())
    head = set(re.findall(r"\b[A-Z]\b", ast.get_docstring(tree) or ""))
    assert letters(tree) - EVERYWHERE - head == set()


def test_the_letters_of_all_files_are_explained_in_one() -> None:
    head = ast.get_docstring(ast.parse((PACKAGE / "data" / "batch.py").read_text())) or ""
    assert set(re.findall(r"\b([A-Z]) [a-z]+", head)) >= EVERYWHERE
