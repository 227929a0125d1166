"""The model as a whole: what it gives, what may not leak, and that its losses teach."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, validation_batches
from mmsa_dist.losses.descriptor import descriptor_scale
from mmsa_dist.model import MMSAModel
from mmsa_dist.objective import Objective
from mmsa_dist.structure.sources import BatchNeighbours, NoNeighbours
from tests.fixtures.batches import batch_of, random_molecule

MINI = Path(__file__).parent / "fixtures" / "mini.yaml"


def configuration(*words: str) -> Config:
    return load_config(MINI, list(words))


@pytest.fixture
def batch(tiny_shards: Path) -> MoleculeBatch:
    """16 molecules, the four of one block without 3D."""
    return next(iter(validation_batches(BlockReader(str(tiny_shards), "train"), batch_size=16, picture_size=32)))


@pytest.fixture
def model() -> MMSAModel:
    torch.manual_seed(0)
    return MMSAModel(configuration().model).eval()


def test_shapes_and_masks(model: MMSAModel, batch: MoleculeBatch) -> None:
    output = model(batch, BatchNeighbours(4))
    assert {name: tuple(code.shape) for name, code in output.fusion.codes.items()} == {
        "gin": (16, 32),
        "comenet": (16, 32),
        "resnet": (16, 32),
    }
    assert output.fusion.unified_BC.shape == (16, 32)
    assert output.structure.g_BD.shape == output.structure.readout_BD.shape == (16, 16)
    assert output.structure.lse_B.shape == (16,)
    assert (~output.fusion.present["comenet"]).sum() == 4
    assert torch.isfinite(output.structure.g_BD).all()


def test_u_is_the_mean_of_the_codes_that_are_there(model: MMSAModel, batch: MoleculeBatch) -> None:
    fusion = model.fuse(batch)
    for i in range(len(batch)):
        there = [fusion.codes[name][i] for name in fusion.codes if fusion.present[name][i]]
        torch.testing.assert_close(fusion.unified_BC[i], torch.stack(there).mean(dim=0))


def test_an_embedded_vector_does_not_depend_on_the_batch(
    model: MMSAModel, batch: MoleculeBatch, tiny_shards: Path
) -> None:
    reference = model.reference(torch.randn(30, 32))
    alone = validation_batches(BlockReader(str(tiny_shards), "train"), batch_size=1, picture_size=32)
    ones = list(islice(alone, len(batch)))
    for view in ("structure", "unified", "gin", "comenet", "resnet"):
        rows, seen = model.embed(batch, view, reference)
        assert (~seen).sum() == (4 if view == "comenet" else 0)
        singly = [torch.cat(parts) for parts in zip(*(model.embed(one, view, reference) for one in ones), strict=True)]
        torch.testing.assert_close([rows, seen], singly, rtol=1e-5, atol=1e-6)


def test_embedding_gives_what_training_sees(model: MMSAModel, batch: MoleculeBatch) -> None:
    fusion = model.fuse(batch)
    expected = {"unified": fusion.unified_BC, **fusion.codes}
    for view, rows in expected.items():
        assert torch.equal(model.embed(batch, view, NoNeighbours())[0], rows)


@pytest.mark.parametrize("view", ["gin", "comenet", "resnet"])
def test_the_code_of_an_encoder_takes_no_other(model: MMSAModel, batch: MoleculeBatch, view: str) -> None:
    called = []
    for name, encoder in model.encoders.items():
        encoder.register_forward_hook(lambda *_, name=name: called.append(name))
    model.embed(batch, view, NoNeighbours())
    assert called == [view]


def test_embedding_in_training_mode_is_refused(model: MMSAModel, batch: MoleculeBatch) -> None:
    with pytest.raises(ValueError, match="eval mode"):
        model.train().embed(batch, "unified", NoNeighbours())


@pytest.mark.parametrize("words", [(), ("loss.atom=1.0",), ("loss.memory=0.0", "loss.reconstruct=0.0")])
def test_a_few_steps_on_one_batch_lower_the_loss(batch: MoleculeBatch, words: tuple[str, ...]) -> None:
    config = configuration(*words)
    torch.manual_seed(0)
    objective = Objective(MMSAModel(config.model), config.loss)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    totals = []
    for step in range(12):
        output = objective(batch, BatchNeighbours(4), torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        output.total.backward()
        optimizer.step()
        totals.append(output.total.item())
    assert totals[-1] < 0.8 * totals[0]
    expected = {"contrast", "reconstruct", "memory", "atom"}
    expected -= {"atom"} if not config.loss.atom else set()
    expected -= {"memory", "reconstruct"} if not config.loss.memory else set()
    assert set(output.losses) == expected


def test_twenty_steps_with_the_kernels_are_those_with_the_reference(
    tiny_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    from mmsa_kernels.hyperedge_memory import triton_op

    kernels, calls = triton_op.hyperedge_memory_attention_triton, []
    monkeypatch.setattr(
        triton_op, "hyperedge_memory_attention_triton", lambda *inputs: calls.append(1) or kernels(*inputs)
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # A random ResNet on pictures this small turns a change of 1e-7 into one of 1e-2 within ten steps, whatever runs the
    # structure layer; and Adam's first steps are as long for a gradient that is nothing but rounding.
    config = configuration("model.encoders=[gin,comenet]")
    batches = list(validation_batches(BlockReader(str(tiny_shards), "train"), batch_size=16, picture_size=32))
    losses: dict[str, list[dict[str, torch.Tensor]]] = {}
    for backend in ("reference", "triton"):
        monkeypatch.setenv("MMSA_KERNELS", backend)
        torch.manual_seed(0)
        objective = Objective(MMSAModel(config.model), config.loss).to(device)
        optimizer = torch.optim.SGD(objective.parameters(), lr=1e-3)
        losses[backend] = []
        for step in range(20):
            batch = batches[step % len(batches)].to(torch.device(device))
            output = objective(batch, BatchNeighbours(4), torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            output.total.backward()
            optimizer.step()
            losses[backend].append(output.losses)
    assert len(calls) == 20
    # The tolerances of kernels/README.md for float32.
    torch.testing.assert_close(losses["triton"], losses["reference"], rtol=1e-5, atol=1e-5)


def test_every_parameter_learns(batch: MoleculeBatch) -> None:
    config = configuration("loss.atom=1.0", "loss.fingerprint=1.0")
    objective = Objective(MMSAModel(config.model), config.loss)
    objective(batch, NoNeighbours(), torch.Generator().manual_seed(0)).total.backward()
    idle = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A bias before a batch norm moves nothing; what has no gradient at all would be a part that is not wired.
    assert [name for name in idle if "mlp" not in name] == []


def test_molecules_without_any_modality_change_nothing() -> None:
    config = configuration("model.encoders=[comenet]", "train.lr_scale={}", "loss.fingerprint=1.0")
    some = [random_molecule(6 + number % 5, number, torch.float32) for number in range(8)]
    others = [replace(random_molecule(7, 20 + number, torch.float32), xyz=None) for number in range(8)]
    losses, gradients = [], []
    for molecules in (some, some + others):
        torch.manual_seed(0)
        objective = Objective(MMSAModel(config.model), config.loss)
        output = objective(batch_of(*molecules), BatchNeighbours(4), torch.Generator().manual_seed(0))
        output.total.backward()
        losses.append(output.losses)
        gradients.append({name: p.grad for name, p in objective.named_parameters() if p.grad is not None})
    assert losses[0]["memory"] > 0
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_the_total_is_the_weighted_sum(batch: MoleculeBatch) -> None:
    config = configuration(
        "loss.contrast=2.0", "loss.reconstruct=3.0", "loss.memory=0.5", "loss.atom=0.25", "loss.fingerprint=4.0"
    )
    output = Objective(MMSAModel(config.model), config.loss)(batch, NoNeighbours(), torch.Generator().manual_seed(0))
    losses = output.losses
    expected = 2 * losses["contrast"] + 3 * losses["reconstruct"] + 0.5 * losses["memory"]
    expected += 0.25 * losses["atom"] + 4 * losses["fingerprint"]
    torch.testing.assert_close(output.total.detach(), expected)


def test_descriptors_are_a_loss_where_shards_have_them(batch: MoleculeBatch) -> None:
    config = configuration("loss.descriptor=2.0", "loss.contrast=0.0", "loss.reconstruct=0.0", "loss.memory=0.0")
    model = MMSAModel(config.model)
    with pytest.raises(ValueError, match=r"needs shards with descriptors; prepare them with prepare\.descriptors=true"):
        Objective(model, config.loss)
    with pytest.raises(ValueError, match="needs shards with descriptors"):
        Objective(model, config.loss, descriptor_scale(torch.empty(5, 0)))
    described = replace(batch, descriptors_BF=torch.randn(len(batch), 3))
    objective = Objective(model, config.loss, descriptor_scale(described.descriptors_BF))
    output = objective(described, NoNeighbours(), torch.Generator().manual_seed(0))
    torch.testing.assert_close(output.total.detach(), 2 * output.losses["descriptor"])
    output.total.backward()
    for head in (objective.terms.descriptor.of_u.head, objective.terms.descriptor.of_g.head):
        assert head.weight.grad is not None
        assert head.weight.grad.abs().sum() > 0


def test_batch_norm_learns_nothing_from_masked_molecules(batch: MoleculeBatch) -> None:
    """Inference sees no masks: with their statistics mixed in, held-out molecules would be found less and less."""
    statistics = []
    for weight in (0.0, 1.0):
        config = configuration(f"loss.atom={weight}", "model.gin.dropout=0")
        torch.manual_seed(0)
        model = MMSAModel(config.model)
        Objective(model, config.loss)(batch, NoNeighbours(), torch.Generator().manual_seed(0))
        statistics.append({name: buffer.clone() for name, buffer in model.encoder("gin").named_buffers()})
    assert any(name.endswith("running_mean") and buffer.any() for name, buffer in statistics[0].items())
    for name, buffer in statistics[0].items():
        assert torch.equal(buffer, statistics[1][name]), name
