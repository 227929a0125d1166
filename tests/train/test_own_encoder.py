"""An encoder of one's own, in one file, gets what it declares to read: in training and in embedding."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmsa_dist.config.load import load_config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, Loader
from mmsa_dist.embed import Embedder
from mmsa_dist.encoders import ENCODERS, Encoder, register
from mmsa_dist.train.loop import loader_options, neighbours_for, objective_for
from mmsa_dist.train.preconditions import refuse_what_cannot_learn
from tests.fixtures.embedders import DRUGS

MINI = Path(__file__).parents[1] / "fixtures" / "mini.yaml"


class Colour(Encoder):
    """Sees the mean colour of a picture."""

    reads = frozenset({"picture"})

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(3, width)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        picture_B3HW = batch.picture_B3HW
        if picture_B3HW is None:
            picture_B3HW = torch.full((len(batch), 3, 1, 1), 255, dtype=torch.uint8, device=batch.device)
        return self.layer(255 - picture_B3HW.float().mean(dim=(2, 3)))

    def present(self, batch: MoleculeBatch) -> Tensor:
        return batch.has_picture_B


class Extent(Encoder):
    """Sees how far the atoms of a conformer lie from its first."""

    reads = frozenset({"coordinates"})

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.layer = nn.Linear(1, width)

    def forward(self, batch: MoleculeBatch) -> Tensor:
        distance_A = batch.xyz_A3.nan_to_num().norm(dim=1)
        return self.layer(distance_A.new_zeros(len(batch)).index_add(0, batch.molecule_of_atom_A, distance_A)[:, None])

    def present(self, batch: MoleculeBatch) -> Tensor:
        return batch.has_xyz_B


@pytest.fixture(params=[Colour, Extent])
def encoder(request: pytest.FixtureRequest) -> Iterator[type[Encoder]]:
    """An encoder that is registered under ``mine``."""
    yield register("mine")(request.param)
    del ENCODERS["mine"]


def test_it_learns_and_embeds(encoder: type[Encoder], tiny_shards: Path, tmp_path: Path) -> None:
    config = load_config(MINI, ["model.encoders=[gin,mine]", "model.custom.mine.width=6", "train.lr_scale={}"])
    reader = BlockReader(str(tiny_shards), "train")
    objective = objective_for(config, reader)
    refuse_what_cannot_learn(objective.model, config, reader)
    neighbours = neighbours_for(config, reader, torch.device("cpu"))
    batch = next(Loader(reader, loader_options(config)))
    output = objective(batch, neighbours, torch.Generator().manual_seed(0))
    output.total.backward()
    weight = objective.model.encoder("mine").layer.weight
    assert output.model.fusion.present["mine"].any()
    assert weight.grad.abs().sum() > 0

    Embedder.from_model(objective.model, config, None).save_pretrained(tmp_path / "model")
    words = {Colour: "2D graph (GIN), picture (Colour)", Extent: "2D graph (GIN), 3D geometry (Extent)"}
    assert words[encoder] in (tmp_path / "model" / "README.md").read_text()
    embedder = Embedder.from_pretrained(tmp_path / "model", view="mine")
    makes, leaves_out, said = {
        Colour: ({}, {"pictures": False}, r"view='mine' reads pictures; pass pictures=True"),
        Extent: ({"conformers": "etkdg"}, {}, r"view='mine' reads conformers; pass conformers='etkdg'"),
    }[encoder]
    assert np.isfinite(embedder.set_params(**makes).transform(DRUGS)).all()
    with pytest.raises(ValueError, match=said):
        Embedder.from_pretrained(tmp_path / "model", view="mine", **leaves_out).transform(DRUGS)


@pytest.mark.parametrize("reads", [None, frozenset(), {"image"}, "picture", ["picture"]])
def test_an_encoder_that_does_not_say_what_it_reads_is_refused(reads: object) -> None:
    class Silent(Colour):
        pass

    Silent.reads = reads
    with pytest.raises(ValueError, match=r"'silent' must declare what it reads: .*Silent\.reads is .*frozenset"):
        register("silent")(Silent)
    assert "silent" not in ENCODERS


def test_one_without_a_declaration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads is None; make it a set of graph, coordinates, picture"):
        register("bare")(Encoder)
