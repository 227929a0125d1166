"""`launch/configs/large.yaml`: as large as `docs/scale.md` says, and of the same build it takes a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs

from mmsa_dist.config.load import load_config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.model import MMSAModel
from mmsa_dist.objective import Objective
from mmsa_dist.structure.sources import NoNeighbours
from tests.fixtures.batches import Molecule, batch_of, random_molecule

ROOT = Path(__file__).parents[2]
GIB = 2**30


def objective(name: str, *words: str, device: str = "meta") -> Objective:
    config = load_config(ROOT / "launch" / "configs" / f"{name}.yaml", list(words))
    with torch.device(device):
        return Objective(MMSAModel(config.model), config.loss)


def table() -> list[list[str]]:
    lines = (ROOT / "docs" / "scale.md").read_text().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if ".yaml`" in line and "|" in line]


@pytest.mark.parametrize("row", table(), ids=lambda row: f"{row[0]}-{row[2]}")
def test_the_document_has_the_numbers_of_the_configuration(row: list[str]) -> None:
    name, parameters, world, stage, ours, theirs = row
    model = objective(name.split(".")[0].strip("`"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,}" == parameters
    ranks = int(world) if world.isdigit() else 1
    whole, shared = {"0": (16, 0), "1": (8, 12), "3": (0, 16)}[stage]
    assert float(ours) == pytest.approx((whole * count + shared * count / ranks) / GIB, abs=0.006)
    if stage == "3":
        layer = max(sum(p.numel() for p in part.parameters(recurse=False)) for part in model.modules())
        _, gpu, _ = estimate_zero3_model_states_mem_needs(
            count, layer, num_gpus_per_node=8, num_nodes=ranks // 8, cpu_offload=False, cpu_offload_params=False
        )
        assert float(theirs) == pytest.approx(gpu / GIB, abs=0.006)


def batch() -> MoleculeBatch:
    picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    molecules = [random_molecule(size, seed=size, dtype=torch.float32) for size in (3, 5, 9, 4)]
    return batch_of(*(Molecule(m.atoms, m.bonds, m.xyz, picture) for m in molecules))


def test_a_shrunken_form_takes_a_step() -> None:
    torch.manual_seed(0)
    shrunken = ["model.gin.width=16", "model.comenet.hidden=16", "model.comenet.middle=8", "model.resnet.channels=32"]
    model = objective(
        "large", *shrunken, "model.projection=32", "model.code=16", "model.structure.neighbours=none", device="cpu"
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(batch(), NoNeighbours(), torch.Generator().manual_seed(0)).total.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])] == []
