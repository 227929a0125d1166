"""Groups of the map against groups known beforehand, and the packing of what the script reads."""

from __future__ import annotations

import numpy as np
import pytest

from mmsa_dist.report import groups
from mmsa_dist.report.groups import by_prefix, by_shards, cluster
from mmsa_dist.report.payload import to_payload
from mmsa_shards.manifest import Manifest


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_clusters_are_those_that_were_made_the_largest_first():
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(8), [400, 300, 200, 100, 80, 60, 40, 20])
    order = random.permutation(len(truth))
    truth = truth[order]
    vectors = unit(50 * np.eye(8)[truth] + random.normal(size=(len(truth), 8)))
    found = cluster(vectors)
    assert found.groups.counts == [400, 300, 200, 100, 80, 60, 40, 20]
    assert found.groups.of.tolist() == truth.tolist()
    assert found.groups.labels[0] == "cluster 1"
    assert [truth[row] for row in found.typical] == list(range(8))
    middle = vectors[truth == 0].mean(axis=0)
    assert (
        np.linalg.norm(vectors[found.typical[0]] - middle) == np.linalg.norm(vectors[truth == 0] - middle, axis=1).min()
    )


def test_fewer_different_vectors_than_clusters():
    found = cluster(unit(np.array([[1.0, 0], [1, 0], [0, 1], [1, 0]])))
    assert found.groups.of.tolist() == [0, 0, 1, 0]
    assert found.groups.counts == [3, 1]


def test_molecules_that_are_not_in_the_shards_are_a_group(tiny_shards, monkeypatch):
    manifest = Manifest.load(tiny_shards)
    split, source = by_shards(tiny_shards, manifest, ["CCO", "FC(F)(F)CCBr"])
    assert [split.labels[n] for n in split.of] == ["train", "not in the shards"]
    assert [source.labels[n] for n in source.of] == ["etkdg", "not in the shards"]
    monkeypatch.setattr(groups, "MOST_READ", 54)
    assert by_shards(tiny_shards, manifest, ["CCO"]) is None


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        (["CHEMBL25", "CID2244", "CHEMBL1"], ("CHEMBL", "CID")),
        (["ZINC_a-1", "7", "ZINC_a-2"], ("ZINC_a", "no letters")),
        (["CID1", "CID2"], None),
        ([f"{letter}1" for letter in "abcdefghi"], None),
    ],
)
def test_ids_are_divided_by_their_letters(ids, labels):
    found = by_prefix(ids)
    assert (found.labels if found else None) == labels


def test_a_type_that_the_script_does_not_read_is_refused():
    with pytest.raises(ValueError, match=r"column x: the script reads int8, .* not float64"):
        to_payload({}, {"x": np.zeros(2)})
