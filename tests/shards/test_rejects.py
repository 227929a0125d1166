"""The ledger of refusals: its order, and that writing it holds few of them at a time."""

from __future__ import annotations

import random
import sqlite3
import tracemalloc
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmsa_shards.read import Place, Refused
from mmsa_shards.rejects import (
    REJECTS_NAME,
    read_refused,
    read_rejects,
    rejects_table,
    stored_rejects,
    write_refused,
    write_rejects,
)


def refusal(number: int, file: str = "a.smi") -> Refused:
    return Refused(f"m{number}", Place(file, number), "syntax" if number % 3 else "valence", f"cannot parse {number}")


def write(folder: Path, count: int, size: int) -> list[Path]:
    """Writes refusals beside chunks of so many records each."""
    chunks = [folder / f"{start:08d}.arrow" for start in range(0, count, size)]
    for start, chunk in zip(range(0, count, size), chunks, strict=True):
        write_refused(chunk, map(refusal, range(start, min(start + size, count))))
    return chunks


def test_the_order_is_that_of_files_and_numbers_wherever_refusals_come_from(tmp_path):
    refused = [refusal(number, file) for file in ("a.smi", "é.sdf", "b/a.smi") for number in range(1, 40)]
    refused.append(Refused("twin", Place("a.smi", 7), "empty", "holds\0a zero and a surrogate pair \U0001f600"))
    shuffled = random.Random(0).sample([*refused, refused[5]], len(refused) + 1)
    parts = [rejects_table(shuffled[start : start + 25]).to_batches()[0] for start in range(0, len(shuffled), 25)]
    reasons = write_rejects(tmp_path / REJECTS_NAME, parts)
    expected = sorted([*refused, refused[5]], key=lambda r: (r.place, r.id))
    assert read_rejects(tmp_path).equals(rejects_table(expected))
    assert pa.Table.from_batches(stored_rejects(tmp_path)).equals(rejects_table(expected))
    assert reasons == Counter(r.reason for r in expected)
    assert [path.name for path in (tmp_path / REJECTS_NAME).parent.iterdir()] == [Path(REJECTS_NAME).name]
    write_rejects(tmp_path / "again" / "a.parquet", reversed(parts))
    assert (tmp_path / "again" / "a.parquet").read_bytes() == (tmp_path / REJECTS_NAME).read_bytes()


def test_no_refusals_are_a_ledger_too(tmp_path):
    assert write_rejects(tmp_path / REJECTS_NAME, ()) == Counter()
    assert read_rejects(tmp_path).equals(rejects_table([]))
    assert [*stored_rejects(tmp_path)] == []


def test_a_ledger_that_cannot_be_written_leaves_the_one_before(tmp_path):
    write_rejects(tmp_path / REJECTS_NAME, rejects_table([refusal(1)]).to_batches())

    def broken():
        yield from rejects_table([refusal(2)]).to_batches()
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_rejects(tmp_path / REJECTS_NAME, broken())
    assert read_rejects(tmp_path).equals(rejects_table([refusal(1)]))
    assert len(list((tmp_path / "rejects").iterdir())) == 1


def test_memory_does_not_grow_with_the_refusals(tmp_path):
    def peak(count: int) -> int:
        """Bytes that Python and Arrow hold at most; what is mapped from disk does not count."""
        folder = tmp_path / str(count)
        folder.mkdir()
        chunks = write(folder, count, 5000)
        held = pa.total_allocated_bytes()
        arrow = 0

        def watched():
            nonlocal arrow
            for batch in read_refused(chunks):
                yield batch
                arrow = max(arrow, pa.total_allocated_bytes() - held)

        tracemalloc.start()
        reasons = write_rejects(folder / REJECTS_NAME, watched())
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert reasons.total() == pq.read_metadata(folder / REJECTS_NAME).num_rows == count
        return python + arrow

    peak(1000)  # whatever is made at first use
    assert peak(160_000) < 1.3 * peak(40_000)


def test_a_disk_that_is_full_is_said_as_one(tmp_path, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite3, "connect", full)
    with pytest.raises(OSError, match=r"cannot sort the refused records in .*disk is full"):
        write_rejects(tmp_path / "rejects" / "part.parquet", [rejects_table([refusal(1)]).to_batches()[0]])
    assert list((tmp_path / "rejects").iterdir()) == []
