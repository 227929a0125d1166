"""The rows of a task: molecules with their labels, read from a file and checked.

n molecules, T label columns.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
from numpy.typing import NDArray

from mmsa_dist.evaluate.datasets import find_file
from mmsa_dist.evaluate.moleculenet import TASKS, Kind, MetricName, Task, TaskError
from mmsa_shards.read.tables import delimiter_of


@dataclass(frozen=True)
class TaskData:
    """A task with the molecules of its file."""

    task: Task
    smiles: tuple[str, ...]
    """n SMILES, as given."""
    labels: NDArray[np.float64]
    """(n, T); NaN for missing labels. Classes are 0 and 1."""
    label_names: tuple[str, ...]
    dropped: tuple[tuple[int, str], ...]
    """Rows of the file that RDKit does not parse or that have no atoms: row number (from 0) and text."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Reason for each of `dropped`."""
        from rdkit import Chem, rdBase

        with rdBase.BlockLogs():
            parses = [Chem.MolFromSmiles(text) is not None for _, text in self.dropped]
        return tuple("it has no atoms" if parsed else "RDKit does not parse it" for parsed in parses)

    def __len__(self) -> int:
        return len(self.smiles)

    @cached_property
    def smiles_digest(self) -> str:
        """SHA-256 of the SMILES as given, in order; a split with this digest is of these molecules."""
        return digest_of(self.smiles)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over SMILES and labels, independent of the file, its column names and dropped rows."""
        labels = np.where(np.isnan(self.labels), np.nan, self.labels + 0.0)  # one bit pattern each for NaN and for 0
        shape = json.dumps(labels.shape).encode()
        return hashlib.sha256(self.smiles_digest.encode() + shape + labels.astype("<f8").tobytes()).hexdigest()


def digest_of(smiles: Sequence[str]) -> str:
    """Returns the SHA-256 of SMILES in order."""
    return hashlib.sha256(json.dumps(list(smiles)).encode()).hexdigest()


def load_task(name: str, data: str | os.PathLike[str] | None = None) -> TaskData:
    """Loads a named task.

    Args:
        name: one of `TASKS`, in any case.
        data: folder with MoleculeNet's CSV files, gzipped or not; None uses the package that the task ships in, or
            downloads the file once (`mmsa_dist.evaluate.datasets`).

    Raises:
        TaskError: an unknown name, a missing file or column, labels that do not fit the task.
    """
    task = TASKS.get(name.lower())
    if task is None:
        raise TaskError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
    return _load(task, find_file(task, None if data is None else Path(data)))


def load_csv(
    path: str | os.PathLike[str],
    *,
    smiles_column: str,
    label_columns: Sequence[str],
    metric: MetricName,
) -> TaskData:
    """Loads a task from a CSV file.

    Args:
        path: a CSV file, gzipped or not.
        smiles_column: name of the SMILES column.
        label_columns: names of the T label columns.
        metric: ``roc_auc`` makes it a classification, ``rmse`` and ``mae`` a regression.

    Raises:
        TaskError: a missing file or column, labels that do not fit the metric.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    kind: Kind = "classification" if metric == "roc_auc" else "regression"
    return _load(Task(name, kind, metric, (name,), tuple(label_columns), smiles=(smiles_column,)), path)


def _load(task: Task, path: Path) -> TaskData:
    from rdkit import Chem, rdBase

    table = read_text_table(path)
    smiles_column = next((name for name in task.smiles if name in table.column_names), None)
    if smiles_column is None:
        mend = ": rename the column" if task.hub else ": name the SMILES column with --smiles-column"
        raise TaskError(f"{path} has no column {' or '.join(task.smiles)}; it has {_some(table.column_names)}{mend}")
    columns = _label_columns(task, smiles_column, table.column_names, path)
    twice = [name for name in (smiles_column, *columns) if table.column_names.count(name) > 1]
    if twice:
        raise TaskError(f"{path} has more than one column {twice[0]!r}; give each a unique name")
    texts = [text.strip() for text in table[smiles_column].to_pylist()]
    kept = np.zeros(len(texts), dtype=bool)
    with rdBase.BlockLogs():
        for row, text in enumerate(texts):
            mol = Chem.MolFromSmiles(text)
            kept[row] = mol is not None and mol.GetNumAtoms() > 0
    if not kept.any():
        raise TaskError(f"{path}: no SMILES in column {smiles_column!r} parses")
    # Labels of rows without a molecule are not checked: such rows are where files are damaged.
    rows = np.flatnonzero(kept)
    labels = np.stack([_numbers(table, name, rows, task.kind, path) for name in columns], axis=1)
    if np.isnan(labels).all():
        raise TaskError(f"{path} has no labels in {_some(columns)}; name a column that has some")
    return TaskData(
        task=task,
        smiles=tuple(texts[row] for row in rows),
        labels=labels,
        label_names=task.labels or columns,
        dropped=tuple((int(row), texts[row]) for row in np.flatnonzero(~kept)),
    )


