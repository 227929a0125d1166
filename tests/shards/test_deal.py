"""What a shard is to hold: the same, merged at once or by parts of its interval, in memory that does not grow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mmsa_shards.build import Dealt, ShardPlan, deal
from mmsa_shards.catalog import AXIS, CATALOG_SCHEMA, position_of, read_interval

WHOLE = ShardPlan("train-00000", "train", 0, AXIS)


def write_chunk(path: Path, numbers: range) -> Path:
    """Writes a chunk of the catalogue: every molecule twice, every fourth with the stereoisomer of its skeleton."""
    rows = []
    for number in numbers:
        skeleton = f"{number // 2:014d}"
        key = f"{skeleton}-STEREO" if number % 8 == 7 else f"{skeleton}-FLAT"
        rows.append((position_of(key), key, "C" * (number % 50 + 1), f"m{number}", None, "input", "a.smi", number + 1))
    rows.sort(key=lambda row: row[0])
    columns = zip(*rows, strict=True)
    table = pa.table([pa.array(c, f.type) for c, f in zip(columns, CATALOG_SCHEMA, strict=True)], schema=CATALOG_SCHEMA)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, CATALOG_SCHEMA) as writer:
        writer.write_table(table)
    return path


def write_chunks(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    return [
        write_chunk(folder / f"{start:06d}.arrow", range(start, min(start + 2000, count)))
        for start in range(0, count, 2000)
    ]


def pieces(path: Path) -> Iterator[list[dict]]:
    file = pa.ipc.open_file(str(path))
    for number in range(file.num_record_batches):
        yield file.get_batch(number).to_pylist()


def test_parts_of_an_interval_are_the_interval(tmp_path):
    chunks = write_chunks(tmp_path / "chunks", 5000)
    start, end = AXIS // 4, AXIS // 4 * 3
    ((first, last, whole),) = read_interval(chunks, start, end, 10_000)
    parts = list(read_interval(chunks, start, end, 300))
    assert (first, last) == (start, end) == (parts[0][0], parts[-1][1])
    assert len(parts) == -(-len(whole) // 300)
    for (first, last, part), (following, _, _) in zip(parts, [*parts[1:], (end, 0, 0)], strict=True):
        assert last == following
        positions = part["position"].to_numpy()
        assert ((positions >= np.uint64(first)) & (positions <= np.uint64(last - 1))).all()
    together = pa.concat_tables(part for _, _, part in parts)
    assert together.sort_by("number").equals(whole.sort_by("number"))
    assert list(read_interval(chunks, start, start, 300)) == []
    assert len(list(read_interval(chunks, start, end, 300, beside=3000))) == -(-(len(whole) + 3000) // 300)


def test_an_interval_merged_by_parts_is_what_it_is_at_once(options, tmp_path, monkeypatch):
    chunks = write_chunks(tmp_path / "chunks", 5000)
    found = {}
    for together in (100, 100_000):
        monkeypatch.setattr("mmsa_shards.build._RECORDS_PER_MERGE", together)
        path = tmp_path / f"{together}.arrow"
        deal(path, chunks, WHOLE, None, str(tmp_path), 64, options)
        made = list(pieces(path))
        assert {len(piece) for piece in made[:-1]} == {64}
        rows = sorted((row for piece in made for row in piece), key=lambda row: row["inchikey"])
        found[together] = (rows, Dealt.load(path))
    assert found[100] == found[100_000]
    assert found[100][1] == Dealt(molecules=3125, duplicates=1875, joined=0, untouched=False)


def test_memory_does_not_grow_with_the_interval(options, tmp_path):
    def peak(count: int) -> int:
        chunks = write_chunks(tmp_path / str(count), count)
        tracemalloc.start()
        deal(tmp_path / f"{count}.arrow", chunks, WHOLE, None, str(tmp_path), 4096, options)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)  # whatever is made at first use
    assert peak(80_000) < 1.3 * peak(32_768)


def test_records_that_are_not_being_merged_take_no_memory(tmp_path):
    chunks = write_chunks(tmp_path / "chunks", 20_000)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in read_interval(chunks, 0, AXIS, 1 << 12)]
    assert len(held) == 5
    assert max(held) < 1000, "bytes"


def test_files_of_many_chunks_do_not_stay_open(tmp_path, monkeypatch):
    """Linux maps 65,530 files for a process, and there may be more chunks."""
    monkeypatch.setattr("mmsa_shards.catalog._MOST_MAPPED", 39)
    chunks = [write_chunk(tmp_path / f"{number:06d}.arrow", range(number, number + 1)) for number in range(40)]

    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count(str(tmp_path))

    parts = []
    for part in read_interval(chunks, 0, AXIS, 10):
        parts.append(part)
        assert mapped() <= 1, "the last may still be at hand"
    assert (len(parts), sum(len(table) for _, _, table in parts)) == (4, 40)


@pytest.mark.parametrize("records", [0, 1])
def test_an_interval_with_nothing_new_is_untouched(options, tmp_path, records):
    chunks = [write_chunk(tmp_path / "a.arrow", range(records))] if records else []
    deal(tmp_path / "deal.arrow", chunks, WHOLE, None, str(tmp_path), 64, options)
    assert Dealt.load(tmp_path / "deal.arrow") == Dealt(records, 0, 0, untouched=not records)
