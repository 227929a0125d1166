"""Splits from files: those that `Split.write` writes, other JSON with three lists, and folders of OGB.

Formats:

    NAME.json[.gz]                  an object with ``train``, ``valid`` and ``test``, lists of positions
    train.csv.gz, valid.csv.gz, test.csv.gz      in one folder, a position per line; OGB: in ``split/scaffold``

Positions count, from 0, either the rows of the task's file that RDKit parses or all its rows; their number tells which,
since a split covers every molecule. Whether the molecules are the same is checked by what the file has: its digest of
the SMILES, its SMILES, or OGB's ``mapping/mol.csv.gz``.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.evaluate.moleculenet import TASKS, Task
from mmsa_dist.evaluate.splits import PARTS, Split, SplitName, make_split
from mmsa_dist.evaluate.tasks import TaskData, digest_of, read_text_table

_SCAFFOLD = Path("split") / "scaffold"
_MAPPING = Path("mapping") / "mol.csv.gz"


class SplitError(ValueError):
    """A split file that cannot be used; the message says which, why and what to do."""


def choose_split(data: TaskData, choice: str, seed: int = 0) -> Split:
    """Returns the split for a name or a path.

    Args:
        data: the task.
        choice: a name for `make_split`, or a path for `load_split`.
        seed: as in these two functions.

    Raises:
        ValueError: as in these two functions.
    """
    if choice in get_args(SplitName):
        return make_split(data, cast(SplitName, choice), seed)
    if not Path(choice).exists():
        raise SplitError(
            f"the split {choice!r} is neither one of {', '.join(get_args(SplitName))} nor a file or folder of splits; "
            f"for a split from a file give its path, such as --split splits/{data.task.name}.json"
        )
    return load_split(choice, data, seed=seed)


def load_split(path: str | os.PathLike[str], data: TaskData, *, seed: int = 0) -> Split:
    """Reads the split of a task (module docstring).

    Args:
        path: a file, a folder of OGB, or a folder that contains, for each task, one of these under the task's name:
            ``bbbp.json``, ``bbbp-seed0.json`` (next to other seeds), ``ogb_splits_bbbp.json``, ``ogbg_molbbbp/``; or
            ``bbbp-ANYTHING.json`` that names the task, as `Split.write` writes it.
        data: the task.
        seed: selects one of several files for a task, ``...-seed{seed}.json``.

    Raises:
        SplitError: the file does not exist, is of other molecules or was changed, a position is out of range, missing
            or in two parts, or a part is empty.
    """
    place = _find(Path(path), data.task, seed)
    about = _read_folder(place) if place.is_dir() else _read_json(place)
    compared = _check_molecules(about, data, place)
    train, valid, test = _positions(about, data, place)
    # A split that is written again keeps its name.
    source = _stem(place).removeprefix(f"{data.task.name}-file-")
    split = Split("file", None, train, valid, test, source=source, compared=compared)
    if "smiles_digest" in about and about.get("digest") != split.digest:
        raise SplitError(f"{place} does not match its own digest: it was edited or damaged; download it again")
    return split


def _find(path: Path, task: Task, seed: int) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise SplitError(f"the split {path} does not exist: give a file or a folder of split files")
    names = dict.fromkeys((task.name, *task.files))
    files = {f"{form}{name}.json".lower() for name in names for form in ("", "ogb_splits_")}
    found: list[Path] = []
    others: list[Path] = []
    for entry in sorted(path.iterdir()):
        name = entry.name.lower().removesuffix(".gz")
        if name in files or re.fullmatch(rf"{re.escape(task.name.lower())}-seed\d+\.json", name):
            found.append(entry)
        elif name.startswith(f"{task.name.lower()}-") and name.endswith(".json"):
            # `esol-2-random.json` may belong to a task `esol-2`.
            (found if _task_of(entry) == task.name else others).append(entry)
    folders = (path, *(path / f"{form}{name}" for name in names for form in ("", "ogbg_mol")))
    found += [place for folder in folders for place in (folder, folder / _SCAFFOLD) if _part(place, "train")]
    seeds = {place: number[1] for place in found if (number := re.search(r"-seed(\d+)$", _stem(place)))}
    if found and len(seeds) == len(found) and str(seed) not in seeds.values():
        raise SplitError(
            f"{path} holds splits of {task.name} for seed {', '.join(seeds.values())}, none for seed {seed}: add one, "
            "lower --seeds, or give the path of one file, which is then used for all seeds"
        )
    if len(found) > 1:
        found = [place for place in found if seeds.get(place) == str(seed)] or found
    if len(found) > 1:
        raise SplitError(
            f"{path} holds more than one split of {task.name}, {', '.join(place.name for place in found)}: give "
            "the path of one of them"
        )
    if not found:
        passed = dict.fromkeys(_why_passed_over(other, task) for other in others)
        raise SplitError(
            f"{path} holds no split of {task.name}, such as {task.name}.json or ogbg_mol{task.name}/"
            + "".join(f"; {why}" for why in passed)
        )
    return found[0]


def _task_of(place: Path) -> object:
    """Returns the task that a split file names; None if it names none or is not JSON."""
    try:
        about = json.loads(_content(place))
    except ValueError:
        return None
    return about.get("task") if isinstance(about, dict) else None


def _why_passed_over(place: Path, task: Task) -> str:
    """Says why a file whose name begins with the task's is not taken for its split."""
    try:
        named = _read_json(place).get("task")
    except SplitError as error:  # it may have been this task's
        return str(error)
    return f"{place.name} is of {named}" if named else f'{place.name} does not say "task": "{task.name}"'


