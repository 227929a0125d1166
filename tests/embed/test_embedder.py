from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmsa_dist.embed import Embedder, EmbeddingError
from mmsa_shards.from_smiles import smiles_to_block
from tests.fixtures.embedders import DRUGS, random_embedder

TOLERANCE = 1e-6  # absolute, of vectors whose elements lie in about (-1, 1)
VIEWS = ("structure", "unified", "gin", "resnet")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


def test_a_row_for_every_row_in_order(embedder):
    given = [DRUGS[0], "not a molecule", None, DRUGS[1], "", float("nan"), "C" * 600]
    vectors = embedder.transform(given)
    assert vectors.shape == (7, 16)
    assert vectors.dtype == np.float32
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, False, True, True, True]
    assert [(bad.row, bad.smiles) for bad in embedder.report_[:2]] == [(1, "not a molecule"), (2, None)]
    assert [bad.reason for bad in embedder.report_] == ["syntax", "empty", "empty", "empty", "too_many_atoms"]
    assert all(bad.message for bad in embedder.report_)
    np.testing.assert_array_equal(vectors[3], embedder.transform([DRUGS[1]])[0])


@pytest.mark.parametrize("view", VIEWS)
def test_a_vector_depends_on_its_molecule_alone(embedder, view):
    def vectors(smiles: list[str], batch_size: int) -> np.ndarray:
        return clone(embedder).set_params(view=view, batch_size=batch_size).transform(smiles)

    whole = vectors(DRUGS, 256)
    assert np.abs(whole - whole[0]).max(axis=1)[1:].min() > 100 * TOLERANCE, "the vectors tell molecules apart"
    for batch_size in (1, 2, 3, 10):
        np.testing.assert_allclose(vectors(DRUGS, batch_size), whole, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(vectors(DRUGS[::-1], 4)[::-1], whole, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(vectors(["junk", *DRUGS[4:]], 5)[1:], whole[4:], atol=TOLERANCE, rtol=0)


def test_3d_takes_part_only_where_it_is_asked_for(embedder):
    flat = clone(embedder).set_params(view="unified")
    with_3d = clone(flat).set_params(conformers="etkdg")
    assert np.abs(flat.transform(DRUGS) - with_3d.transform(DRUGS)).max() > 1e-3
    block, _, _ = smiles_to_block(DRUGS, conformers="etkdg", seed=0, conformer_timeout_s=5, max_atoms=100)
    given = clone(flat).set_params(conformers="given")
    np.testing.assert_allclose(given.embed_block(block)[0], with_3d.transform(DRUGS), atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(flat.embed_block(block)[0], flat.transform(DRUGS), atol=TOLERANCE, rtol=0)


def test_a_molecule_that_the_view_cannot_see_has_no_vector(embedder):
    seen = clone(embedder).set_params(view="comenet", conformers="given")
    vectors = seen.transform(DRUGS[:2])
    assert np.isnan(vectors).all()
    assert {bad.reason for bad in seen.report_} == {"no_modality"}


def test_pictures_can_be_left_out(embedder):
    without = clone(embedder).set_params(view="unified", pictures=False)
    assert np.isfinite(without.transform(DRUGS)).all()
    # The graph is all that is left, so u is its code.
    graph = clone(embedder).set_params(view="gin")
    np.testing.assert_allclose(without.transform(DRUGS), graph.transform(DRUGS), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "column",
    [
        np.array(DRUGS[:3]),
        np.array(DRUGS[:3], dtype=object)[:, None],
        pd.Series(DRUGS[:3], index=[7, 8, 9]),
        pd.DataFrame({"smiles": DRUGS[:3]}),
        pa.array(DRUGS[:3]),
        pa.chunked_array([DRUGS[:1], DRUGS[1:3]]),
        tuple(DRUGS[:3]),
        iter(DRUGS[:3]),
    ],
    ids=lambda column: type(column).__name__,
)
def test_takes_any_column(embedder, column):
    np.testing.assert_array_equal(embedder.transform(column), embedder.transform(DRUGS[:3]))


def test_no_rows(embedder):
    assert embedder.transform([]).shape == (0, 16)
    assert embedder.transform([None]).shape == (1, 16)


def test_is_a_scikit_learn_transformer(embedder):
    pipeline = make_pipeline(clone(embedder), StandardScaler())
    assert pipeline.fit_transform(DRUGS).shape == (len(DRUGS), 16)
    assert embedder.get_feature_names_out()[:2].tolist() == ["mmsa_structure_0", "mmsa_structure_1"]
    frame = clone(embedder).set_output(transform="pandas").fit_transform(DRUGS)
    assert frame.columns[0] == "mmsa_structure_0"
    copy = clone(embedder)
    assert copy.get_params().keys() == embedder.get_params().keys()
    assert copy.model is embedder.model, "cloning shares the weights"


def test_raises_where_it_is_asked_to(embedder):
    strict = clone(embedder).set_params(on_error="raise")
    with pytest.raises(EmbeddingError, match=r"1 of 2 rows have no vector, the first of them row 1 \('xx'\)"):
        strict.transform([DRUGS[0], "xx"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"view": "other"}, "view='other' is not a view of this model; it has structure, unified, gin"),
        ({"view": "comenet"}, "sees conformers only; pass conformers='etkdg'"),
        ({"view": "resnet", "pictures": False}, "sees pictures only"),
        ({"on_error": "drop"}, "on_error='drop' must be one of nan, raise"),
        ({"conformers": "all"}, "must be one of none, given, etkdg"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
    ],
)
def test_wrong_options_are_said(embedder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        clone(embedder).set_params(**options).transform(DRUGS[:1])


def test_one_string_is_not_a_list(embedder):
    with pytest.raises(TypeError, match=r"pass \['CCO'\]"):
        embedder.transform("CCO")
    with pytest.raises(TypeError, match="one column"):
        embedder.transform(np.array([["CCO", "C"]]))


def test_import_is_light():
    code = "import sys, mmsa_dist.embed; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"ray", "deepspeed", "webdataset", "bokeh", "faiss", "triton", "matplotlib", "umap", "pandas"}
    # torch brings triton along where it is installed, scikit-learn pandas.
    assert not heavy & set(loaded) - {"triton", "pandas"}
