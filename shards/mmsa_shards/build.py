"""Second stage: intervals of the catalogue -> shards. Three steps, each of which writes its files atomically.

*Deal* collects the records of a shard's interval and the molecules already in the shard, and merges duplicates.
*Build* computes the columns of the new molecules, one piece at a time, and takes most of the time; pieces are small
enough to keep all workers busy to the end, whatever the sizes of shards and blocks. *Pack* puts everything into its
final order and writes the shard.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Molecule, conformer_from_bytes, decode_block, encode_block, molecules_to_block
from mmsa_shards.catalog import AXIS, end_of_val, position_of, read_interval
from mmsa_shards.manifest import ShardEntry, Split
from mmsa_shards.merge import Entry, merge
from mmsa_shards.molecule import Order, coordinates_fit, make_molecules
from mmsa_shards.options import Columns, PrepareOptions
from mmsa_shards.read import Place, Refused
from mmsa_shards.rejects import write_refused
from mmsa_shards.schema import BLOCK_SCHEMA
from mmsa_shards.shard import read_block, write_shard
from mmsa_shards.standardize import Refusal

# A piece is about a thousandth of the job, within these bounds.
_PIECES = 1024
_SMALLEST_PIECE, _LARGEST_PIECE = 32, 4096

# A piece reports its progress after this many molecules.
_MOLECULES_PER_REPORT = 128

# Records merged at a time, at about 2 kB each, so that memory does not grow with the shard.
_RECORDS_PER_MERGE = 1 << 14


@dataclass(frozen=True)
class ShardPlan:
    """A planned shard: an interval of the axis of `mmsa_shards.catalog`."""

    stem: str
    split: Split
    start: int
    end: int


@dataclass(frozen=True)
class Dealt:
    """Counts that `deal` wrote."""

    molecules: int
    """Molecules of the future shard, including those that will turn out to be refused."""
    duplicates: int
    joined: int
    untouched: bool
    """Whether there are no new records, so that the shard stays as it is."""

    @classmethod
    def load(cls, deal_path: Path) -> Dealt:
        """Reads the counts that `deal` wrote beside `deal_path`."""
        return cls(**json.loads(deal_path.with_suffix(".json").read_bytes()))


@dataclass(frozen=True)
class ShardDone:
    """The outcome of a `ShardPlan`."""

    entry: ShardEntry | None
    """None if the interval holds no molecule."""
    duplicates: int
    joined: int
    conformer_sources: dict[str, int]
    """Growth of each source, in molecules."""

    def save(self, path: Path) -> None:
        """Writes the record of a shard atomically."""
        with write_atomically(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> ShardDone:
        """Reads a record that `save` wrote."""
        data = json.loads(path.read_bytes())
        return cls(**{**data, "entry": data["entry"] and ShardEntry.from_json(data["entry"])})


# Molecules to build, and rows of the existing shard that stay.
_MAKE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        pa.field("xyz", pa.list_(pa.binary()), nullable=False),
        pa.field("xyz_smiles", pa.string(), nullable=False),
        pa.field("conformer_source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
    ]
)
_STAY_SCHEMA = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("id", pa.string(), nullable=False)])


def plan_shards(intervals: Mapping[Split, int], options: PrepareOptions) -> list[ShardPlan]:
    """Divides the axis into shards.

    Args:
        intervals: number of shards of each split.
        options: `val_fraction` is used.
    """
    border = end_of_val(options.val_fraction)
    return [*_cut("val", 0, border, intervals["val"]), *_cut("train", border, AXIS, intervals["train"])]


def count_intervals(
    num_train: int, num_val: int, before: Mapping[Split, int], options: PrepareOptions
) -> dict[Split, int]:
    """Returns the number of shards of each split.

    Args:
        num_train: records, including duplicates, in the training interval.
        num_val: likewise in the validation interval.
        before: number of existing shards of each split, which is kept.
        options: `shards` and `molecules_per_shard` are used.
    """
    wanted = {
        name: -(-count // options.molecules_per_shard) for name, count in (("val", num_val), ("train", num_train))
    }
    return {
        "val": before.get("val") or wanted["val"],
        "train": before.get("train") or options.shards or wanted["train"],
    }


def piece_size(num_records: int) -> int:
    """Returns the number of molecules per piece for a number of records, independent of the number of workers."""
    return min(_LARGEST_PIECE, max(_SMALLEST_PIECE, num_records // _PIECES))


def deal(
    path: Path,
    chunks: Sequence[Path],
    plan: ShardPlan,
    held: ShardEntry | None,
    folder: str,
    size: int,
    options: PrepareOptions,
) -> None:
    """Decides which molecules a shard will hold.

    Writes the rows that stay with the suffix ``.stay`` and counts with ``.json``, then the molecules to build, one
    record batch per piece.

    Args:
        path: file to write.
        chunks: files of the catalogue.
        plan: the interval.
        held: the existing shard; None if there is none.
        folder: folder of the shards.
        size: molecules in a piece.
        options: `conformers_per_molecule` is used.
    """
    shard: _ExistingShard | None = None
    counts = Counter(duplicates=0, joined=0, molecules=0)
    waiting: list[Entry] = []
    with (
        write_atomically(path) as make_file,
        write_atomically(path.with_suffix(".stay")) as stay_file,
        pa.ipc.new_file(make_file, _MAKE_SCHEMA) as make,
        pa.ipc.new_file(stay_file, _STAY_SCHEMA) as stay,
    ):
        beside = held.molecules if held is not None else 0
        parts = read_interval(chunks, plan.start, plan.end, _RECORDS_PER_MERGE, beside)
        untouched = True
        for start, end, new in parts:
            if untouched and held is not None:
                shard = _ExistingShard(folder, held)
            untouched = False
            entries = [*map(_entry_of_record, new.to_pylist()), *(shard.entries(start, end) if shard else ())]
            merged = merge(entries, options.conformers_per_molecule, coordinates_fit)
            molecules = len(merged.stay) + len(merged.make)
            counts.update(duplicates=merged.duplicates, joined=merged.joined, molecules=molecules)
            rows = [{"row": entry.row, "id": entry.id} for entry in merged.stay]
            stay.write_batch(pa.RecordBatch.from_pylist(rows, schema=_STAY_SCHEMA))
            waiting += merged.make
            while len(waiting) >= size:
                make.write_batch(_piece(waiting[:size]))
                del waiting[:size]
        if waiting:
            make.write_batch(_piece(waiting))
        if untouched:
            counts["molecules"] = beside
        with write_atomically(path.with_suffix(".json")) as file:
            file.write(json.dumps({**counts, "untouched": untouched}).encode())


def _piece(entries: Sequence[Entry]) -> pa.RecordBatch:
    rows = [{name: getattr(entry, name) for name in _MAKE_SCHEMA.names} for entry in entries]
    return pa.RecordBatch.from_pylist(rows, schema=_MAKE_SCHEMA)


def piece_sizes(deal_path: Path) -> list[int]:
    """Returns the number of molecules in every piece that `deal` wrote."""
    dealt = _open(deal_path)
    return [dealt.get_batch(number).num_rows for number in range(dealt.num_record_batches)]


def build_piece(
    path: Path, deal_path: Path, number: int, options: PrepareOptions, making: Path | None = None
) -> tuple[int, int, str]:
    """Builds the molecules of one piece and writes them as a block, with the refusals beside it.

    Args:
        path: file to write; refusals are written to the same name with ``.rejects``.
        deal_path: file that `deal` wrote.
        number: number of the piece.
        options: those of conformers and `descriptors` are used.
        making: file that holds the number of molecules processed so far while this runs; see `how_many_made`.

    Returns:
        Number of molecules built, number refused, and, if RDKit had to embed in place of nvMolKit, why.
    """
    rows = [Entry(**{**row, "xyz": tuple(row["xyz"])}) for row in _open(deal_path).get_batch(number).to_pylist()]
    orders = [_order(row) for row in rows]
    columns = Columns.from_options(options)
    # On a GPU, results may depend on the batch; everything else is computed molecule by molecule.
    step = len(orders) if columns.conformers.backend == "nvmolkit" else _MOLECULES_PER_REPORT
    told: list[str] = []
    made: list[Molecule | Refusal] = []
    for start in range(0, len(orders), max(1, step)):
        made += make_molecules(orders[start : start + step], columns, tell=told.append)
        if making is not None:
            making.write_text(str(len(made)))
    refused = [
        Refused(row.id, Place(row.file, row.number), result.reason, result.message)
        for row, result in zip(rows, made, strict=True)
        if not isinstance(result, Molecule)
    ]
    block = molecules_to_block([result for result in made if isinstance(result, Molecule)])
    write_refused(path, refused)
    with write_atomically(path) as file:
        file.write(encode_block(block, "none"))
    if making is not None:
        making.unlink(missing_ok=True)
    return block.num_rows, len(refused), " ".join(told)


def how_many_made(making: Path) -> int:
    """Reads the progress of a piece that is being built; 0 if the file is not there yet, or no longer."""
    try:
        return int(making.read_text() or 0)
    except FileNotFoundError:
        return 0


def pack(
    record: Path,
    deal_path: Path,
    pieces: Sequence[Path],
    plan: ShardPlan,
    held: ShardEntry | None,
    folder: str,
    options: PrepareOptions,
) -> ShardDone:
    """Writes a shard, then its `record` beside it, which marks it as done.

    Args:
        record: file for the returned record, written last.
        deal_path: file that `deal` wrote.
        pieces: files that `build_piece` wrote.
        plan: the interval.
        held: the existing shard; None if there is none.
        folder: folder of the shards.
        options: `molecules_per_block`, `compression` and `seed` are used.
    """
    dealt = Dealt.load(deal_path)
    if dealt.untouched:
        done = ShardDone(held, 0, 0, {})
    else:
        parts = [decode_block(path.read_bytes()) for path in pieces]
        sources = Counter[str]()
        if held is not None:
            before = _molecules_of_shard(folder, held)
            sources.subtract(before["conformer_source"].to_pylist())
            parts += _staying(before, _open(deal_path.with_suffix(".stay")).read_all())
        table = pa.Table.from_batches(parts, BLOCK_SCHEMA)
        sources.update(table["conformer_source"].to_pylist())
        blocks = _blocks(table, options)
        name = f"{plan.stem}.tar"
        entry = write_shard(record.parent, name, plan.split, blocks, options.compression) if len(table) else None
        done = ShardDone(entry, dealt.duplicates, dealt.joined, dict(sources))
    done.save(record)
    return done


def _cut(split: Split, start: int, end: int, count: int) -> Iterator[ShardPlan]:
    for number in range(count):
        first, last = (start + (end - start) * n // count for n in (number, number + 1))
        yield ShardPlan(f"{split}-{number:05d}", split, first, last)


def _blocks(table: pa.Table, options: PrepareOptions) -> Iterator[pa.RecordBatch]:
    """Yields blocks of molecules in their final order: pseudo-random, determined by the seed."""
    keys = [
        hashlib.blake2b(f"{options.seed}:{inchikey}".encode(), digest_size=16).digest()
        for inchikey in table["inchikey"].to_pylist()
    ]
    order = np.asarray(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)
    whole = table.combine_chunks()
    for start in range(0, len(order), options.molecules_per_block):
        yield _one_batch(whole.take(order[start : start + options.molecules_per_block]))


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays(column.chunks) for column in table.itercolumns()], schema=BLOCK_SCHEMA
    )


def _staying(before: pa.Table, stay: pa.Table) -> list[pa.RecordBatch]:
    table = before.take(stay["row"])
    table = table.set_column(0, BLOCK_SCHEMA.field("id"), stay["id"])
    return [_one_batch(table)] if len(table) else []


def _molecules_of_shard(folder: str, shard: ShardEntry, columns: Sequence[str] = BLOCK_SCHEMA.names) -> pa.Table:
    blocks = [read_block(folder, shard, number).select(columns) for number in range(len(shard.blocks))]
    return pa.Table.from_batches(blocks).combine_chunks()


def _entry_of_record(row: dict[str, Any]) -> Entry:
    del row["position"]
    xyz = () if row["xyz"] is None else (row["xyz"],)
    return Entry(**{**row, "xyz": xyz, "xyz_smiles": row["smiles"]})


class _ExistingShard:
    """The molecules of an existing shard, by their position on the axis."""

    def __init__(self, folder: str, shard: ShardEntry) -> None:
        self._name = shard.name
        table = _molecules_of_shard(folder, shard, ["id", "inchikey", "smiles", "conformer_source", "conformers"])
        self._conformers = table["conformers"]
        self._table = table.drop_columns(["conformers"])
        self._positions = np.array([position_of(key) for key in table["inchikey"].to_pylist()], dtype=np.uint64)

    def entries(self, start: int, end: int) -> Iterator[Entry]:
        """Yields the molecules with a position in [start, end)."""
        inside = (self._positions >= np.uint64(start)) & (self._positions <= np.uint64(end - 1))
        rows = np.flatnonzero(inside).tolist()
        for row, molecule in zip(rows, self._table.take(rows).to_pylist(), strict=True):
            source = molecule.pop("conformer_source")
            given = source in ("input", "pubchem3d")
            conformers = self._conformers[row].as_py() if given else ()
            yield Entry(
                **molecule,
                xyz=tuple(np.asarray(steps, dtype=np.int16).tobytes() for steps in conformers),
                xyz_smiles=molecule["smiles"],
                conformer_source=source if given else "input",
                file=self._name,
                number=row + 1,
                row=row,
            )


def _open(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _order(entry: Entry) -> Order:
    return Order(
        id=entry.id,
        inchikey=entry.inchikey,
        smiles=entry.smiles,
        given=np.stack([conformer_from_bytes(xyz) for xyz in entry.xyz]) if entry.xyz else None,
        given_smiles=entry.xyz_smiles,
        given_source=entry.conformer_source,
    )
