"""Chemical space as the model sees it: a map of the vectors, who is near whom, and what typical molecules look like.

n molecules, D width of vectors, k neighbours, S anchors.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import importlib.util
import json
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from mmsa_dist.embed.parquet import Embeddings
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.embed.search import SearchIndex
from mmsa_dist.report.drawing import structure_svg
from mmsa_kernels import anchor_scores

LARGEST_MAP = 20_000
"""Molecules: beyond it every so-many-th one is shown."""
NEIGHBOURS = 6
"""Nearest molecules that the map shows for each."""

_PROPERTIES = {
    "heavy atoms": "Descriptors.HeavyAtomCount",
    "logP (Crippen)": "Crippen.MolLogP",
    "polar surface area, Å²": "Descriptors.TPSA",
    "aromatic rings": "rdMolDescriptors.CalcNumAromaticRings",
    "sp³ share of carbons": "rdMolDescriptors.CalcFractionCSP3",
}


@dataclass(frozen=True)
class Picture:
    """A molecule with its drawing, as a gallery shows it."""

    id: str
    smiles: str
    svg: str
    note: str = ""


class ChemicalSpace:
    """The map of an export.

    Rows whose standardized parent is the same (salts of one drug) have the same vector and are shown once.

    Args:
        embeddings: what to show; of more than `LARGEST_MAP` molecules an even sample.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        _, distinct = np.unique(np.array(embeddings.inchikeys), return_index=True)
        distinct.sort()
        self.in_all = len(distinct)
        self.shown = _take(embeddings, distinct[_even(len(distinct), LARGEST_MAP)])

    def __len__(self) -> int:
        return len(self.shown.ids)

    @cached_property
    def drawings(self) -> list[str]:
        """N SVG elements."""
        return [structure_svg(smiles) for smiles in self.shown.smiles]

    @cached_property
    def neighbours(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and rows (n, k) of the nearest molecules of each, itself left out."""
        similarities, rows = SearchIndex(self.shown).nearest(self.shown.vectors, NEIGHBOURS + 1)
        others = rows != np.arange(len(self))[:, None]
        # Of two molecules with equal vectors either may come first, so the row itself need not be in column 0.
        others[others.all(axis=1), -1] = False
        k = rows.shape[1] - 1
        return similarities[others].reshape(-1, k), rows[others].reshape(-1, k)

    @cached_property
    def method(self) -> str:
        """How the map is drawn."""
        return "UMAP" if importlib.util.find_spec("umap") and len(self) > 15 else "PCA"

    def coordinates(self) -> NDArray[np.float32]:
        """(n, 2) places on the map; the same vectors give the same map."""
        if self.method == "PCA":
            width = min(2, *self.shown.vectors.shape)
            flat = PCA(width, random_state=0).fit_transform(self.shown.vectors)
            return np.pad(flat, ((0, 0), (0, 2 - width))).astype(np.float32)
        import umap

        reducer = umap.UMAP(metric="cosine", n_neighbors=15, min_dist=0.3, random_state=0, n_jobs=1)
        return reducer.fit_transform(self.shown.vectors).astype(np.float32)

    def payload(self, properties: dict[str, NDArray[np.float32]]) -> str:
        """What the page's script reads: JSON, gzipped, in base64, so that no character of it is markup."""
        similarities, rows = self.neighbours
        content = {
            "ids": self.shown.ids,
            "smiles": self.shown.smiles,
            "drawings": self.drawings,
            "neighbours": rows.tolist(),
            "similarities": np.round(similarities.astype(float), 3).tolist(),
            "properties": {
                name: [None if np.isnan(v) else round(float(v), 2) for v in values]
                for name, values in properties.items()
            },
        }
        return base64.b64encode(gzip.compress(json.dumps(content).encode(), 9, mtime=0)).decode()

    def properties(self) -> dict[str, NDArray[np.float32]]:
        """N values of each simple property, by name; NaN where RDKit cannot tell."""
        from rdkit import Chem, rdBase
        from rdkit.Chem import Crippen, Descriptors, rdMolDescriptors

        modules = {"Crippen": Crippen, "Descriptors": Descriptors, "rdMolDescriptors": rdMolDescriptors}
        with rdBase.BlockLogs():
            mols = [Chem.MolFromSmiles(smiles) for smiles in self.shown.smiles]
        values = {}
        for name, path in _PROPERTIES.items():
            module, function_name = path.split(".")
            function = getattr(modules[module], function_name)
            values[name] = np.array([np.nan if m is None else function(m) for m in mols], dtype=np.float32)
        return values

    def picture(self, row: int, note: str = "") -> Picture:
        """A molecule of the map for a gallery."""
        return Picture(self.shown.ids[row], self.shown.smiles[row], self.drawings[row], note)

    def gallery(self, queries: int, near: int) -> list[tuple[Picture, list[Picture]]]:
        """Typical molecules, each with its `near` nearest neighbours: one for each of `queries` regions."""
        unit = _unit(self.shown.vectors)
        regions = KMeans(min(queries, len(self)), n_init=4, random_state=0).fit(unit)
        distances = regions.transform(unit)
        similarities, rows = self.neighbours
        result = []
        for region in np.argsort(-np.bincount(regions.labels_)):
            row = int(distances[:, region].argmin())
            found = zip(rows[row, :near], similarities[row, :near], strict=True)
            result.append((self.picture(row), [self.picture(int(r), f"{s:.3f}") for r, s in found]))
        return result

    def anchors(self, pretrained: PretrainedModel) -> NDArray[np.float32] | None:
        """(n, S) attention of each molecule over the memory's anchors; None unless the vectors are this model's g."""
        origin = self.shown.summary.origin
        if origin.view != "structure" or origin.model != pretrained.digest:
            return None
        memory = pretrained.model.structure.memory
        with torch.inference_mode():
            g = torch.from_numpy(self.shown.vectors).to(memory.anchors_SD.device)
            scores = anchor_scores(g, memory.anchors_SD.float(), memory.scale, memory.similarity)
            return scores.softmax(dim=1).cpu().numpy()


def _even(n: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the numbers 0..n-1, evenly spread."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).round().astype(np.int64)


def _take(embeddings: Embeddings, rows: NDArray[np.int64]) -> Embeddings:
    return dataclasses.replace(
        embeddings,
        ids=[embeddings.ids[r] for r in rows],
        inchikeys=[embeddings.inchikeys[r] for r in rows],
        smiles=[embeddings.smiles[r] for r in rows],
        vectors=embeddings.vectors[rows],
    )


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(norms > 0, norms, 1)).astype(np.float32, copy=False)
