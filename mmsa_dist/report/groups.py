"""Groups of the molecules on a map: clusters, and their origin as far as the run's files record it.

n molecules.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans

from mmsa_shards.manifest import Manifest
from mmsa_shards.shard import read_entry

CLUSTERS = 8
"""Largest number of clusters: as many as there are distinguishable colours."""
MOST_READ = 2_000_000
"""Most molecules in shards among which those of the map are looked up: about ten seconds."""

_PREFIX = re.compile(r"[A-Za-z_.:-]*[A-Za-z]")


@dataclass(frozen=True)
class Groups:
    """One division of the molecules."""

    name: str
    labels: tuple[str, ...]
    of: NDArray[np.int8]
    """(n,) indices into `labels`."""

    @property
    def counts(self) -> list[int]:
        """Number of molecules per label."""
        return np.bincount(self.of, minlength=len(self.labels)).tolist()


@dataclass(frozen=True)
class Clusters:
    """The n molecules in clusters of similar vectors, largest first."""

    groups: Groups
    typical: list[int]
    """For each cluster, the row nearest to its centre."""


def cluster(unit: NDArray[np.float32]) -> Clusters:
    """Clusters unit vectors by k-means, which approximates spherical k-means: distances rank them as cosines do.

    Args:
        unit: (n, D) unit vectors; equal input gives equal clusters.
    """
    k = min(CLUSTERS, len(np.unique(unit, axis=0)))
    found = MiniBatchKMeans(k, n_init=4, batch_size=4096, random_state=0).fit(unit)
    distances = found.transform(unit)
    near = distances.argmin(axis=1)
    sizes = np.bincount(near, minlength=k)
    order = [int(c) for c in np.argsort(-sizes, kind="stable") if sizes[c]]
    number = np.zeros(k, np.int8)
    number[order] = np.arange(len(order))
    labels = tuple(f"cluster {n}" for n in range(1, len(order) + 1))
    typical = [int(np.where(near == c, distances[:, c], np.inf).argmin()) for c in order]
    return Clusters(Groups("cluster", labels, number[near]), typical)


def by_shards(
    folder: str | os.PathLike[str], manifest: Manifest, smiles: Sequence[str]
) -> tuple[Groups, Groups] | None:
    """Returns split and conformer source of molecules, looked up in the shards by the SMILES of their parents.

    Another tautomer of a molecule in the shards counts as absent, though its InChIKey is the same.

    Returns:
        Both divisions, with molecules that are not in the shards as a separate group; None if the shards hold more
        than `MOST_READ` molecules.

    Raises:
        ShardError: a block is missing or damaged.
    """
    if sum(shard.molecules for shard in manifest.shards) > MOST_READ:
        return None
    wanted = set(smiles)
    found: dict[str, tuple[str, str]] = {}
    for shard in manifest.shards:
        for number, entry in enumerate(shard.blocks):
            block = read_entry(os.fspath(folder), shard.name, number, entry, ("smiles", "conformer_source"))
            parents, sources = (block[column].to_pylist() for column in ("smiles", "conformer_source"))
            found |= {p: (shard.split, source) for p, source in zip(parents, sources, strict=True) if p in wanted}
    absent = ("not in the shards", "not in the shards")
    splits, sources = zip(*(found.get(parent, absent) for parent in smiles), strict=True)
    return _divide("split", splits), _divide("3D from", sources)


def by_prefix(ids: Sequence[str]) -> Groups | None:
    """Groups molecules by the letters at the start of their ids, such as CHEMBL or CID; None if uninformative."""
    prefixes = [match.group() if (match := _PREFIX.match(name)) else "no letters" for name in ids]
    return _divide("id begins with", prefixes) if 1 < len(set(prefixes)) <= CLUSTERS else None


def _divide(name: str, labels: Sequence[str]) -> Groups:
    """Groups molecules by label, the most frequent first."""
    order = [label for label, _ in Counter(labels).most_common()]
    number = {label: n for n, label in enumerate(order)}
    return Groups(name, tuple(order), np.array([number[label] for label in labels], np.int8))
