"""FAISS over unit vectors: exact for few, inverted lists for many, built once and stored with the vectors.

    _index.faiss    inverted lists of float16 vectors
    _index.json     digest of the vectors, number of lists probed, and the recall measured with them

n vectors, q queries, k neighbours, D width.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from mmsa_dist.runtime.files import flush, write_text_atomically

EXACT_ROWS = 1 << 17
"""Largest number of vectors that is searched exactly."""
RECALL = 0.98
"""Recall of the 10 nearest that inverted lists must reach on a sample."""

_FILE, _ABOUT = "_index.faiss", "_index.json"  # Parquet dataset readers skip names with an underscore
_VECTORS_TO_TRAIN_A_LIST = 39  # the minimum that FAISS recommends
_SAMPLE, _TRIED = 200, 10
_ROWS_PER_ADD = 1 << 16


@dataclass(frozen=True)
class About:
    """Identity and quality of an index."""

    of: str
    """Digest of the vectors' origin."""
    vectors: int
    lists: int
    probes: int
    recall: float
    """Recall of the 10 nearest on a sample."""


class VectorIndex:
    """Searches the k vectors with the largest inner product, largest first.

    Args:
        index: FAISS index.
        about: describes `index`; None if it is exact.
    """

    def __init__(self, index: faiss.Index, about: About | None) -> None:
        self._index = index
        self.about = about

    @classmethod
    def exact(cls, unit: NDArray[np.float32]) -> VectorIndex:
        """Builds an exact index over (n, D) unit vectors."""
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return cls(index, None)

    @classmethod
    def kept(cls, folder: str | os.PathLike[str], unit: NDArray[np.float32], of: str) -> VectorIndex:
        """Indexes (n, D) unit vectors: exact if few, otherwise read from `folder`, or built and written there.

        Args:
            folder: of the vectors; if it is not writable, the index is used but not stored.
            unit: (n, D) float32.
            of: digest of the vectors' origin; an index with another digest is rebuilt.
        """
        if len(unit) <= EXACT_ROWS:
            return cls.exact(unit)
        folder = Path(folder)
        about = _read_about(folder)
        if about is not None and (about.of, about.vectors) == (of, len(unit)):
            index = faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            faiss.extract_index_ivf(index).nprobe = about.probes
            return cls(index, about)
        built = _build(unit, of)
        _keep(folder, built)
        return built

    def search(self, unit: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns inner products and rows, both (q, k); row -1 if the probed lists hold fewer."""
        products, rows = self._index.search(unit, k)
        return products, rows


def _build(unit: NDArray[np.float32], of: str) -> VectorIndex:
    n, width = unit.shape
    lists = round(math.sqrt(n))
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.train(unit[_evenly(n, lists * _VECTORS_TO_TRAIN_A_LIST)])
    for start in range(0, n, _ROWS_PER_ADD):
        index.add(unit[start : start + _ROWS_PER_ADD])
    queries = unit[_evenly(n, _SAMPLE)]
    truth = _exact_rows(unit, queries)
    probes, recall = 1, 0.0
    while True:
        index.nprobe = probes
        found = index.search(queries, _TRIED)[1]
        recall = float(np.mean([len(np.intersect1d(*rows)) / _TRIED for rows in zip(found, truth, strict=True)]))
        if recall >= RECALL:
            return VectorIndex(index, About(of, n, lists, probes, recall))
        if probes == lists:  # vectors too close together for float16 to distinguish
            return VectorIndex.exact(unit)
        probes = min(2 * probes, lists)


def _exact_rows(unit: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the rows of the `_TRIED` largest products, (q, 10), in any order."""
    best = faiss.ResultHeap(len(queries), _TRIED, keep_max=True)
    for start in range(0, len(unit), _ROWS_PER_ADD):
        part = unit[start : start + _ROWS_PER_ADD]
        products, rows = faiss.knn(queries, part, min(_TRIED, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(products, rows + start)
    best.finalize()
    return best.I


def _evenly(n: int, wanted: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64))


def _keep(folder: Path, built: VectorIndex) -> None:
    if built.about is None:
        return
    temporary = folder / f".{_FILE}.{os.getpid()}.tmp"
    try:
        faiss.write_index(built._index, str(temporary))
        flush(temporary)
        (folder / _ABOUT).unlink(missing_ok=True)  # it must never describe another index file
        temporary.replace(folder / _FILE)
        write_text_atomically(folder / _ABOUT, json.dumps(asdict(built.about)) + "\n")
    except (OSError, RuntimeError):  # FAISS raises RuntimeError if a file cannot be written
        temporary.unlink(missing_ok=True)


def _read_about(folder: Path) -> About | None:
    try:
        return About(**json.loads((folder / _ABOUT).read_text())) if (folder / _FILE).exists() else None
    except (OSError, ValueError, TypeError):
        return None
