"""Sources of task files: a folder, the package that a file ships in, or the Hugging Face hub.

The hub has the MoleculeNet files of scikit-fingerprints, one repository per data set. `huggingface_hub` downloads each
file once and caches it; later reads come from the cache without network access.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmsa_dist.evaluate.moleculenet import Task, TaskError


def find_file(task: Task, folder: Path | None = None) -> Path:
    """Returns the path of a task's file, downloading it if it comes from the hub and is not cached.

    Args:
        task: a task with file names.
        folder: MoleculeNet's CSV files, gzipped or not; nothing is downloaded instead. None tries the package that
            the task ships in, then the hub.

    Raises:
        TaskError: the folder does not exist, the file is not in it, or the download failed.
    """
    if folder is not None:
        found = _in_folder(task, folder) or _in_package(task)
    else:
        found = _in_package(task) or _from_hub(task)
    if found is not None:
        return found
    wanted = " or ".join(f"{name}.csv[.gz]" for name in task.files)
    hint = f"; it also ships in the package {task.package}, which is not installed" if task.package else ""
    where = f"in {folder}" if folder else "without a folder of labelled data: give one with --data"
    download = ", or omit --data to download it" if folder and task.hub else ""
    mend = f": put it there{download}" if folder else ""
    raise TaskError(f"task {task.name!r} needs {wanted}, which is not found {where}{mend}{hint}")


def _in_folder(task: Task, folder: Path) -> Path | None:
    if not folder.is_dir():
        raise TaskError(f"the folder of labelled data {folder} does not exist")
    names = {f"{name}{suffix}" for name in task.files for suffix in (".csv", ".csv.gz")}
    return min((path for path in folder.iterdir() if path.name.lower() in names), default=None)


def _in_package(task: Task) -> Path | None:
    # Locate the package without importing it, which would be slow and is not needed.
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
        # Probe once: a download by itself retries seven times, for half a minute, or six minutes without any answer,
        # and then does not report the cause.
        get_hf_file_metadata(hf_hub_url(task.hub, file, repo_type="dataset"))
        return Path(hf_hub_download(task.hub, file, repo_type="dataset"))
    except Exception as error:  # the class of network errors differs between versions of the client
        wanted = " or ".join(f"{name}.csv[.gz]" for name in task.files)
        raise TaskError(
            f"task {task.name!r} could not be downloaded: {file} of {task.hub} on the Hugging Face hub "
            f"({_first_sentence(error)}); download {wanted} elsewhere and give its folder with --data"
        ) from error


def _first_sentence(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip().rstrip(".") if lines else type(error).__name__
