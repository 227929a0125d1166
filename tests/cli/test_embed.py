"""`mmsa embed`, in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmsa_dist.cli.main import app
from mmsa_dist.embed import Embedder
from mmsa_dist.embed.parquet import read_summary
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


def test_vectors_are_of_the_view_of_the_model_unless_one_is_asked_for(tmp_path):
    pretrained = random_embedder().pretrained
    graph = replace(pretrained, inference=pretrained.inference.model_copy(update={"view": "gin"}))
    graph.save(tmp_path / "model")
    assert Embedder.from_pretrained(tmp_path / "model").view_ == "gin"
    (tmp_path / "in.smi").write_text("CCO\n")
    (tmp_path / "unified.yaml").write_text("embed: {view: unified}\n")
    (tmp_path / "batch.yaml").write_text("embed: {batch_size: 8}\n")
    command = ["embed", str(tmp_path / "in.smi"), "-m", str(tmp_path / "model"), "-o"]
    views = {}
    for name, more in {
        "nothing asked": [],
        "other settings": ["embed.batch_size=4", "--config", str(tmp_path / "batch.yaml")],
        "setting": ["embed.view=structure"],
        "file": ["--config", str(tmp_path / "unified.yaml")],
    }.items():
        done = CliRunner().invoke(app, [*command, str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
        views[name] = read_summary(tmp_path / name).origin.view
    assert views == {"nothing asked": "gin", "other settings": "gin", "setting": "structure", "file": "unified"}
