"""FAISS over unit vectors: exact for few, inverted lists for many, built once and stored with the vectors.

    _index.faiss    inverted lists of float16 vectors; absent if these are not good enough
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
NEAREST = 10
"""Neighbours of a vector, besides itself, for which the number of probed lists is tuned; all are probed for more."""
RECALL = 0.98
"""Recall of the 10 nearest that inverted lists must reach on a sample."""

_FILE, _ABOUT = "_index.faiss", "_index.json"  # Parquet dataset readers skip names with an underscore
_VECTORS_TO_TRAIN_A_LIST = 39  # the minimum that FAISS recommends
_SAMPLE = 200
_EQUAL = float(np.finfo(np.float32).eps)  # products no further apart are equal to exact search, which is in float32
_ROWS_PER_ADD = 1 << 16


@dataclass(frozen=True)
class About:
    """Identity and quality of an index."""

    of: str
    """Digest of the vectors' origin."""
    vectors: int
    lists: int
    """0 = inverted lists are not good enough, and the vectors are searched exactly."""
    probes: int
    recall_at_10: float
    """Recall of the 10 nearest on a sample; of equally near vectors each counts as well as another."""


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
    def stored(cls, folder: str | os.PathLike[str], n: int, of: str) -> VectorIndex | None:
        """Returns the index that `kept` wrote to `folder` for n vectors; None if there is none, or they need none."""
        about = _read_about(Path(folder), n, of)
        return cls(_read_index(Path(folder)), about) if about is not None and about.lists else None

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
        about = _read_about(folder, len(unit), of)
        if about is None:
            index, about = _build(unit, of)
            _keep(folder, index, about)
        elif about.lists:
            index = _read_index(folder)
        return cls(index, about) if about.lists else cls.exact(unit)

    def search(self, unit: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns inner products and rows, both (q, k), for k of at most n."""
        if self.about is None:
            return self._index.search(unit, k)
        probes = self.about.probes if k <= NEAREST + 1 else self.about.lists
        products, rows = _probe(self._index, unit, k, probes)
        short = rows[:, -1] < 0  # their lists hold fewer than k vectors
        if short.any():
            products[short], rows[short] = _probe(self._index, unit[short], k, self.about.lists)
        return products, rows

    def vector(self, row: int) -> NDArray[np.float32]:
        """Returns a vector of the index, (D,); rounded to float16 if it is not exact."""
        if self.about is not None:
            faiss.extract_index_ivf(self._index).make_direct_map()
        return np.asarray(self._index.reconstruct(row))


def _probe(
    index: faiss.Index, unit: NDArray[np.float32], k: int, probes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Searches the `probes` nearest lists; row -1 where they hold fewer than k vectors."""
    products, rows = index.search(unit, k, params=faiss.SearchParametersIVF(nprobe=probes))  # type: ignore[call-arg]  # faiss sets attributes by keyword
    return products, rows


def _build(unit: NDArray[np.float32], of: str) -> tuple[faiss.Index, About]:
    """Returns inverted lists, and with how many probes they reach the recall, if with any."""
    n, width = unit.shape
    lists = round(math.sqrt(n))
    quantizer = faiss.IndexFlatIP(width)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
    )
    index.train(unit[_evenly(n, lists * _VECTORS_TO_TRAIN_A_LIST)])
    for start in range(0, n, _ROWS_PER_ADD):
        index.add(unit[start : start + _ROWS_PER_ADD])
    sample = unit[_evenly(n, _SAMPLE)]
    least = _products(sample, unit[_exact_rows(unit, sample)]).min(axis=1, keepdims=True) - _EQUAL
    probes = 1
    while True:
        found = _probe(index, sample, NEAREST + 1, probes)[1]
        right = (found >= 0) & (_products(sample, unit[found]) >= least)
        recall = float((right.sum(axis=1) - 1).mean()) / NEAREST  # a vector finds itself, which is no merit
        if recall >= RECALL:
            return index, About(of, n, lists, probes, recall)
        if probes == lists:  # vectors too close together for float16 to distinguish
            return index, About(of, n, 0, 0, 1.0)
        probes = min(2 * probes, lists)


def _products(unit: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the inner products of (q, D) with (q, k, D) vectors, (q, k), so precisely that equal vectors have one."""
    return np.einsum("qd,qkd->qk", unit, others, dtype=np.float64)


def _exact_rows(unit: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns the rows of the `NEAREST` + 1 largest products, (q, 11), in any order."""
    number = NEAREST + 1
    best = faiss.ResultHeap(len(queries), number, keep_max=True)
    for start in range(0, len(unit), _ROWS_PER_ADD):
        part = unit[start : start + _ROWS_PER_ADD]
        products, rows = faiss.knn(queries, part, min(number, len(part)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(products, rows + start)
    best.finalize()
    return best.I


def _evenly(n: int, wanted: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, n - 1, min(n, wanted)).round().astype(np.int64))


def _keep(folder: Path, index: faiss.Index, about: About) -> None:
    temporary = folder / f".{_FILE}.{os.getpid()}.tmp"
    try:
        if about.lists:
            faiss.write_index(index, str(temporary))
            flush(temporary)
        (folder / _ABOUT).unlink(missing_ok=True)  # it must never describe another index file
        if about.lists:
            temporary.replace(folder / _FILE)
        else:
            (folder / _FILE).unlink(missing_ok=True)
        write_text_atomically(folder / _ABOUT, json.dumps(asdict(about)) + "\n")
    except (OSError, RuntimeError):  # FAISS raises RuntimeError if a file cannot be written
        temporary.unlink(missing_ok=True)


def _read_index(folder: Path) -> faiss.Index:
    return faiss.read_index(str(folder / _FILE), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)


def _read_about(folder: Path, n: int, of: str) -> About | None:
    """Returns what is known of the index in `folder`; None if there is none of these n vectors."""
    try:
        about = About(**json.loads((folder / _ABOUT).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    is_there = not about.lists or (folder / _FILE).exists()
    return about if is_there and (about.of, about.vectors) == (of, n) else None
