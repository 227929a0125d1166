"""Rows of SMILES read beside the model: in their order, whatever is read by whom."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch

from mmsa_dist.embed import Embedder
from mmsa_dist.embed import reading as module
from mmsa_dist.embed.reading import options_of, read_ahead, readers_for
from mmsa_dist.runtime.threads import computing_threads
from mmsa_shards.from_smiles import ReadSmiles
from mmsa_shards.guard import free_guard
from mmsa_shards.options import SmilesOptions
from tests.fixtures.embedders import DRUGS, random_embedder

GIVEN = [*DRUGS[:3], "junk", *DRUGS[3:7], None, 5, *DRUGS[7:]]  # 14 rows


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


@pytest.fixture
def options(embedder: Embedder) -> SmilesOptions:
    inference = embedder.pretrained.inference
    return options_of(inference, standardize=True, embed_3d=False, depiction=False, inchikeys=False)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize(("batch_size", "batches"), [(2, 5), (4, 5), (9, 2), (14, 2), (100, 1)])
def test_rows_come_in_order_in_batches_of_whole_pieces(
    options: SmilesOptions, monkeypatch: pytest.MonkeyPatch, readers: int, batch_size: int, batches: int
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 3)
    read = list(read_ahead(GIVEN, options, batch_size=batch_size, readers=readers))
    assert len(read) == batches  # of a multiple of 3 rows, or what is left
    first, smiles, reasons = 0, {}, {}
    for of_batch in read:
        names = of_batch.block["smiles"].to_pylist()
        smiles |= {first + int(row): name for row, name in zip(of_batch.rows, names, strict=True)}
        reasons |= {first + row: why[0] for row, why in of_batch.refused.items()}
        first += len(of_batch.rows) + len(of_batch.refused)
    assert reasons == {3: "syntax", 8: "empty", 9: "not_text"}
    whole = next(iter(read_ahead(GIVEN, options, batch_size=100, readers=1)))
    assert smiles == dict(zip(whole.rows.tolist(), whole.block["smiles"].to_pylist(), strict=True))


def test_vectors_do_not_depend_on_who_reads(embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = embedder.transform(GIVEN)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 2)
    for readers in (1, 2):
        several = Embedder(embedder.pretrained, readers=readers)
        np.testing.assert_array_equal(several.transform(GIVEN), whole)
        assert [bad.row for bad in several.report_] == [3, 8, 9]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_vectors_do_not_depend_on_how_many_compute(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5)
    several = Embedder(embedder.pretrained, batch_size=2)
    with computing_threads(1):
        whole = several.transform(GIVEN)
    with computing_threads(threads):
        np.testing.assert_array_equal(several.transform(GIVEN), whole)
        assert [bad.row for bad in several.report_] == [3, 8, 9]
        assert torch.get_num_threads() == threads


def test_inchikeys_are_made_where_they_are_asked_for_or_are_seeds(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyed = []
    monkeypatch.setattr("mmsa_shards.from_smiles.smiles_to_block", lambda rows, options: keyed.append(options.keys))
    for conformers, of_embed in (("none", False), ("none", True), ("etkdg", False)):
        asked = Embedder(embedder.pretrained, conformers=conformers, inchikeys=of_embed)
        for use in (asked.transform, asked.embed):
            with pytest.raises(AttributeError):  # nothing is read
                use(DRUGS[:1])
    assert keyed == ["none", "none", "none", "wanted", "wanted", "wanted"]


def test_there_is_a_reader_for_each_core_that_no_gpu_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(4))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [readers_for(0, cpu), readers_for(0, gpu), readers_for(7, cpu)] == [4, 3, 7]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(1))
    assert [readers_for(0, cpu), readers_for(0, gpu)] == [1, 1]


def test_not_far_ahead_and_not_after_the_end(options: SmilesOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    read, begun = module._read, []
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1)

    def watched(rows: list[object], options: SmilesOptions) -> ReadSmiles:
        begun.append(rows)
        return read(rows, options)

    monkeypatch.setattr(module, "_read", watched)
    batches = read_ahead(GIVEN, options, batch_size=1, readers=2)
    next(batches)
    batches.close()
    assert len(begun) <= 3


def test_an_error_is_told_where_it_belongs(options: SmilesOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    read = module._read

    def failing(rows: list[object], options: SmilesOptions) -> ReadSmiles:
        if "junk" in rows:
            raise RuntimeError("the machine is on fire")
        return read(rows, options)

    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1)
    monkeypatch.setattr(module, "_read", failing)
    batches = read_ahead(GIVEN, options, batch_size=1, readers=2)
    assert [next(batches).rows.tolist() for _ in range(3)] == [[0], [0], [0]]
    with pytest.raises(RuntimeError, match="on fire"):
        next(batches)


def test_threads_have_guards_of_their_own_and_keep_them() -> None:
    both, guards = threading.Barrier(2), []

    def use() -> None:
        with free_guard() as guard:
            guards.append(guard)
            assert list(guard.map(abs, [-os.getpid()], seconds=5)) == [os.getpid()]
            both.wait()

    for _ in range(2):
        threads = [threading.Thread(target=use) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(guards) == 4
    assert len({id(guard) for guard in guards[:2]}) == 2
    assert {id(guard) for guard in guards[2:]} == {id(guard) for guard in guards[:2]}


def test_pictures_and_3d_are_made_only_where_an_encoder_looks(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(module, "_read", lambda rows, options: asked.append(options.columns))
    for view in ("gin", "resnet", "comenet", "unified", "structure"):
        with pytest.raises(AttributeError):
            Embedder(embedder.pretrained, view=view, conformers="etkdg").transform(DRUGS[:1])
    assert [(columns.conformers.mode, columns.depiction) for columns in asked] == [
        ("none", False), ("none", True), ("etkdg", False), ("etkdg", True), ("etkdg", True),
    ]  # fmt: skip
