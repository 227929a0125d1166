"""What a run is put together from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.config.recorded import as_recorded
from mmsa_dist.embed import ModelFolderError
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.structure.sources import BatchNeighbours, NeighbourSource, NoNeighbours
from mmsa_dist.train.loop import Run, neighbours_for


@pytest.mark.parametrize(
    ("name", "kind"), [("global", GlobalNeighbours), ("batch", BatchNeighbours), ("none", NoNeighbours)]
)
def test_the_source_of_neighbours_is_the_configured_one(name: str, kind: type[NeighbourSource]) -> None:
    config = load_config(None, [f"model.structure.neighbours={name}"])
    assert type(neighbours_for(config, SimpleNamespace(molecules=7), torch.device("cpu"))) is kind


@pytest.mark.parametrize(
    ("named", "recorded"),
    [
        ("", ""),
        ("shards", "{here}/shards"),
        ("../shards", "{above}/shards"),
        ("/data/shards", "/data/shards"),
        ("memory://bucket/shards", "memory://bucket/shards"),
        ("simplecache::memory://bucket/shards", "simplecache::memory://bucket/shards"),
    ],
)
def test_a_run_records_where_its_shards_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, recorded: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(None, [f"data.shards={named!r}"])
    expected = recorded.format(here=tmp_path, above=tmp_path.parent)
    assert as_recorded(config) == load_config(None, [f"data.shards={expected!r}"])


def test_a_model_that_could_not_be_exported_is_refused_before_the_first_step(tiny_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("of last year")
    config = load_config(None, [f"run.dir={tmp_path}", f"data.shards={tiny_shards}"])
    with pytest.raises(ModelFolderError, match=r"model is not a model folder: it holds notes\.txt, and"):
        Run(config, torch.device("cpu"), SimpleNamespace(), resume=False)
