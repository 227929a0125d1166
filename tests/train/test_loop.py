"""What a run is put together from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.structure.global_neighbours import GlobalNeighbours
from mmsa_dist.structure.sources import BatchNeighbours, NeighbourSource, NoNeighbours
from mmsa_dist.train.loop import neighbours_for


@pytest.mark.parametrize(
    ("name", "kind"), [("global", GlobalNeighbours), ("batch", BatchNeighbours), ("none", NoNeighbours)]
)
def test_the_source_of_neighbours_is_the_configured_one(name: str, kind: type[NeighbourSource]) -> None:
    config = load_config(None, [f"model.structure.neighbours={name}"])
    assert type(neighbours_for(config, SimpleNamespace(molecules=7), torch.device("cpu"))) is kind
