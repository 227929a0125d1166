"""Chemical space of a model: a map of the vectors, nearest neighbours, and typical molecules of its clusters.

n molecules, D width of vectors, k neighbours, S anchors.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from mmsa_dist.embed.parquet import Embeddings
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.embed.search import SearchIndex
from mmsa_dist.report.drawing import structure_svg
from mmsa_dist.report.groups import Clusters, Groups, cluster
from mmsa_dist.report.payload import to_payload
from mmsa_dist.report.structures import pack
from mmsa_dist.report.style import HUES
from mmsa_kernels import anchor_scores

LARGEST_MAP = 20_000
"""Most molecules on a map; larger exports are sampled evenly."""
NEIGHBOURS = 6
"""Nearest molecules shown for each molecule of the map."""

_PROPERTIES = {
    "heavy atoms": "Descriptors.HeavyAtomCount",
    "logP (Crippen)": "Crippen.MolLogP",
    "polar surface area, Å²": "Descriptors.TPSA",
    "aromatic rings": "rdMolDescriptors.CalcNumAromaticRings",
    "sp³ share of carbons": "rdMolDescriptors.CalcFractionCSP3",
}


@dataclass(frozen=True)
class Picture:
    """A molecule with its drawing for a gallery."""

    id: str
    smiles: str
    svg: str
    note: str = ""


class ChemicalSpace:
    """The map of an export.

    Rows with the same standardized parent (salts of one drug) have the same vector and are shown once.

    Args:
        embeddings: what to show; more than `LARGEST_MAP` molecules are sampled evenly.
    """

    def __init__(self, embeddings: Embeddings) -> None:
        first: dict[str, int] = {}
        for row, smiles in enumerate(embeddings.smiles):
            first.setdefault(smiles, row)
        distinct = np.fromiter(first.values(), np.int64)
        self.in_all = len(distinct)
        self.shown = _take(embeddings, distinct[_even(len(distinct), LARGEST_MAP)])

    def __len__(self) -> int:
        return len(self.shown.ids)

    @cached_property
    def clusters(self) -> Clusters:
        """Clusters of molecules with similar vectors."""
        return cluster(_unit(self.shown.vectors))

    @cached_property
    def neighbours(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Cosines and rows, both (n, k), of each molecule's nearest others."""
        similarities, rows = SearchIndex.of(self.shown).nearest(self.shown.vectors, NEIGHBOURS + 1)
        others = rows != np.arange(len(self))[:, None]
        # Molecules with equal vectors may come in any order, so a row itself need not be in column 0.
        others[others.all(axis=1), -1] = False
        k = rows.shape[1] - 1
        return similarities[others].reshape(-1, k), rows[others].reshape(-1, k)

    @cached_property
    def method(self) -> str:
        """Projection of the map: UMAP or PCA."""
        return "UMAP" if importlib.util.find_spec("umap") and len(self) > 15 else "PCA"

    @property
    def layout(self) -> str:
        """Description of `method`. PCA has no cosine metric, but near unit vectors have a high cosine."""
        return "UMAP on the cosine" if self.method == "UMAP" else "PCA of the vectors, scaled to length one"

    def coordinates(self) -> NDArray[np.float32]:
        """Returns (n, 2) positions on the map; equal vectors give equal maps."""
        if self.method == "PCA":
            width = min(2, *self.shown.vectors.shape)
            flat = PCA(width, random_state=0).fit_transform(_unit(self.shown.vectors))
            return np.pad(flat, ((0, 0), (0, 2 - width))).astype(np.float32)
        import umap

        reducer = umap.UMAP(metric="cosine", n_neighbors=15, min_dist=0.3, random_state=0, n_jobs=1)
        return reducer.fit_transform(self.shown.vectors).astype(np.float32)

    def payload(self, groups: Sequence[Groups], properties: dict[str, NDArray[np.float32]]) -> str:
        """Returns the script's data (`to_payload`): texts, structures, neighbours and the values that colour dots."""
        from bokeh.palettes import Viridis256

        similarities, rows = self.neighbours
        structures = pack(self.shown.smiles)
        texts = {
            "ids": self.shown.ids,
            "smiles": self.shown.smiles,
            "labels": structures.labels,
            "groups": [{"name": division.name, "labels": division.labels} for division in groups],
            "properties": list(properties),
            "hues": HUES,
            "scale": Viridis256[:244:4],  # without the yellows, which are faint on white
        }
        columns = {
            "neighbours": rows.astype(np.uint16),
            "similarities": np.round(1000 * similarities).astype(np.int16),
            "atoms": structures.atoms,
            "bonds": structures.bonds,
            "x": np.diff(structures.x, prepend=np.uint8(0)),  # modulo 256: a fifth smaller after gzip
            "y": np.diff(structures.y, prepend=np.uint8(0)),
            "label": structures.label,
            "first": structures.first,
            "second": structures.second,
            "stroke": structures.stroke,
        }
        columns |= {f"group{number}": division.of for number, division in enumerate(groups)}
        columns |= {f"property{number}": values.round(2) for number, values in enumerate(properties.values())}
        return to_payload(texts, columns)

    def properties(self) -> dict[str, NDArray[np.float32]]:
        """Returns n values of each simple property by name; NaN if the SMILES does not parse."""
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
        """Returns a molecule of the map for a gallery."""
        smiles = self.shown.smiles[row]
        return Picture(self.shown.ids[row], smiles, _drawn(smiles), note)

    def gallery(self, near: int) -> list[tuple[Picture, list[Picture]]]:
        """Returns the typical molecule of each cluster with its `near` nearest neighbours."""
        similarities, rows = self.neighbours
        result = []
        for row, label, size in zip(
            self.clusters.typical, self.clusters.groups.labels, self.clusters.groups.counts, strict=True
        ):
            found = zip(rows[row, :near], similarities[row, :near], strict=True)
            note = f"{label} · {size:,} molecule{'s' if size != 1 else ''}"
            result.append((self.picture(row, note), [self.picture(int(r), f"{s:.3f}") for r, s in found]))
        return result

    def anchors(self, pretrained: PretrainedModel) -> NDArray[np.float32] | None:
        """Returns (n, S) attention of molecules over memory anchors; None unless the vectors are this model's g."""
        origin = self.shown.summary.origin
        if origin.view != "structure" or origin.model != pretrained.digest:
            return None
        memory = pretrained.model.structure.memory
        with torch.inference_mode():
            g = torch.from_numpy(self.shown.vectors).to(memory.anchors_SD.device)
            scores = anchor_scores(g, memory.anchors_SD.float(), memory.scale, memory.similarity)
            return scores.softmax(dim=1).cpu().numpy()


_drawn = cache(structure_svg)


def _even(n: int, most: int) -> NDArray[np.int64]:
    """Returns at most `most` of the numbers 0..n-1, evenly spaced."""
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