def _label_columns(task: Task, smiles_column: str, columns: Sequence[str], path: Path) -> tuple[str, ...]:
    if not task.labels:
        names = tuple(name for name in columns if name not in (smiles_column, *task.not_labels))
        if not names:
            raise TaskError(f"{path} has no label column; it has {_some(columns)}")
        return names
    missing = [name for name in task.labels if name not in columns]
    if missing and len(task.labels) == 1 and task.hub is not None and "label" in columns:
        return ("label",)
    if missing:
        mend = ": name the label columns with --label-columns"
        if task.hub:
            mend = ": rename the label column, or use --csv, which takes any names"
        raise TaskError(f"{path} has no column {_some(missing)}; it has {_some(columns)}{mend}")
    return task.labels


def _some(names: Sequence[str]) -> str:
    """Formats names for a message; of many, the first ones and the number of the rest."""
    shown = ", ".join(names[:20])
    return shown if len(names) <= 20 else f"{shown} and {len(names) - 20} more"


def read_text_table(path: Path) -> pa.Table:
    """Reads a CSV file, gzipped or not, with all columns as text; its header tells comma, semicolon or tab.

    Raises:
        TaskError: the file cannot be read, or is not UTF-8.
    """
    ragged: list[pa.csv.InvalidRow] = []

    def refuse(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None) as stream:
            # All as text: with types inferred from the first rows, a late "NA" would be an error.
            data = stream.read()
        _check_utf8(data, path)
        # No threads: one that still waits at exit would abort the program after its error message.
        whole = pa.csv.ReadOptions(block_size=len(data) + 1, use_threads=False)
        names = data.lstrip().split(b"\n", 1)[0].decode(errors="replace")
        delimiter = delimiter_of(names)
        _check_quotes(data, delimiter, path)
        how = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse)
        header = pa.csv.read_csv(pa.BufferReader(data), read_options=whole, parse_options=how)
        text = pa.csv.ConvertOptions(column_types=dict.fromkeys(header.column_names, pa.string()))
        return pa.csv.read_csv(pa.BufferReader(data), read_options=whole, parse_options=how, convert_options=text)
    except (OSError, pa.ArrowInvalid) as error:
        if ragged:
            row = ragged[0]
            fields = f"{row.actual_columns} field{'s' if row.actual_columns != 1 else ''}"
            raise TaskError(
                f"{path}, record {row.number - 1}: {fields} for {row.expected_columns} columns, {row.text[:80]!r}; put "
                f"a field that contains {delimiter!r} in double quotes, and leave a missing one empty"
            ) from error
        raise TaskError(f"{path} cannot be read as CSV: {error}") from error


def _check_quotes(data: bytes, delimiter: str, path: Path) -> None:
    """Refuses stray quotes, after which Arrow would take the following records for a part of a field."""
    records = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    read = 0
    try:
        for _ in records:
            read += 1
    except csv.Error as error:
        raise TaskError(
            f"{path}, {f'record {read}' if read else 'header'}: a stray quote ({error}); put a field that contains "
            "quotes in double quotes and double those inside, or remove them"
        ) from error


def _check_utf8(data: bytes, path: Path) -> None:
    try:
        data.decode()
        at = data.lstrip().partition(b"\n")[0].find(b"\0")  # UTF-16 without a byte-order mark
    except UnicodeDecodeError as error:
        at = error.start
    if at < 0:
        return
    record = data[:at].lstrip().count(b"\n")
    where = f"record {record}" if record else "in the header"
    raise TaskError(f"{path} is not UTF-8 (byte {at + 1:,}, {where}); save it as CSV UTF-8")


_LARGEST = 1e100  # the squares of larger labels overflow
_MISSING = pa.array(["", "na", "nan", "none", "null"])


def _numbers(table: pa.Table, column: str, rows: NDArray[np.int64], kind: Kind, path: Path) -> NDArray[np.float64]:
    """Returns the labels of a column at `rows` of the file; NaN for missing ones."""
    texts = pc.utf8_trim_whitespace(table[column].combine_chunks().take(pa.array(rows)))
    known = pc.if_else(pc.is_in(pc.utf8_lower(texts), value_set=_MISSING), None, texts)
    try:
        values = pc.cast(known, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        # Parse one by one to find the invalid one.
        values = np.array([np.nan if text is None else _number(text) for text in known.to_pylist()])
    missing = known.is_null().to_numpy(zero_copy_only=False)
    fit = np.abs(values) < _LARGEST if kind == "regression" else np.isin(values, (0.0, 1.0))
    unfit = np.flatnonzero(~fit & ~missing)
    if len(unfit) == 0:
        return np.asarray(values, dtype=np.float64)
    first = int(unfit[0])
    place, text = f"{path}, record {rows[first] + 1}: {column}={texts[first].as_py()!r}", texts[first].as_py()
    if np.isnan(_number(text)):
        wanted = "0 or 1" if kind == "classification" else "a number"
        raise TaskError(f"{place} is not {wanted}; leave it empty where missing")
    if not np.isfinite(values[first]):
        raise TaskError(f"{place} is not finite; leave it empty where missing")
    if kind == "regression":
        raise TaskError(f"{place} is larger than {_LARGEST:.0e}; use another unit, or its logarithm")
    others = f" ({len(unfit):,} records of this column are invalid)" if len(unfit) > 1 else ""
    raise TaskError(f"{place} is not a class: classification labels must be 0, 1 or missing{others}")


def _number(text: str) -> float:
    try:
        return np.nan if "_" in text else float(text)  # Python allows underscores between digits
    except ValueError:
        return np.nan
