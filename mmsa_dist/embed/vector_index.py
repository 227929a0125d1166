"""FAISS over unit vectors: exact where that is fast, inverted lists beyond, built once and kept beside the vectors.

    _index.faiss    inverted lists of float16 vectors
    _index.json     what they are of, how many lists are looked at, and the recall that was measured with them

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
"""Vectors up to which every one is compared with a query."""
RECALL = 0.98
"""Share of the 10 nearest that inverted lists must find on a sample."""

_FILE, _ABOUT = "_index.faiss", "_index.json"  # the underscore makes readers of a folder of Parquet pass them by
_VECTORS_TO_TRAIN_A_LIST = 39  # what FAISS asks for
_SAMPLE, _TRIED = 200, 10
_ROWS_PER_ADD = 1 << 16


@dataclass(frozen=True)
class About:
    """What an index is of, and how good it is."""

    of: str
    """Digest of the vectors' origin."""
    vectors: int
    lists: int
    probes: int
    recall: float
    """Of the 10 nearest, on a sample."""


class VectorIndex:
    """The k vectors of greatest inner product with a query, the greatest first.

    Args:
        index: of FAISS.
        about: what `index` is of; None where it is exact.
    """

    def __init__(self, index: faiss.Index, about: About | None) -> None:
        self._index = index
        self.about = about

    @classmethod
    def exact(cls, unit: NDArray[np.float32]) -> VectorIndex:
        """Of (n, D) unit vectors; every one is compared with a query."""
        index = faiss.IndexFlatIP(unit.shape[1])
        index.add(unit)
        return cls(index, None)

    @classmethod
    def kept(cls, folder: str | os.PathLike[str], unit: NDArray[np.float32], of: str) -> VectorIndex:
        """Of (n, D) unit vectors: exact if there are few, otherwise read from `folder`, or built and written there.

        Args:
            folder: of the vectors; where it cannot be written to, the index serves and is not kept.
            unit: (n, D) float32.
            of: digest of what the vectors are; an index of another digest is built anew.
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
        """Returns inner products and rows, both (q, k); row -1 where the lists that were looked at hold fewer."""
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
        if probes == lists:  # vectors so close together that float16 cannot tell them apart
            return VectorIndex.exact(unit)
        probes = min(2 * probes, lists)


def _exact_rows(unit: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The rows of the `_TRIED` greatest products, (q, 10), in any order."""
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
        (folder / _ABOUT).unlink(missing_ok=True)  # it must never speak of another file
        temporary.replace(folder / _FILE)
        write_text_atomically(folder / _ABOUT, json.dumps(asdict(built.about)) + "\n")
    except (OSError, RuntimeError):  # FAISS says with RuntimeError that a file cannot be written
        temporary.unlink(missing_ok=True)


def _read_about(folder: Path) -> About | None:
    try:
        return About(**json.loads((folder / _ABOUT).read_text())) if (folder / _FILE).exists() else None
    except (OSError, ValueError, TypeError):
        return None
