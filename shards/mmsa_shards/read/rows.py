"""Lines of a delimited table -> its rows as cells, without losing rows to a stray quote.

A quoted cell may span lines (RFC 4180) and is read as by any CSV reader. But a stray quote at the beginning of a cell
would absorb the rows below it into that cell, up to the next quote at the end of a cell. So a cell that spans lines is
rejected if its first line could be a row of its own, and more than half of the other lines in it (ignoring blank ones)
are rows: they have as many cells as the table, a SMILES in its column, and no blank after a separator, as in prose,
unless the table has such blanks too. The first line is tested with the quote taken as an ordinary character: it must
have at least as many cells as the table, and no blank at the start of a cell after the quoted one. Prose in exactly
this form cannot be distinguished from rows.

If a cell is rejected, does not end properly, or is longer than csv allows (131,072 characters), the row is refused at
its first line, and the lines below are read again.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

# The characters of SMILES, with at least one atom, and optionally ChemAxon's extension. Few words of prose match.
_SMILES = re.compile(r"(?=.*[A-Za-z*])(?:\[[^\]\s]+\]|Cl|Br|[BCNOPSFIbcnops*0-9@+\-=#$:/\\.()%~<>&])+(?:\s+\|.*\|)?")

_FIRST_CHECK_LINES = 8  # lines of a row


class Lines:
    """An iterator over lines (None for one that is too long) to which lines can be given back.

    Args:
        batches: batches of lines.
    """

    def __init__(self, batches: Iterable[Sequence[str | None]]) -> None:
        self.number = 0
        """Number of the last returned line, from 1."""
        self._lines = chain.from_iterable(batches)
        self._again: deque[str | None] = deque()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str | None:
        line = self._again.popleft() if self._again else next(self._lines)
        self.number += 1
        return line

    def give_back(self, lines: Sequence[str | None]) -> None:
        """Takes back the last returned lines, to return them again."""
        self._again.extendleft(reversed(lines))
        self.number -= len(lines)


def table_rows(
    lines: Lines, delimiter: str, width: int, smiles_at: int
) -> Iterator[tuple[int, list[str] | str | None]]:
    """Yields for each row the number of its first line, and its cells, or why it has none, or None for one too long.

    In tables with tabs a quote is an ordinary character (IANA's text/tab-separated-values), but some programs quote
    cells there too: lines that cannot be parsed as quoted are split at the tabs.

    Args:
        lines: lines below the header.
        delimiter: separator of cells.
        width: number of columns.
        smiles_at: index of the column of the SMILES, from 0.
    """
    usual = width  # cells of the previous row; some programs omit empty cells at the end
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
                    like = _RowFormat(delimiter, frozenset((width, usual)), smiles_at, spaced=f"{delimiter} " in plain)
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


class _RowFormat(NamedTuple):
    """The format of the rows of a table."""

    delimiter: str
    widths: frozenset[int]
    """Permitted numbers of cells."""
    smiles_at: int
    spaced: bool
    """Whether blanks follow the separators."""

    def matches(self, line: str) -> bool:
        """Returns whether a line by itself would be a row."""
        try:
            cells = _cells(line, self.delimiter, strict=True)
        except csv.Error:
            return False
        if len(cells) < 2 or len(cells) not in self.widths or self.smiles_at >= len(cells) or self.is_prose(cells):
            return False
        return _SMILES.fullmatch(cells[self.smiles_at].strip()) is not None

    def may_begin(self, line: str) -> bool:
        """Returns whether a line with an open quote would be a row if the quote were an ordinary character."""
        *closed, open_cell = _cells(line, self.delimiter)
        cells = [*closed, *open_cell.split(self.delimiter)]
        behind = min(self.widths) - len(closed) - 1  # minus the open one, which may contain separators
        return len(cells) >= min(self.widths) and not (behind > 0 and self.is_prose(cells[-behind:]))

    def is_prose(self, cells: Sequence[str]) -> bool:
        """Returns whether blanks follow separators here, but not in the table."""
        return not self.spaced and any(cell.startswith(" ") for cell in cells)


def _cells(line: str, delimiter: str, *, strict: bool = False) -> list[str]:
    return next(csv.reader([f"{line}\n"], delimiter=delimiter, strict=strict))


def _continued(first: str, lines: Lines, rows: _RowFormat) -> list[str]:
    """Returns the cells of a row that spans lines.

    Raises:
        csv.Error: the lines below are not part of the row; they have been given back.
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
            # If quotes open and close in every line, the row could gain cells up to the end of the file. So they are
            # counted each time the row has doubled in length.
            if len(taken) >= _FIRST_CHECK_LINES and len(taken).bit_count() == 1:
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
    if row := _first_absorbed_row(first, taken, rows):
        problem = f"{opens} is not closed before line {begun + row}, which is no part of its cell"
    if problem:
        lines.give_back(taken)
        raise csv.Error(f'{problem}: close it in its cell, or write quotes that belong to the text as ""')
    return cells


def _first_absorbed_row(first: str, taken: Sequence[str | None], rows: _RowFormat) -> int:
    """Returns the index in `taken`, from 1, of the first row that a cell has absorbed; 0 if there is none."""
    if not rows.may_begin(first):
        return 0
    below = [(number, line) for number, line in enumerate(taken, 1) if line]
    found = [number for number, line in below if rows.matches(line)]
    return found[0] if 2 * len(found) > len(below) else 0
