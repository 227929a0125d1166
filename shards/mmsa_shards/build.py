"""Second stage: intervals of the catalogue -> shards. Three steps, each from files to a file that appears whole.

*Deal* gathers the interval of a shard, merges duplicates and puts the molecules in their final order. *Build*
makes the columns of one piece of it, which is where the time goes; a piece is small enough to keep all workers
busy to the end, whatever the sizes of shards and blocks. *Pack* joins the pieces of a shard into its blocks.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmsa_shards.atomic import write_atomically
from mmsa_shards.block import Molecule, decode_block, encode_block, molecules_to_block
from mmsa_shards.catalog import AXIS, end_of_val, read_interval
from mmsa_shards.manifest import ShardEntry, Split
from mmsa_shards.molecule import Conformers, Order, make_molecules
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import Place, Refused
from mmsa_shards.rejects import write_refused
from mmsa_shards.schema import BLOCK_SCHEMA
from mmsa_shards.shard import write_shard

# A task makes a thousandth of the job, within these bounds.
_PIECES = 1024
_SMALLEST_PIECE, _LARGEST_PIECE = 64, 4096


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
    conformer_sources: dict[str, int]

    def save(self, path: Path) -> None:
        """Writes the record of a shard, whole or not at all."""
        with write_atomically(path) as file:
            file.write(json.dumps(asdict(self)).encode())

    @classmethod
    def load(cls, path: Path) -> ShardDone:
        """Reads what `save` wrote."""
        data = json.loads(path.read_bytes())
        entry = data["entry"] and ShardEntry.from_json(data["entry"])
        return cls(entry, data["duplicates"], data["conformer_sources"])


DEAL_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("inchikey", pa.string(), nullable=False),
        pa.field("smiles", pa.string(), nullable=False),
        # float32 (A, 3) in Å, atoms in the order of the SMILES; as many as were given and wanted.
        pa.field("xyz", pa.list_(pa.binary()), nullable=False),
        pa.field("conformer_source", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
    ]
)


def plan_shards(num_train: int, num_val: int, options: PrepareOptions) -> list[ShardPlan]:
    """Cuts the axis into shards.

    Args:
        num_train: records, duplicates among them, in the training interval.
        num_val: likewise in the validation interval.
        options: `shards`, `molecules_per_shard` and `val_fraction` are used.
    """
    border = end_of_val(options.val_fraction)
    wanted = -(-num_train // options.molecules_per_shard)
    return [
        *_cut("val", 0, border, -(-num_val // options.molecules_per_shard)),
        *_cut("train", border, AXIS, options.shards or wanted),
    ]


def piece_size(num_records: int) -> int:
    """Returns how many molecules one task makes, for a job of so many records; the workers have no say in it."""
    return min(_LARGEST_PIECE, max(_SMALLEST_PIECE, num_records // _PIECES))


def deal(path: Path, chunks: Sequence[Path], plan: ShardPlan, size: int, options: PrepareOptions) -> None:
    """Writes the molecules of a shard in their final order, a record batch for every piece of `size` molecules.

    Of records with one InChIKey the first by content becomes the molecule, one with 3D before one without;
    the conformers of the others that are drawn alike join its own, up to `conformers_per_molecule`. Nothing
    here depends on the order in which records were read.
    """
    rows = read_interval(chunks, plan.start, plan.end).to_pylist()
    rows.sort(key=lambda row: (row["inchikey"], row["xyz"] is None, row["smiles"], row["id"], row["xyz"] or b""))
    molecules = [
        _merged(list(records), options.conformers_per_molecule)
        for _, records in groupby(rows, key=itemgetter("inchikey"))
    ]
    molecules.sort(key=lambda molecule: _shuffle_key(molecule["inchikey"], options.seed))
    schema = DEAL_SCHEMA.with_metadata({"duplicates": str(len(rows) - len(molecules))})
    pieces = [molecules[start : start + size] for start in range(0, len(molecules), size)]
    with write_atomically(path) as file, pa.ipc.new_file(file, schema) as writer:
        for piece in pieces:
            writer.write_batch(pa.RecordBatch.from_pylist(piece, schema=schema))


def piece_sizes(deal_path: Path) -> list[int]:
    """Returns how many molecules there are in every piece that was dealt."""
    dealt = _open_deal(deal_path)
    return [dealt.get_batch(number).num_rows for number in range(dealt.num_record_batches)]


def build_piece(path: Path, deal_path: Path, number: int, options: PrepareOptions) -> tuple[int, int]:
    """Makes the molecules of one piece and writes them as a block, with the refusals beside it.

    Args:
        path: of the file to write; refusals take the same name with ``.rejects``.
        deal_path: what `deal` wrote.
        number: of the piece.
        options: those of conformers are used.

    Returns:
        How many molecules were made, and how many refused.
    """
    rows = _open_deal(deal_path).get_batch(number).to_pylist()
    made = make_molecules([_order(row) for row in rows], Conformers.from_options(options))
    refused = [
        Refused(row["id"], Place(row["file"], row["number"]), result.reason, result.message)
        for row, result in zip(rows, made, strict=True)
        if not isinstance(result, Molecule)
    ]
    block = molecules_to_block([result for result in made if isinstance(result, Molecule)])
    write_refused(path, refused)
    with write_atomically(path) as file:
        file.write(encode_block(block, "none"))
    return block.num_rows, len(refused)


def pack(
    record: Path,
    folder: Path,
    plan: ShardPlan,
    deal_path: Path,
    pieces: Sequence[Path],
    options: PrepareOptions,
) -> ShardDone:
    """Joins the pieces of a shard in `folder`, then writes its `record`, by which it counts as done."""
    table = pa.Table.from_batches([decode_block(path.read_bytes()) for path in pieces], BLOCK_SCHEMA)
    size = options.molecules_per_block
    blocks = [_one_batch(table.slice(start, size)) for start in range(0, len(table), size)]
    sources = Counter(source for block in blocks for source in block["conformer_source"].to_pylist())
    entry = write_shard(folder, f"{plan.stem}.tar", plan.split, blocks, options.compression) if blocks else None
    metadata = _open_deal(deal_path).schema.metadata
    done = ShardDone(entry, int(metadata[b"duplicates"]), dict(sources))
    done.save(record)
    return done


def _cut(split: Split, start: int, end: int, count: int) -> Iterator[ShardPlan]:
    for number in range(count):
        first, last = (start + (end - start) * n // count for n in (number, number + 1))
        yield ShardPlan(f"{split}-{number:05d}", split, first, last)


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.concat_arrays(column.chunks) for column in table.itercolumns()], schema=table.schema
    )


def _open_deal(path: Path) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(str(path)))


def _merged(records: list[dict[str, Any]], count: int) -> dict[str, Any]:
    first = records[0]
    alike = [r for r in records if (r["smiles"], r["conformer_source"]) == (first["smiles"], first["conformer_source"])]
    xyz = dict.fromkeys(record["xyz"] for record in alike if record["xyz"] is not None)  # each once
    return {name: first[name] for name in DEAL_SCHEMA.names} | {"xyz": list(xyz)[:count]}


def _shuffle_key(inchikey: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{inchikey}".encode(), digest_size=16).digest()


def _order(row: dict[str, Any]) -> Order:
    given = np.stack([np.frombuffer(xyz, np.float32).reshape(-1, 3) for xyz in row["xyz"]]) if row["xyz"] else None
    return Order(
        id=row["id"],
        inchikey=row["inchikey"],
        smiles=row["smiles"],
        given=given,
        given_source=row["conformer_source"],
    )
