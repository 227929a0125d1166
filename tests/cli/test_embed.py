"""`mmsa embed`, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmsa_dist.cli.main import app
from tests.fixtures.embedders import random_embedder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed") / "model"
    random_embedder().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hello\nworld\n", "no row has a vector: does the input hold what its name says? `-` reads lines of SMILES"),
        (f"{'C' * 1001} long\nhello\n", "no row has a vector: has 1001 heavy atoms, more than "),
    ],
    ids=["no molecules", "molecules of another kind"],
)
def test_why_no_row_has_a_vector(model, tmp_path, text, words):
    (tmp_path / "in.smi").write_text(text)
    command = ["embed", str(tmp_path / "in.smi"), "-m", str(model), "-o", str(tmp_path / "out")]
    for _ in range(2):  # a finished export knows it too
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert f"mmsa: {words}" in done.stderr
