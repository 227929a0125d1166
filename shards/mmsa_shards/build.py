"""Second stage: intervals of the catalogue -> shards. Three steps, each from files to a file that appears whole.

*Deal* gathers the interval of a shard, with what the shard holds already, and merges duplicates. *Build* makes
the columns of one piece of what is new, which is where the time goes; a piece is small enough to keep all
workers busy to the end, whatever the sizes of shards and blocks. *Pack* puts everything into its final order
and writes the shard.
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
from mmsa_shards.catalog import AXIS, end_of_val, read_interval
from mmsa_shards.manifest import ShardEntry, Split
from mmsa_shards.merge import Entry, merge
from mmsa_shards.molecule import Conformers, Order, make_molecules
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import Place, Refused
from mmsa_shards.rejects import write_refused
from mmsa_shards.schema import BLOCK_SCHEMA
from mmsa_shards.shard import read_block, write_shard

# A task makes a thousandth of the job, within these bounds.
_PIECES = 1024
_SMALLEST_PIECE, _LARGEST_PIECE = 32, 4096


@dataclass(frozen=True)
class ShardPlan:
    """A shard to be: an interval of the axis of `mmsa_shards.catalog`."""

    stem: str
    split: Split
    start: int
    end: int


@dataclass(frozen=True)
class ShardDone:
    """What became of a plan."""

    entry: ShardEntry | None
    """None where the interval holds no molecule."""
    duplicates: int
    joined: int
    conformer_sources: dict[str, int]
    """By how many molecules each source has grown."""

    def save(self, path: Path) -> None:
        """Writes the record of a shard, whole or not at all."""
        with write_atomically(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> ShardDone:
        """Reads what `save` wrote."""
        data = json.loads(path.read_bytes())
        return cls(**{**data, "entry": data["entry"] and ShardEntry.from_json(data["entry"])})


# What is to be made, and of what stays where in the shard it is.
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
    """Cuts the axis into shards.

    Args:
        intervals: how many of each split.
        options: `val_fraction` is used.
    """
    border = end_of_val(options.val_fraction)
    return [*_cut("val", 0, border, intervals["val"]), *_cut("train", border, AXIS, intervals["train"])]


def count_intervals(
    num_train: int, num_val: int, before: Mapping[Split, int], options: PrepareOptions
) -> dict[Split, int]:
    """Returns into how many shards each split is to be cut.

    Args:
        num_train: records, duplicates among them, in the training interval.
        num_val: likewise in the validation interval.
        before: into how many it is cut already; where it is, it stays so.
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
    """Returns how many molecules one task makes, for a job of so many records; the workers have no say in it."""
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
    """Decides what a shard is to hold.

    Writes what stays under the suffix ``.stay``, then what is to be made, a record batch for every piece.

    Args:
        path: of the file to write.
        chunks: of the catalogue.
        plan: the interval.
        held: the shard as it is; None where there is none yet.
        folder: of the shards.
        size: molecules in a piece.
        options: `conformers_per_molecule` is used.
    """
    new = read_interval(chunks, plan.start, plan.end)
    entries = [*map(_entry_of_record, new.to_pylist())]
    if new.num_rows and held is not None:
        entries += _entries_of_shard(folder, held)
    merged = merge(entries, options.conformers_per_molecule)
    stay = pa.Table.from_pylist([{"row": entry.row, "id": entry.id} for entry in merged.stay], schema=_STAY_SCHEMA)
    with write_atomically(path.with_suffix(".stay")) as file, pa.ipc.new_file(file, _STAY_SCHEMA) as writer:
        writer.write_table(stay)
    facts = {"duplicates": merged.duplicates, "joined": merged.joined, "untouched": int(new.num_rows == 0)}
    schema = _MAKE_SCHEMA.with_metadata({name: str(value) for name, value in facts.items()})
    with write_atomically(path) as file, pa.ipc.new_file(file, schema) as writer:
        for start in range(0, len(merged.make), size):
            rows = [
                {name: getattr(entry, name) for name in _MAKE_SCHEMA.names}
                for entry in merged.make[start : start + size]
            ]
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def piece_sizes(deal_path: Path) -> list[int]:
    """Returns how many molecules there are in every piece that was dealt."""
    dealt = _open(deal_path)
    return [dealt.get_batch(number).num_rows for number in range(dealt.num_record_batches)]


