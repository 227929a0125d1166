"""Results of reading: a record as text with its place in its file, or the refusal of one.

They are tuples, because millions of them are created and sent to other processes.
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
    """The position of a record in a file."""

    file: str
    number: int
    """From 1: the line of SMILES and CSV files, the record of SDF (also without ``$$$$``), the row of Parquet."""

    @property
    def as_id(self) -> str:
        """Id for a record that has none of its own."""
        return f"{self.file}:{self.number}"


class Record(NamedTuple):
    """A record to be standardized."""

    id: str
    """Without control characters; never empty."""
    structure: Structure
    place: Place
    conformer_source: Literal["input", "pubchem3d"] = "input"
    """Source of the 3D coordinates of the record, if it has any."""


class Refused(NamedTuple):
    """A record that was refused, while reading or in a later stage."""

    id: str
    place: Place
    reason: str
    message: str


def id_of(text: str, place: Place) -> str:
    """Returns an id with control characters replaced by blanks, without blanks at the ends; never empty."""
    if not text.isprintable():  # faster than the regex, and almost always sufficient
        text = _CONTROL.sub(" ", text)
    return text.strip() or place.as_id


def too_long(place: Place) -> Refused:
    """Returns the refusal of a record that was not held in memory."""
    return Refused(place.as_id, place, "too_long", "is longer than any molecule that can be used")


def text_of(line: bytes) -> str:
    """Decodes bytes as UTF-8, else as Latin-1, which never fails and occurs in names of old files."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("latin-1")


def smiles_record(name: str, smiles: str, file: str, number: int) -> Record:
    """Returns the record of a SMILES; `name` becomes its id by `id_of`."""
    # tuple.__new__, as the constructors take three times as long, and one process reads all lines of a file.
    place = tuple.__new__(Place, (file, number))
    structure = tuple.__new__(Structure, ("SMILES", smiles))
    return tuple.__new__(Record, (id_of(name, place), structure, place, "input"))
