"""All vectors of a finished export as one array that numpy can memory-map: ``np.load(path, mmap_mode="r")``."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from mmsa_dist.embed.parquet import ExportSummary, part_table, vectors_of
from mmsa_dist.runtime.files import flush
from mmsa_shards.folder import Folder

VECTORS = "_vectors.npy"  # Parquet dataset readers skip names with an underscore
UNFINISHED = ".npy-"
"""Prefix of temporary folders that a killed process leaves behind."""


def write_npy(summary: ExportSummary) -> None:
    """Writes `VECTORS` atomically from the parts of an export; keeps an existing file.

    The array is (n, D) in the dtype of the export. Row i is row i of the input and of the parts, which hold its id;
    NaN if it has no vector.

    Raises:
        ExportError: a part is missing.
    """
    folder, origin = Folder(summary.folder), summary.origin
    if VECTORS in folder.names():
        return
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder.path, ignore_cleanup_errors=True) as place:
        path = Path(place) / VECTORS
        array = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.dtype(origin.dtype), shape=(summary.rows, origin.width)
        )
        start = 0
        for number in range(summary.parts):
            table = part_table(folder, number, ["embedding", "ok"])
            stop = start + table.num_rows
            array[start:stop] = vectors_of(table, origin.width)
            array[start:stop][~table["ok"].to_numpy()] = np.nan
            start = stop
        array.flush()
        del array
        flush(path)
        folder.take(path, VECTORS)