def build_piece(path: Path, deal_path: Path, number: int, options: PrepareOptions) -> tuple[int, int, str]:
    """Makes the molecules of one piece and writes them as a block, with the refusals beside it.

    Args:
        path: of the file to write; refusals take the same name with ``.rejects``.
        deal_path: what `deal` wrote.
        number: of the piece.
        options: those of conformers are used.

    Returns:
        How many molecules were made, how many refused, and why RDKit embedded all of them where nvMolKit should have.
    """
    rows = [Entry(**{**row, "xyz": tuple(row["xyz"])}) for row in _open(deal_path).get_batch(number).to_pylist()]
    orders = [_order(row) for row in rows]
    told: list[str] = []
    made = make_molecules(orders, Conformers.from_options(options), described=options.descriptors, tell=told.append)
    refused = [
        Refused(row.id, Place(row.file, row.number), result.reason, result.message)
        for row, result in zip(rows, made, strict=True)
        if not isinstance(result, Molecule)
    ]
    block = molecules_to_block([result for result in made if isinstance(result, Molecule)])
    write_refused(path, refused)
    with write_atomically(path) as file:
        file.write(encode_block(block, "none"))
    return block.num_rows, len(refused), " ".join(told)


def pack(
    record: Path,
    deal_path: Path,
    pieces: Sequence[Path],
    plan: ShardPlan,
    held: ShardEntry | None,
    folder: str,
    options: PrepareOptions,
) -> ShardDone:
    """Writes a shard beside its `record`, by which it counts as done.

    Args:
        record: of the file to write last.
        deal_path: what `deal` wrote.
        pieces: what `build_piece` wrote.
        plan: the interval.
        held: the shard as it is; None where there is none yet.
        folder: of the shards.
        options: `molecules_per_block`, `compression` and `seed` are used.
    """
    metadata = _open(deal_path).schema.metadata
    if int(metadata[b"untouched"]):
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
        done = ShardDone(entry, int(metadata[b"duplicates"]), int(metadata[b"joined"]), dict(sources))
    done.save(record)
    return done


def _cut(split: Split, start: int, end: int, count: int) -> Iterator[ShardPlan]:
    for number in range(count):
        first, last = (start + (end - start) * n // count for n in (number, number + 1))
        yield ShardPlan(f"{split}-{number:05d}", split, first, last)


def _blocks(table: pa.Table, options: PrepareOptions) -> Iterator[pa.RecordBatch]:
    """Yields molecules in their final order, which is random but for the seed."""
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


def _molecules_of_shard(folder: str, shard: ShardEntry) -> pa.Table:
    return pa.Table.from_batches(
        [read_block(folder, shard, number) for number in range(len(shard.blocks))], BLOCK_SCHEMA
    ).combine_chunks()


def _entry_of_record(row: dict[str, Any]) -> Entry:
    del row["position"]
    xyz = () if row["xyz"] is None else (row["xyz"],)
    return Entry(**{**row, "xyz": xyz, "xyz_smiles": row["smiles"]})


def _entries_of_shard(folder: str, shard: ShardEntry) -> Iterator[Entry]:
    table = _molecules_of_shard(folder, shard)
    columns = zip(*(table[name].to_pylist() for name in ("id", "inchikey", "smiles", "conformer_source")), strict=True)
    for row, (name, inchikey, smiles, source) in enumerate(columns):
        given = source in ("input", "pubchem3d")
        conformers = table["conformers"][row].as_py() if given else ()
        yield Entry(
            id=name,
            inchikey=inchikey,
            smiles=smiles,
            xyz=tuple(np.asarray(steps, dtype=np.int16).tobytes() for steps in conformers),
            xyz_smiles=smiles,
            conformer_source=source if given else "input",
            file=shard.name,
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
