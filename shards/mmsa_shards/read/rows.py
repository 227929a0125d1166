"""Lines of a delimited table -> its rows as cells, of which no stray quote hides any.

A quoted cell may go on over lines (RFC 4180), so that a quote which nothing closes takes the rows below it into its
cell, up to the next quote. Hence a cell goes on only as long as what it takes in is no row itself, and where it
ends as it should; otherwise its row is refused in the line where it begins, and the lines below are read again.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

# What SMILES are written with; few words of prose are.
_SMILES = re.compile(r"(?:\[[^\]\s]+\]|Cl|Br|[BCNOPSFIHbcnops*0-9@+\-=#$:/\\.()%~<>&])+")

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
    for line in lines:
        if not line:
            if line is None:
                yield lines.number, None
            continue
        number = lines.number
        if '"' not in line:
            cells = line.split(delimiter)
        else:
            try:
                cells = _cells(line, delimiter)
                if cells[-1].endswith("\n"):  # its quote is still open
                    cells = _continued(line, lines, delimiter, {width, usual}, smiles_at)
                elif delimiter == "\t" and len(cells) not in (width, usual):
                    cells = line.split(delimiter)
            except csv.Error as error:
                if delimiter != "\t":
                    yield number, f"cannot be read as a row of CSV: {error}"
                    continue
                cells = line.split(delimiter)
        usual = len(cells)
        yield number, cells


def _cells(line: str, delimiter: str) -> list[str]:
    return next(csv.reader([f"{line}\n"], delimiter=delimiter))


def _continued(first: str, lines: Lines, delimiter: str, widths: set[int], smiles_at: int) -> list[str]:
    """Returns the cells of a row that goes on below its first line.

    Raises:
        csv.Error: the lines below are no part of it; they will be given again.
    """
    opens = f"a quote that opens in line {lines.number}"
    taken: list[str | None] = []
    problem = ""

    def not_closed_before() -> str:
        return f"{opens} is not closed before line {lines.number}, which is no part of its cell"

    def text() -> Iterator[str]:
        nonlocal problem
        yield f"{first}\n"
        for line in lines:
            taken.append(line)
            if line is not None:
                yield f"{line}\n"
            # Where quotes open and close in every line the row grows in cells, and could do so to the end of the file:
            # looked at when it is twice as long as the last time.
            if len(taken) >= _LOOKED_AT and len(taken).bit_count() == 1:
                so_far = [f"{one}\n" for one in (first, *taken) if one is not None]
                if len(next(csv.reader(so_far, delimiter=delimiter))) > max(widths):
                    problem = f"{opens} is not closed before line {lines.number}, where its row has too many cells"
                    return
            if line is None or _is_row(line, delimiter, widths, smiles_at):  # and does not close the quote
                problem = not_closed_before()
                return
        problem = f"{opens} is not closed up to the end of the file, line {lines.number}"

    cells: list[str] = []
    try:
        cells = next(csv.reader(text(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        problem = problem or f"{opens} does not close as it should up to line {lines.number} ({error})"
    else:
        if len(cells) not in widths:
            problem = f"{opens} closes in line {lines.number}, which makes a row of {len(cells)} cells"
        elif smiles_at < len(cells) and "\n" in cells[smiles_at].strip():
            problem = f"its SMILES goes on to line {lines.number}: {opens} closes there"
        elif len(first.split(delimiter)) >= min(widths) and _is_row(taken[-1] or "", delimiter, widths, smiles_at):
            # Of a cell, the end and what follows it would be as much only where its beginning was less.
            problem = not_closed_before()
    if problem:
        lines.give_back(taken)
        raise csv.Error(f'{problem}: close it in its cell, or write quotes that belong to the text as ""')
    return cells


def _is_row(line: str, delimiter: str, widths: set[int], smiles_at: int) -> bool:
    """Whether a line by itself would be a row with a SMILES."""
    try:
        cells = _cells(line, delimiter)
    except csv.Error:
        return False
    if len(cells) < 2 or len(cells) not in widths or smiles_at >= len(cells):
        return False
    smiles = cells[smiles_at].split(None, 1)
    return bool(smiles) and _SMILES.fullmatch(smiles[0]) is not None
