"""The size of a batch by what memory holds; on a machine without a GPU, of one that is made up."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone

from mmsa_dist.embed import Embedder
from mmsa_dist.embed.memory import LARGEST, ON_CPU, fitting_batch_size
from mmsa_dist.runtime.threads import computing_threads
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.options import SmilesOptions
from tests.fixtures.embedders import DRUGS, random_embedder
from tests.fixtures.standardization import DEFAULT

GIB = 1 << 30


@pytest.fixture(scope="module")
def block() -> pa.RecordBatch:
    return smiles_to_block(DRUGS, SmilesOptions(standardization=DEFAULT)).block


def test_on_a_cpu_nothing_is_measured() -> None:
    assert fitting_batch_size(torch.device("cpu"), lambda block: pytest.fail("measured")) == ON_CPU == 128
    assert random_embedder(batch_size="auto", device="cpu").batch_size_ == 128


@pytest.mark.parametrize(
    ("free", "a_molecule", "expected"),
    [
        (8 * GIB, 8 << 20, 512),  # half of 8 GiB holds 512
        (8 * GIB, (8 << 20) + 1, 256),
        (80 * GIB, 1 << 20, LARGEST),
        (GIB, GIB, 1),
    ],
)
def test_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch, free: int, a_molecule: int, expected: int) -> None:
    computed: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * GIB + computed[-1] * a_molecule)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert fitting_batch_size(torch.device("cuda"), lambda block: computed.append(block.num_rows)) == expected
    assert computed == [64, 64]


def test_what_is_measured_is_seen_by_every_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    embedder = random_embedder(conformers="given")

    def compute(device: torch.device, infer: object) -> int:
        from mmsa_dist.embed.memory import _sample

        vectors, present = embedder._infer(_sample())
        seen.append((np.isfinite(vectors).all(), present.all()))
        return 7

    monkeypatch.setattr("mmsa_dist.embed.embedder.fitting_batch_size", compute)
    for view in ("structure", "gin", "comenet", "resnet"):
        embedder.set_params(view=view, batch_size="auto")
        assert (embedder.batch_size_, embedder.batch_size_) == (7, 7)
    assert seen == [(True, True)] * 4, "once for each"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")])
def test_a_batch_that_does_not_fit_is_halved(
    block: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    embedder = random_embedder(batch_size=64)
    whole, _ = embedder.embed_block(block)
    infer, sizes = Embedder._infer, []

    def narrow(self: Embedder, block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        sizes.append(block.num_rows)
        if block.num_rows > 5:
            raise error
        return infer(self, block)

    monkeypatch.setattr(Embedder, "_infer", narrow)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)  # batches one after the other, as on a GPU
    told = []
    vectors, without = embedder.embed_block(block, progress=told.append)
    np.testing.assert_allclose(vectors, whole, atol=1e-6, rtol=0)
    assert without == {}
    assert sizes == [11, 11, 11, 8, 4, 4, 3]
    assert told == [4, 8, 11]
    sizes.clear()
    np.testing.assert_array_equal(embedder.transform(DRUGS), vectors)
    assert sizes == [4, 4, 3], "it is not tried again"
    assert clone(embedder).batch_size_ == 64


def test_batches_side_by_side_that_do_not_fit_are_halved(
    block: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder, infer = random_embedder(batch_size=8), Embedder._infer
    whole, _ = random_embedder(batch_size=2).embed_block(block)

    def narrow(self: Embedder, block: pa.RecordBatch) -> tuple[np.ndarray, np.ndarray]:
        if block.num_rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        return infer(self, block)

    monkeypatch.setattr(Embedder, "_infer", narrow)
    with computing_threads(3):
        vectors, without = embedder.embed_block(block)
    np.testing.assert_array_equal(vectors, whole)
    assert without == {}
    assert embedder.batch_size_ == 2


def test_one_molecule_that_does_not_fit_is_said(block: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Embedder, block: pa.RecordBatch) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Embedder, "_infer", full)
    with pytest.raises(torch.OutOfMemoryError):
        random_embedder().embed_block(block)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_of_the_chosen_size_fits() -> None:
    embedder = random_embedder(batch_size="auto", device="cuda")
    assert 1 <= embedder.batch_size_ <= LARGEST
    chosen = embedder.transform(DRUGS * (embedder.batch_size_ // len(DRUGS) + 1))
    np.testing.assert_allclose(chosen[: len(DRUGS)], random_embedder(device="cpu").transform(DRUGS), atol=1e-4, rtol=0)