def _stem(place: Path) -> str:
    """Returns the name of the split in results: ``bbbp-random-seed0``, or OGB's name of the data set."""
    place = place.resolve()
    if place.is_dir():
        return place.parents[1].name if place.parts[-2:] == _SCAFFOLD.parts else place.name
    return place.name.removesuffix(".gz").removesuffix(".json")


def _part(folder: Path, part: str) -> Path | None:
    return next((path for name in (f"{part}.csv.gz", f"{part}.csv") if (path := folder / name).is_file()), None)


def _read_json(place: Path) -> dict[str, Any]:
    try:
        about = json.loads(_content(place))
    except ValueError as error:
        raise SplitError(f"{place} is not JSON ({error}): give a file with the lists {', '.join(PARTS)}") from error
    if not isinstance(about, dict) or not all(isinstance(about.get(part), list) for part in PARTS):
        held = f"it holds {', '.join(about)}" if isinstance(about, dict) else "it is not a JSON object"
        raise SplitError(f"{place} lacks one of the lists {', '.join(PARTS)}; {held}")
    return about


def _read_folder(place: Path) -> dict[str, Any]:
    about: dict[str, Any] = {}
    for part in PARTS:
        path = _part(place, part)
        if path is None:
            raise SplitError(f"{place} lacks {part}.csv.gz; a folder of a split needs all three parts")
        try:
            about[part] = [int(line) for line in _content(path).split()]
        except ValueError as error:
            raise SplitError(f"{path} is not a list of positions, one per line: {error}") from error
    mapping = place.parents[1] / _MAPPING if place.parts[-2:] == _SCAFFOLD.parts else None
    if mapping is not None and mapping.is_file():
        table = read_text_table(mapping)
        if "smiles" in table.column_names:
            about["smiles"] = [text.strip() for text in table["smiles"].to_pylist()]
    return about


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise SplitError(f"{path} cannot be read: {error}") from error


def _check_molecules(about: Mapping[str, Any], data: TaskData, place: Path) -> bool:
    """Checks that a split is of the molecules of a task; returns whether it has SMILES that could be compared."""
    given, compared = about.get("smiles"), True
    if "smiles_digest" in about:
        theirs, same = str(about["smiles_digest"]), about["smiles_digest"] == data.smiles_digest
    elif isinstance(given, list):
        ours = data.smiles if len(given) == len(data) else _all_rows(data)
        # Rows that did not parse here match any SMILES.
        same = len(given) == len(ours) and all(o is None or g == o for g, o in zip(given, ours, strict=True))
        theirs = digest_of(given)
    else:
        compared, named = False, about.get("task")
        others = {name for task in TASKS.values() if task.name != data.task.name for name in (task.name, *task.files)}
        if isinstance(named, str) and named.lower() in others:
            raise SplitError(f"{place} is a split of {named}, not of {data.task.name}; give one of {data.task.name}")
        rows = about.get("dropped_rows")
        same = not rows or not data.dropped or rows == [row for row, _ in data.dropped]
        theirs = f"unknown, but rows {rows} of its file did not parse"
    if not same:
        raise SplitError(
            f"{place} is a split of other molecules than those of {data.task.name}: the digest of its SMILES is "
            f"{theirs}, here it is {data.smiles_digest}; use the data that the split was made for, or another split"
        )
    return compared


def _all_rows(data: TaskData) -> list[str | None]:
    """Returns the SMILES of all rows of the task's file; None for dropped rows."""
    dropped = {row for row, _ in data.dropped}
    kept = iter(data.smiles)
    return [None if row in dropped else next(kept) for row in range(len(data) + len(dropped))]


def _positions(about: Mapping[str, Any], data: TaskData, place: Path) -> list[NDArray[np.int64]]:
    parts = [_whole_numbers(about[part], part, place) for part in PARTS]
    everything = np.concatenate(parts)
    size = len(data)
    if data.dropped and len(everything) == size + len(data.dropped):
        size = len(everything)
    outside = everything[(everything < 0) | (everything >= size)]
    if len(outside):
        raise SplitError(
            f"{place}: position {outside[0]} is out of range, {data.task.name} has {len(data):,} molecules; use the "
            "data that the split was made for"
        )
    counts = np.bincount(everything, minlength=size)
    if counts.max() > 1:
        twice = int(np.flatnonzero(counts > 1)[0])
        where = [part for part, positions in zip(PARTS, parts, strict=True) for _ in range((positions == twice).sum())]
        raise SplitError(f"{place}: molecule {twice} occurs twice, in {' and '.join(where)}; parts must not overlap")
    if counts.min() < 1:
        missing = np.flatnonzero(counts < 1)
        raise SplitError(
            f"{place} leaves out {len(missing):,} of {len(data):,} molecules of {data.task.name}, the first is "
            f"{missing[0]}; use the data that the split was made for, or remove them from the data"
        )
    if size > len(data):
        parts = [_without_dropped(positions, data) for positions in parts]
    empty = [part for part, positions in zip(PARTS, parts, strict=True) if len(positions) == 0]
    if empty:
        raise SplitError(f"{place}: the part {empty[0]} is empty")
    return parts


def _whole_numbers(values: Sequence[Any], part: str, place: Path) -> NDArray[np.int64]:
    odd = [value for value in values if not isinstance(value, int) or isinstance(value, bool)]
    if odd:
        raise SplitError(f"{place}: {part} contains {odd[0]!r}; positions must be whole numbers")
    return np.clip(np.array(values, dtype=object), -1, np.iinfo(np.int64).max).astype(np.int64)


def _without_dropped(rows: NDArray[np.int64], data: TaskData) -> NDArray[np.int64]:
    """Converts row numbers of the file to positions among the molecules, without dropped rows."""
    kept = np.ones(len(data) + len(data.dropped), dtype=bool)
    kept[[row for row, _ in data.dropped]] = False
    return (np.cumsum(kept) - 1)[rows[kept[rows]]]
