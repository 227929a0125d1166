"""Nearest neighbours among exported vectors, by molecule or by id.

n rows in the index, q queries, k neighbours, D width.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.embed.parquet import Embeddings, Origin, read_embeddings
from mmsa_shards.folder import Folder

_COMPARED = 20_000  # ids with one that is not there: a second


class SearchError(ValueError):
    """A question that cannot be answered; the message says why and what to do."""


@dataclass(frozen=True)
class Neighbour:
    """A row of the index near a query."""

    id: str
    smiles: str
    """Of the molecule that was embedded: the standardized parent, unless it was taken as given."""
    inchikey: str | None
    similarity: float
    """Cosine of the two vectors, in [-1, 1]."""


class SearchIndex:
    """An inner-product index over the unit vectors of an export (`mmsa_dist.embed.vector_index`).

    Args:
        embeddings: what `read_embeddings` gives.
        keep_in: folder in which an index of many vectors is looked for, and kept once it is built; None searches
            exactly, however many there are.

    Raises:
        SearchError: there is no vector among them.
    """

    def __init__(self, embeddings: Embeddings, keep_in: str | os.PathLike[str] | None = None) -> None:
        from mmsa_dist.embed.vector_index import VectorIndex  # here, so that embedding does not need FAISS

        if not embeddings.ids:
            raise SearchError(f"no row of {embeddings.summary.folder} has a vector; there is nothing to search")
        self._rows = embeddings
        self._row_of_id = {name: row for row, name in reversed(list(enumerate(embeddings.ids)))}
        unit = _unit(embeddings.vectors)
        of = hashlib.sha256(repr(embeddings.summary.origin).encode()).hexdigest()
        self._index = VectorIndex.exact(unit) if keep_in is None else VectorIndex.kept(keep_in, unit, of)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> SearchIndex:
        """Opens the index of a finished export; of many vectors it is built at the first time, and kept there.

        Where the folder is not on this machine nothing is kept there, and every vector is compared with a query.

        Raises:
            ExportError: no finished export is there.
            SearchError: none of its rows has a vector.
        """
        return cls(read_embeddings(folder), keep_in=Folder(folder).path)

    @property
    def recall(self) -> float:
        """Share of the 10 nearest that is found, as measured on a sample; 1 where nothing can be missed."""
        return 1.0 if self._index.about is None else self._index.about.recall

    def __len__(self) -> int:
        return len(self._rows.ids)

    @property
    def origin(self) -> Origin:
        """What made the vectors of the index."""
        return self._rows.summary.origin

    @property
    def query_options(self) -> dict[str, Any]:
        """Options with which an `Embedder` of the same model makes the vectors of queries.

        They are those of the index. A SMILES brings no conformer, so where the index has those of shards
        (``given``), one is made as preparation makes it.
        """
        origin = self.origin
        return {
            "view": origin.view,
            "conformers": "etkdg" if origin.conformers == "given" else origin.conformers,
            "pictures": origin.pictures,
            "standardize": origin.standardize,
        }

    def nearest(self, vectors: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Returns similarities and rows, both (q, min(k, n)), the nearest first; row -1 where fewer were found.

        Args:
            vectors: (q, D) float32.
            k: neighbours for each.

        Raises:
            SearchError: `k` is below 1.
        """
        _check_number(k)
        similarities, rows = self._index.search(_unit(vectors), min(k, len(self)))
        return similarities.clip(-1, 1), rows  # rounding goes beyond by 1e-7

    def by_id(self, name: str, k: int = 10) -> list[Neighbour]:
        """The k nearest neighbours of a row of the index, itself left out.

        Raises:
            SearchError: no row has that id, or `k` is below 1.
        """
        _check_number(k)
        row = self._row_of(name)
        return [n for r, n in self._answer(self._rows.vectors[[row]], k + 1)[0] if r != row][:k]

    def smiles_of(self, name: str) -> str:
        """The SMILES of the row of the index that has this id.

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
        """The k nearest neighbours of each of q molecules.

        Args:
            embedder: of the model that the index was made with, and with `query_options`.
            smiles: q molecules.
            k: neighbours for each.

        Raises:
            SearchError: the embedder makes other vectors than the index holds, or a query is no molecule.
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
                if r >= 0
            ]
            for found in zip(rows, similarities, strict=True)
        ]


def _check_number(k: int) -> None:
    if k < 1:
        raise SearchError(f"k={k} must be 1 or more")


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.where(norms > 0, norms, 1), dtype=np.float32)
