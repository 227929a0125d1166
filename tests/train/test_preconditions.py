"""What a run refuses before its first step, beside broken shards (`tests/integration/test_pretrain.py`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmsa_dist.config.load import load_config
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.encoders import ComENet, ResNet
from mmsa_dist.model import MMSAModel
from mmsa_dist.train.preconditions import refuse_what_cannot_learn

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"


def test_encoders_that_declare_what_they_read_are_taken(tiny_shards: Path) -> None:
    config = load_config(MINI)
    refuse_what_cannot_learn(MMSAModel(config.model), config, BlockReader(str(tiny_shards), "train"))


@pytest.mark.parametrize(("name", "kind"), [("resnet", ResNet), ("comenet", ComENet)])
def test_an_encoder_that_reads_more_than_it_declares_is_refused(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: type
) -> None:
    config = load_config(MINI)
    monkeypatch.setattr(kind, "reads", frozenset({"graph"}))
    with pytest.raises(
        ValueError, match=rf"{name} among model.encoders declares that it reads graph only.*{kind.__name__}"
    ):
        refuse_what_cannot_learn(MMSAModel(config.model), config, BlockReader(str(tiny_shards), "train"))


def test_an_encoder_of_coordinates_needs_shards_with_3d(make_tiny_shards: Callable[..., Any], tmp_path: Path) -> None:
    config = load_config(MINI)
    with pytest.raises(ValueError, match=r"has 3D, which comenet among .*model\.encoders='\[gin, resnet\]'"):
        refuse_what_cannot_learn(
            MMSAModel(config.model), config, BlockReader(str(make_tiny_shards(tmp_path, flat=True)), "train")
        )
