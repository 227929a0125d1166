"""`mmsa evaluate` in this process; the whole command is in tests/integration/test_commands.py."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from mmsa_dist.cli.main import app
from tests.fixtures.embedders import random_embedder


@pytest.mark.parametrize(("setting", "view"), [([], "gin"), (["embed.view=unified"], "unified")])
def test_a_probe_takes_the_view_of_the_model_unless_one_is_asked_for(tmp_path, setting, view):
    pretrained = random_embedder().pretrained
    graph = replace(pretrained, inference=pretrained.inference.model_copy(update={"view": "gin"}))
    graph.save(tmp_path / "model")
    chains = "".join(f"{'C' * number},{number}\n" for number in range(1, 31))
    (tmp_path / "chains.csv").write_text(f"smiles,length\n{chains}")
    command = ["evaluate", "--csv", str(tmp_path / "chains.csv"), "--label-columns", "length", "--metric", "rmse"]
    command += ["--split", "random", "--seeds", "1", "--checkpoint", str(tmp_path / "model")]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), *setting])
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["settings"]["embed.view"] == view
    assert {s["features"] for s in results["scores"]} >= {
        f"MMSA, pre-trained ({view})",
        f"MMSA, no pre-training ({view})",
    }
