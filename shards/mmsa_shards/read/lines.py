"""Line-based files: SMILES files, and PubChem's ``CID-SMILES``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mmsa_shards.options import PrepareOptions
from mmsa_shards.read.record import Place, Record, Refused, smiles_record, text_of, too_long
from mmsa_shards.read.tables import SMILES_COLUMNS

# Bytes, more than any usable molecule needs; longer lines are refused without being held in memory.
_LONGEST_LINE = 1 << 20


def line_batches(pieces: Iterable[bytes]) -> Iterator[list[str | None]]:
    r"""Yields batches of lines without their \n; a line that is too long is None."""
    tail, dropped = b"", False
    for piece in pieces:
        tail += piece
        end = tail.rfind(b"\n")
        if end >= 0:
            lines = _split(tail[:end])
            if dropped:
                lines[0], dropped = None, False
            yield lines
            tail = tail[end + 1 :]
        if len(tail) > _LONGEST_LINE:
            tail, dropped = b"", True
    if tail or dropped:
        yield [None] if dropped else _split(tail)


def _split(block: bytes) -> list[str | None]:
    if len(block) <= _LONGEST_LINE:
        try:
            return [*block.decode().split("\n")]
        except UnicodeDecodeError:
            pass  # decoded line by line below
    return [None if len(line) > _LONGEST_LINE else text_of(line) for line in block.split(b"\n")]


def smiles_records(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    """Yields records from lines of a SMILES, white space, and an id up to the next tab or the end of the line.

    Blank lines and lines that begin with ``#`` are skipped; an id after a leading tab is a record without a SMILES.
    """
    number = 0
    for lines in line_batches(pieces):
        for line in lines:
            number += 1
            if not line:
                if line is None:
                    yield too_long(Place(file, number))
                continue
            fields = line.split("\t", 1) if "\t" in line else line.split(None, 1)
            smiles = fields[0].strip() if fields else ""
            rest = fields[1] if len(fields) > 1 else ""
            if " " in smiles:
                smiles, rest = _without_id(smiles, rest)
            if not smiles:
                if not rest.strip():
                    continue
            elif smiles[0] == "#" or (number == 1 and smiles.lower() in SMILES_COLUMNS):
                continue  # a comment or a header
            if "|" in rest and rest.lstrip().startswith("|"):  # ChemAxon's extension, between the SMILES and the id
                rest = rest.lstrip()[1:].partition("|")[2].lstrip()
            yield smiles_record(rest.strip().partition("\t")[0], smiles, file, number)


def _without_id(text: str, rest: str) -> tuple[str, str]:
    """Parts the id from a SMILES with a blank before the first tab, which ChemAxon's extension may follow.

    Returns:
        The SMILES with its extension, and the id; the `rest` of the line if there is no id before the tab.
    """
    smiles, behind = text.split(None, 1)
    end = behind.find("|", 1) + 1 if behind[0] == "|" else 0
    return (f"{smiles} {behind[:end]}".rstrip(), behind[end:]) if behind[end:] else (text, rest)


def cid_smiles_records(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    """Yields records from lines of a CID, a tab and a SMILES."""
    number = 0
    for lines in line_batches(pieces):
        for line in lines:
            number += 1
            if not line:
                if line is None:
                    yield too_long(Place(file, number))
                continue
            cid, _, smiles = line.partition("\t")
            if smiles or cid.strip():
                yield smiles_record(f"CID{cid}" if cid.isdecimal() else cid, smiles.strip(), file, number)
