"""What reading gives: a record as text with its place in its file, or the refusal of one.

They are tuples, because millions of them are made and sent to other processes.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class Structure(NamedTuple):
    """A structure as text."""

    form: Literal["SMILES", "molfile"]
    text: str


class Place(NamedTuple):
    """Where a record stands."""

    file: str
    number: int
    """From 1: the line of SMILES and CSV files, the record of SDF (also without ``$$$$``), the row of Parquet."""

    @property
    def as_id(self) -> str:
        """The id of a record that has none of its own."""
        return f"{self.file}:{self.number}"


class Record(NamedTuple):
    """A record to be standardized."""

    id: str
    """Without control characters; never empty."""
    structure: Structure
    place: Place
    conformer_source: Literal["input", "pubchem3d"] = "input"
    """What 3D coordinates of the record, if it has such, are to be called."""


class Refused(NamedTuple):
    """A record that did not make it, here or in a later stage."""

    id: str
    place: Place
    reason: str
    message: str


def id_of(text: str, place: Place) -> str:
    """Returns an id as it is to be written: control characters as blanks, none at the ends; never empty."""
    if not text.isprintable():  # quicker than the search, and almost always enough
        text = _CONTROL.sub(" ", text)
    return text.strip() or place.as_id


def too_long(place: Place) -> Refused:
    """Returns the refusal of a record that was not held in memory."""
    return Refused(place.as_id, place, "too_long", "is longer than any molecule that can be used")


def text_of(line: bytes) -> str:
    """Returns bytes as text: UTF-8, else Latin-1, in which every byte means something (names in old files)."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def smiles_record(name: str, smiles: str, file: str, number: int) -> Record:
    """Returns the record of a SMILES; `name` becomes its id by `id_of`."""
    # tuple.__new__, for the constructors take three times as long, and one process reads all lines of a file.
    place = tuple.__new__(Place, (file, number))
    structure = tuple.__new__(Structure, ("SMILES", smiles))
    return tuple.__new__(Record, (id_of(name, place), structure, place, "input"))
