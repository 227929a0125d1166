"""The reference bank that travels with an exported model."""

from __future__ import annotations

from pathlib import Path

import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.model import MMSAModel
from mmsa_dist.train.export import reference_rows

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"
CPU = torch.device("cpu")


def rows(shards: Path, *words: str) -> tuple[MMSAModel, torch.Tensor | None]:
    config = load_config(MINI, list(words))
    torch.manual_seed(0)
    model = MMSAModel(config.model).eval()
    return model, reference_rows(model, config, BlockReader(str(shards), "train"), CPU)


def test_rows_are_those_that_inference_will_make(tiny_shards: Path) -> None:
    model, without = rows(tiny_shards)
    assert without is not None
    assert (without.shape, without.dtype) == ((20, 32), torch.float16)
    first = collate(BlockReader(str(tiny_shards), "train").read(0), picture_size=32)
    with torch.no_grad():
        expected = model.fuse(first.without_conformers()).unified_BC
    torch.testing.assert_close(without[:4], expected.half())
    _, with_3d = rows(tiny_shards, "embed.conformers=given")
    assert with_3d is not None
    assert not torch.equal(without, with_3d)


def test_no_more_rows_than_molecules_and_none_where_none_are_asked_for(tiny_shards: Path) -> None:
    _, everything = rows(tiny_shards, "embed.reference_molecules=1000")
    assert everything is not None
    assert len(everything) == 44
    assert rows(tiny_shards, "embed.reference_molecules=0")[1] is None
