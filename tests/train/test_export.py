"""The reference bank that travels with an exported model."""

from __future__ import annotations

from pathlib import Path

import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_dist.train.export import export_model, reference_rows

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
    _, without_pictures = rows(tiny_shards, "embed.pictures=false")
    assert without_pictures is not None
    flat = collate(BlockReader(str(tiny_shards), "train").read(0), picture_size=None)
    with torch.no_grad():
        expected = model.fuse(flat.without_conformers()).unified_BC
    torch.testing.assert_close(without_pictures[:4], expected.half())
    assert not torch.equal(without, without_pictures)


def test_no_more_rows_than_molecules_and_none_where_none_are_asked_for(tiny_shards: Path) -> None:
    _, everything = rows(tiny_shards, "embed.reference_molecules=1000")
    assert everything is not None
    assert len(everything) == 44
    assert rows(tiny_shards, "embed.reference_molecules=0")[1] is None
    assert rows(tiny_shards, "model.structure.neighbours=none")[1] is None
    assert rows(tiny_shards, "model.structure.neighbours=batch")[1] is not None


def test_molecules_without_a_modality_give_no_rows(tiny_shards: Path) -> None:
    assert rows(tiny_shards, "model.encoders=[comenet]")[1] is None, "embed.conformers is none"
    given = rows(tiny_shards, "model.encoders=[comenet]", "embed.conformers=given")[1]
    assert given is not None
    assert given.any(dim=1).all()


def test_a_model_makes_molecules_as_its_shards_were_made(tiny_shards: Path, tmp_path: Path) -> None:
    config = load_config(MINI, ["prepare.salts=keep", "prepare.seed=5", "prepare.max_atoms=77"])
    reader = BlockReader(str(tiny_shards), "train")
    reader.options = {"salts": "strip", "seed": 3, "groups": "keep", "conformers": "none", "shards": 4}
    folder = RunFolder(tmp_path)
    export_model(MMSAModel(config.model), config, reader, folder, CPU, {})
    inference = PretrainedModel.load(folder.model).inference
    assert (inference.standardization.salts, inference.standardization.groups) == ("strip", "keep")
    assert inference.standardization.max_atoms == 77, "of which these shards say nothing"
    assert inference.conformer_seed == 3
