"""Nearest neighbours among exported vectors, by molecule or by id.

n rows in the index, q queries, k neighbours, D width.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import Embeddings, Origin, Rows, read_embeddings, read_rows, read_summary
from mmsa_shards.folder import Folder

if TYPE_CHECKING:
    from mmsa_dist.embed.vector_index import VectorIndex

_COMPARED = 20_000  # ids compared with an unknown one: takes a second


class SearchError(ValueError):
    """A query cannot be answered; the message says why and what to do."""


@dataclass(frozen=True)
class Neighbour:
    """A row of the index near a query."""

    id: str
    smiles: str
    """SMILES of the embedded molecule: the standardized parent, unless it was taken as given."""
    inchikey: str | None
    similarity: float
    """Cosine of the two vectors, in [-1, 1]."""


class SearchIndex:
    """Rows of an export, and an inner-product index over their unit vectors; `open` and `of` make them.

    Args:
        rows: of the export.
        index: over their vectors.

    Raises:
        SearchError: there are no rows.
    """

    def __init__(self, rows: Rows, index: VectorIndex) -> None:
        if not rows.ids:
            raise SearchError(f"no row of {rows.summary.folder} has a vector; there is nothing to search")
        self._rows = rows
        self._row_of_id = {name: row for row, name in reversed(list(enumerate(rows.ids)))}
        self._index = index

    @classmethod
    def of(cls, embeddings: Embeddings) -> SearchIndex:
        """Makes an index that searches exactly.

        Args:
            embeddings: as `read_embeddings` returns them.

        Raises:
            SearchError: `embeddings` has no vector.
        """
        from mmsa_dist.embed.vector_index import VectorIndex  # here, so that embedding does not need FAISS

        return cls(embeddings.rows, VectorIndex.exact(_unit(embeddings.vectors)))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Opens the index of a finished export; for many vectors it is built once and stored in the folder.

        A stored index is mapped to memory, and vectors are not read. If the folder is at a URL, nothing is stored, and
        each query is compared with every vector.

        Raises:
            ExportError: `folder` holds no finished export.
            SearchError: none of its rows has a vector.
        """
        path = Folder(folder).path
        if path is None:
            return cls.of(read_embeddings(folder))
        summary = read_summary(folder)

        from mmsa_dist.embed.vector_index import VectorIndex

        origin = hashlib.sha256(repr(summary.origin).encode()).hexdigest()
        if (stored := VectorIndex.stored(path, summary.ok, origin)) is not None:
            return cls(read_rows(folder), stored)
        embeddings = read_embeddings(folder)
        return cls(embeddings.rows, VectorIndex.kept(path, _unit(embeddings.vectors), origin))

    @property
    def recall(self) -> float:
        """Recall of the 10 nearest, measured on a sample; 1 for exact search.

        More are sought among all vectors, which a stored index holds in float16.
        """
        return 1.0 if self._index.about is None else self._index.about.recall_at_10

    def __len__(self) -> int:
        return len(self._rows.ids)

    @property
    def origin(self) -> Origin:
        """Origin of the vectors in the index."""
        return self._rows.summary.origin

    @property
    def query_options(self) -> dict[str, Any]:
        """Options for the `Embedder` of the same model that embeds queries.

        They equal those of the index, with one exception: a SMILES has no conformer, so if the index used those of
        shards (``given``), one is generated as in preparation.
        """
        origin = self.origin
        return {
            "view": origin.view,
            "conformers": "etkdg" if origin.conformers == "given" else origin.conformers,
            "pictures": origin.pictures,
            "standardize": origin.standardize,
        }

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns similarities and rows, both (q, min(k, n)), nearest first.

        Args:
            vectors: (q, D) float32.
            k: neighbours per query.

        Raises:
            SearchError: `k` is below 1.
        """
        _check_number(k)
        similarities, rows = self._index.search(_unit(vectors), min(k, len(self)))
        return similarities.clip(-1, 1), rows  # rounding exceeds 1 by up to 1e-7

    def by_id(self, name: str, k: int = 10) -> list[Neighbour]:
        """Returns the k nearest neighbours of a row of the index, excluding the row itself.

        Raises:
            SearchError: no row has that id, or `k` is below 1.
        """
        _check_number(k)
        row = self._row_of(name)
        return [n for r, n in self._answer(self._index.vector(row)[None], k + 1)[0] if r != row][:k]

    def smiles_of(self, name: str) -> str:
        """Returns the SMILES of the row with this id.

        Raises:
            SearchError: no row has that id.
        """
        return self._rows.smiles[self._row_of(name)]

    def _row_of(self, name: str) -> int:
        if name in self._row_of_id:
            return self._row_of_id[name]
        ids = self._rows.ids
        lower = {name.lower(): name for name in ids[:_COMPARED]}
        if close := difflib.get_close_matches(name.lower(), lower):
            mend = f"did you mean {' or '.join(repr(lower[match]) for match in close)}?"
        else:
            mend = f"ids are such as {', '.join(map(repr, ids[:3]))}, all of them the column id of the folder's Parquet"
        raise SearchError(f"no embedded molecule has the id {name!r}; {mend}")

    def by_smiles(self, embedder: Embedder, smiles: Sequence[str], k: int = 10) -> list[list[Neighbour]]:
        """Returns the k nearest neighbours of each of q molecules.

        Args:
            embedder: of the model that made the index, with `query_options`.
            smiles: q SMILES.
            k: neighbours per query.

        Raises:
            SearchError: model or options of the embedder do not match the index, or a query has no vector.
        """
        if embedder.digest != self.origin.model:
            raise SearchError(
                f"the index was made by model {self.origin.model}, not by {embedder.digest}; pass that one"
            )
        for name, needed in self.query_options.items():
            passed = embedder.view_ if name == "view" else getattr(embedder, name)
            if passed != needed:
                raise SearchError(
                    f"queries of this index need {name}={needed!r}, and the embedder has {passed!r}; make it with "
                    "SearchIndex.query_options"
                )
        result = embedder.embed(smiles)
        if result.invalid:
            bad = result.invalid[0]
            raise SearchError(f"query {bad.smiles!r} has no vector: {bad.message}")
        return [[neighbour for _, neighbour in found] for found in self._answer(result.vectors, k)]

    def _answer(self, vectors: NDArray[np.float32], k: int) -> list[list[tuple[int, Neighbour]]]:
        similarities, rows = self.nearest(vectors, k)
        table = self._rows
        return [
            [
                (int(r), Neighbour(table.ids[r], table.smiles[r], table.inchikeys[r], float(s)))
                for r, s in zip(*found, strict=True)
            ]
            for found in zip(rows, similarities, strict=True)
        ]


def _check_number(k: int) -> None:
    if k < 1:
        raise SearchError(f"k={k} must be 1 or more")


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
