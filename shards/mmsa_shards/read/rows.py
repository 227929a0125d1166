"""Lines of a delimited table -> its rows as cells, of which no stray quote hides any.

A quoted cell may go on over lines (RFC 4180), and is read as any reader of CSV reads it. But a quote that belongs to
the text, at the beginning of a cell, takes the rows below it into that cell, up to another one at the end of a cell.
So a cell that goes on is not believed where its first line could be a row without it, and more than half of the lines
that it takes in (blank ones aside) are rows: as many cells as the table, a SMILES in its column, and no blank behind a
separator, as prose has it, unless the table has that too. Of the first line the quote counts as a character; it has as
many cells or more, and no blanks before those behind the quoted one. Where prose is written just so, nothing tells the
two apart.

A cell that is not believed, does not end as it should or is longer than csv allows (131,072 characters) refuses its
row in the line where it begins, and the lines below are read again.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

# What SMILES are written with, an atom at least; then perhaps ChemAxon's extension. Few words of prose are.
_SMILES = re.compile(r"(?=.*[A-Za-z*])(?:\[[^\]\s]+\]|Cl|Br|[BCNOPSFIbcnops*0-9@+\-=#$:/\\.()%~<>&])+(?:\s+\|.*\|)?")

_LOOKED_AT = 8  # lines of a row


class Lines:
    """Lines, None for one too long to be of use; those that were taken in vain can be given back.

    Args:
        batches: the lines, as they come.
    """

    def __init__(self, batches: Iterable[Sequence[str | None]]) -> None:
        self.number = 0
        """Of the line that was given last, from 1."""
        self._lines = chain.from_iterable(batches)
        self._again: deque[str | None] = deque()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        return line

    def give_back(self, lines: Sequence[str | None]) -> None:
        """Takes back the lines that were given last, to give them again."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


def table_rows(
    lines: Lines, delimiter: str, width: int, smiles_at: int
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yields of each row the number of its first line, and its cells; or why it has none; or None for one too long.

    In tables with tabs a quote is a character like any other (IANA's text/tab-separated-values), but programs quote
    cells in them too: what cannot be read as quoted there is read as it stands.

    Args:
        lines: those below the names of the columns.
        delimiter: between cells.
        width: number of columns.
        smiles_at: column of the SMILES, from 0.
    """
    usual = width  # cells of a row, of which some programs leave out the last ones
    plain = ""  # the last row without quotes
    for line in lines:
        if not line:
            if line is None:
                yield lines.number, None
            continue
        number = lines.number
        if '"' not in line:
            cells = line.split(delimiter)
            plain = line
        else:
            try:
                cells = _cells(line, delimiter)
                if cells[-1].endswith("\n"):  # its quote is still open
                    like = _Rows(delimiter, frozenset((width, usual)), smiles_at, spaced=f"{delimiter} " in plain)
                    cells = _continued(line, lines, like)
                elif delimiter == "\t" and len(cells) not in (width, usual):
                    cells = line.split(delimiter)
            except csv.Error as error:
                if delimiter != "\t":
                    yield number, f"cannot be read as a row of CSV: {error}"
                    continue
                cells = line.split(delimiter)
        usual = len(cells)
        yield number, cells


class _Rows(NamedTuple):
    """What rows of a table are like."""

    delimiter: str
    widths: frozenset[int]
    """How many cells they have."""
    smiles_at: int
    spaced: bool
    """Whether blanks follow their separators."""

    def have(self, line: str) -> bool:
        """Whether a line by itself would be one of them."""
        try:
            cells = _cells(line, self.delimiter, strict=True)
        except csv.Error:
            return False
        if len(cells) < 2 or len(cells) not in self.widths or self.smiles_at >= len(cells) or self.are_prose(cells):
            return False
        return _SMILES.fullmatch(cells[self.smiles_at].strip()) is not None

    def may_begin(self, line: str) -> bool:
        """Whether a line that a quote leaves open would be one of them if the quote were a character of its cell."""
        *closed, open_cell = _cells(line, self.delimiter)
        cells = [*closed, *open_cell.split(self.delimiter)]
        behind = min(self.widths) - len(closed) - 1  # the open one, in which there may be separators
        return len(cells) >= min(self.widths) and not (behind > 0 and self.are_prose(cells[-behind:]))

    def are_prose(self, cells: Sequence[str]) -> bool:
        """Whether separators have blanks behind them, and those of the table have none."""
        return not self.spaced and any(cell.startswith(" ") for cell in cells)


def _cells(line: str, delimiter: str, *, strict: bool = False) -> list[str]:
    return next(csv.reader([f"{line}\n"], delimiter=delimiter, strict=strict))


def _continued(first: str, lines: Lines, rows: _Rows) -> list[str]:
    """Returns the cells of a row that goes on below its first line.

    Raises:
        csv.Error: the lines below are no part of it; they will be given again.
    """
    begun = lines.number
    opens = f"a quote that opens in line {begun}"
    taken: list[str | None] = []
    problem = ""

    def text() -> Iterator[str]:
        nonlocal problem
        yield f"{first}\n"
        for line in lines:
            taken.append(line)
            if line is None:
                problem = f"{opens} is not closed before line {lines.number}, which is longer than any molecule"
                return
            yield f"{line}\n"
            # Where quotes open and close in every line the row grows in cells, and could do so to the end of the file:
            # looked at when it is twice as long as the last time.
            if len(taken) >= _LOOKED_AT and len(taken).bit_count() == 1:
                so_far = [f"{one}\n" for one in (first, *taken) if one is not None]
                if len(next(csv.reader(so_far, delimiter=rows.delimiter))) > max(rows.widths):
                    problem = f"{opens} is not closed before line {lines.number}, where its row has too many cells"
                    return
        problem = f"{opens} is not closed up to the end of the file, line {lines.number}"

    cells: list[str] = []
    try:
        cells = next(csv.reader(text(), delimiter=rows.delimiter, strict=True))
    except csv.Error as error:
        problem = problem or f"{opens} does not close as it should up to line {lines.number} ({error})"
    else:
        if len(cells) > max(rows.widths) or rows.smiles_at >= len(cells):
            problem = f"{opens} closes in line {lines.number}, which makes a row of {len(cells)} cells"
        elif "\n" in cells[rows.smiles_at].strip():
            problem = f"its SMILES goes on to line {lines.number}: {opens} closes there"
    if row := _first_row_taken_in(first, taken, rows):
        problem = f"{opens} is not closed before line {begun + row}, which is no part of its cell"
    if problem:
        lines.give_back(taken)
        raise csv.Error(f'{problem}: close it in its cell, or write quotes that belong to the text as ""')
    return cells


def _first_row_taken_in(first: str, taken: Sequence[str | None], rows: _Rows) -> int:
    """Returns where among `taken`, from 1, the first of the rows stands that a cell has taken in; 0 if it has not."""
    if not rows.may_begin(first):
        return 0
    found = [rows.have(line) for line in taken if line]
    if 2 * sum(found) <= len(found):
        return 0
    return next(number for number, line in enumerate(taken, 1) if line and rows.have(line))
