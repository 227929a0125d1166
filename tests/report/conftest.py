"""A run folder with all that a run makes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mmsa_dist.config.load import load_config, to_yaml
from mmsa_dist.embed import export_embeddings
from mmsa_dist.evaluate import Results, Score
from mmsa_dist.report import write_report
from mmsa_dist.runtime.run_folder import environment
from tests.fixtures.embedders import mini_config, random_embedder


@pytest.fixture(scope="session")
def run(make_tiny_shards, tmp_path_factory) -> Path:
    """A run folder with all that a run makes."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    root.mkdir()
    make_tiny_shards(root)
    config = mini_config().model_copy(update={"run": mini_config().run.model_copy(update={"dir": str(root)})})
    (root / "config.yaml").write_text(to_yaml(config))
    (root / "environment.json").write_text(json.dumps(environment()))
    lines = [
        {
            "step": step,
            "train/loss": 5 - step / 20,
            "train/contrast_loss": 3.0,
            "train/atom_loss": 0.0,
            "valid/retrieval_at_1": step / 100,
            "valid/chance": 0.125,
            "valid/alignment": 1.5,
            "valid/uniformity": -1.0,
            "memory/anchor_entropy": 0.9,
            "memory/dead_anchors": 1.0,
            "memory/g_cosine": None,
            "bank/recall": 1.0,
            "molecules_per_s": 100.0 + step,
        }
        for step in range(1, 61)
    ]
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 61, "tra')
    embedder = random_embedder()
    embedder.save_pretrained(root / "model")
    export_embeddings(embedder, root / "shards", root / "embeddings")
    score = Score(
        task="freesolv", split="hu-scaffold", split_source=None, split_digest="d", seed=0,
        features="ECFP4", model="linear",
        metric="rmse", value=4.1651, valid=4.0, labels_scored=1, labels=1, test_molecules=65, missing=3, seconds=1.0,
    )  # fmt: skip
    Results((score,)).write(root / "evaluation")
    return root


@pytest.fixture
def lone(run: Path, tmp_path: Path) -> Path:
    """The same of a model of one modality: nothing is retrieved, and no two codes of a molecule lie near each other."""
    root = shutil.copytree(run, tmp_path / "lone", ignore=shutil.ignore_patterns("report.html"))
    config = load_config(root / "config.yaml", ["model.encoders=[gin]"])
    (root / "config.yaml").write_text(to_yaml(config))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()[:-1]]
    absent = ("valid/retrieval_at_1", "valid/chance", "valid/alignment")
    for line in lines:
        line |= {"memory/g_cosine": 0.1, "data_wait_s": 0.01, "bank/age_mean": 3.0} | dict.fromkeys(absent)
    (root / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


@pytest.fixture(scope="session")
def report(run: Path) -> Path:
    """The page on it."""
    pytest.importorskip("bokeh", reason="the report needs bokeh, of the extra report")
    path = write_report(run)
    assert path == run / "report.html"
    return path.resolve()
