from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mmsa_dist.embed import Embedder, EmbeddingError
from mmsa_dist.model import MMSAModel
from mmsa_shards.from_smiles import smiles_to_block
from mmsa_shards.options import Columns, Conformers, SmilesOptions
from tests.fixtures.embedders import DRUGS, mini_config, random_embedder
from tests.fixtures.standardization import DEFAULT

TOLERANCE = 1e-6  # absolute, of vectors whose elements lie in about (-1, 1)
VIEWS = ("structure", "unified", "gin", "comenet", "resnet")
WITH_3D = SmilesOptions(
    standardization=DEFAULT,
    columns=Columns(conformers=Conformers(mode="etkdg", count=1, seed=0, timeout_s=5)),
)


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


def test_rows_without_a_vector_may_be_dropped(embedder):
    given = [DRUGS[0], "not a molecule", None, DRUGS[1], 5]
    dropping = clone(embedder).set_params(on_error="drop")
    vectors = dropping.transform(given)
    np.testing.assert_array_equal(vectors, embedder.transform(given)[[0, 3]])
    assert dropping.kept_.tolist() == [0, 3]
    assert dropping.kept_.dtype == np.int64
    assert [(bad.row, bad.reason) for bad in dropping.report_] == [(1, "syntax"), (2, "empty"), (4, "not_text")]
    labels = np.array(["a", "b", "c", "d", "e"])
    assert labels[dropping.kept_].tolist() == ["a", "d"]


def test_all_or_none_may_be_dropped(embedder):
    dropping = clone(embedder).set_params(on_error="drop")
    assert dropping.transform(["junk", None]).shape == (0, 16)
    assert dropping.kept_.shape == (0,)
    assert dropping.transform([]).shape == (0, 16)
    assert dropping.transform(DRUGS[:2]).shape == (2, 16)
    assert dropping.kept_.tolist() == [0, 1]
    embedder.transform([DRUGS[0], "junk"])
    assert embedder.kept_.tolist() == [0], "whatever on_error is"


def test_dropped_rows_and_pandas(embedder):
    """A list has no index; the index of a column would not fit, and pandas says so rather than shift the rows."""
    dropping = clone(embedder).set_params(on_error="drop").set_output(transform="pandas")
    assert dropping.transform([DRUGS[0], "junk", DRUGS[1]]).index.tolist() == [0, 1]
    with pytest.raises(ValueError, match="Shape of passed values"):
        dropping.transform(pd.Series([DRUGS[0], "junk", DRUGS[1]]))


@pytest.fixture(scope="module")
def lone() -> Embedder:
    """Without reference rows: each molecule is the only neighbour of its own."""
    torch.manual_seed(0)
    config = mini_config()
    return Embedder.from_model(MMSAModel(config.model), config, None)


@pytest.fixture(scope="module")
def block() -> pa.RecordBatch:
    """36 molecules with conformers, so that every view sees them; more than a batch of 33."""
    chains = ["C" * n + end for n in range(1, 6) for end in ("O", "N", "Cl", "C(=O)O", "c1ccccc1")]
    return smiles_to_block(DRUGS + chains, WITH_3D).block


@pytest.mark.parametrize(
    ("view", "reference"),
    [*((view, "with") for view in VIEWS), ("structure", "without")],  # no other view sees the reference rows
)
def test_a_vector_depends_on_its_molecule_alone(embedder, lone, block, view, reference):
    seen = clone(embedder if reference == "with" else lone).set_params(view=view, conformers="given")

    def vectors(block: pa.RecordBatch, batch_size: int) -> np.ndarray:
        return seen.set_params(batch_size=batch_size).embed_block(block)[0]

    whole = vectors(block, 256)
    if reference == "with":
        assert np.abs(whole - whole[0]).max(axis=1)[1:].min() > 100 * TOLERANCE, "the vectors tell molecules apart"
    for batch_size in (1, 2, 33):
        np.testing.assert_allclose(vectors(block, batch_size), whole, atol=TOLERANCE, rtol=0)
    backwards = block.take(pa.array(np.arange(block.num_rows)[::-1]))
    np.testing.assert_allclose(vectors(backwards, 10)[::-1], whole, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(vectors(block.slice(7, 5), 4), whole[7:12], atol=TOLERANCE, rtol=0)


def test_what_is_no_molecule_disturbs_no_other(embedder):
    whole = embedder.transform(DRUGS)
    between = clone(embedder).set_params(batch_size=3).transform(["junk", *DRUGS[:4], None, *DRUGS[4:]])
    np.testing.assert_allclose(np.delete(between, [0, 5], axis=0), whole, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("value", [5, b"CCO", 2.5, ["CCO"], np.array(["C", "N"])], ids=lambda v: type(v).__name__)
def test_what_is_not_text_is_not_called_empty(embedder, value):
    vectors = embedder.transform([DRUGS[0], value])
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True]
    (bad,) = embedder.report_
    assert (bad.row, bad.reason) == (1, "not_text")
    assert bad.message == f"of type {type(value).__name__}, not the text of a SMILES"


@pytest.mark.parametrize("missing", [None, float("nan"), np.float32("nan"), pd.NA, pd.NaT], ids=repr)
def test_missing_values_are_empty(embedder, missing):
    assert np.isnan(embedder.transform([missing])).all()
    assert [bad.reason for bad in embedder.report_] == ["empty"]


def test_masked_elements_are_missing(embedder):
    column = np.ma.array(["CCO", "CCC"], mask=[False, True])
    vectors = embedder.transform(column)
    assert [(bad.row, bad.reason) for bad in embedder.report_] == [(1, "empty")]
    np.testing.assert_allclose(vectors[:1], embedder.transform(["CCO"]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_what_has_no_order_is_refused(embedder, kind):
    with pytest.raises(TypeError, match=rf"not a {kind.__name__}, which has no order .* pass sorted"):
        embedder.transform(kind(["CCO", "CCC"]))


def test_a_molecule_that_is_too_large_is_so_for_the_model(embedder):
    embedder.transform(["C" * 600])
    (bad,) = embedder.report_
    assert bad.reason == "too_many_atoms"
    assert "600 heavy atoms" in bad.message
    assert bad.message.endswith("of the shards that the model was trained on; no setting of an embedding changes that")


def test_numbers_that_are_not_finite_are_said():
    broken = random_embedder(5)
    with torch.no_grad():
        next(broken.pretrained.model.parameters()).fill_(torch.nan)
    assert np.isnan(broken.transform(DRUGS[:2])).all()
    assert [(bad.row, bad.reason) for bad in broken.report_] == [(0, "not_finite"), (1, "not_finite")]
    with pytest.raises(EmbeddingError, match="numbers that are not finite"):
        broken.set_params(on_error="raise").transform(DRUGS[:2])


def test_3d_takes_part_only_where_it_is_asked_for(embedder):
    flat = clone(embedder).set_params(view="unified")
    with_3d = clone(flat).set_params(conformers="etkdg")
    assert np.abs(flat.transform(DRUGS) - with_3d.transform(DRUGS)).max() > 1e-3
    block = smiles_to_block(DRUGS, WITH_3D).block
    given = clone(flat).set_params(conformers="given")
    np.testing.assert_allclose(given.embed_block(block)[0], with_3d.transform(DRUGS), atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(flat.embed_block(block)[0], flat.transform(DRUGS), atol=TOLERANCE, rtol=0)


def test_a_molecule_that_the_view_cannot_see_has_no_vector(embedder):
    flat = smiles_to_block(DRUGS[:2], SmilesOptions(standardization=DEFAULT)).block
    vectors, without = clone(embedder).set_params(view="comenet", conformers="given").embed_block(flat)
    assert np.isnan(vectors).all()
    assert [reason for reason, _ in without.values()] == ["no_modality"] * 2


def test_smiles_have_no_conformers_that_could_be_given(embedder):
    with pytest.raises(ValueError, match="conformers='given' takes those of shards, not of SMILES; prepare"):
        clone(embedder).set_params(conformers="given").transform(DRUGS[:2])


def test_pictures_can_be_left_out(embedder):
    without = clone(embedder).set_params(view="unified", pictures=False)
    assert np.isfinite(without.transform(DRUGS)).all()
    # The graph is all that is left, so u is its code.
    graph = clone(embedder).set_params(view="gin")
    np.testing.assert_allclose(without.transform(DRUGS), graph.transform(DRUGS), atol=TOLERANCE, rtol=0)


def test_molecules_can_be_taken_as_they_are_given(embedder):
    as_given = clone(embedder).set_params(standardize=False)
    salt, acid = "CC(=O)[O-].[Na+]", "CC(=O)O"
    given, standardized = as_given.embed([salt, acid, "*C", "C" * 501]), embedder.embed([salt, acid])
    assert given.smiles == (salt, acid, None, None)
    assert [bad.reason for bad in given.invalid] == ["undefined_atom", "too_many_atoms"]
    assert standardized.smiles == (acid, acid)
    np.testing.assert_array_equal(standardized.vectors[0], standardized.vectors[1])
    assert np.abs(given.vectors[0] - given.vectors[1]).max() > 1e-3
    np.testing.assert_allclose(given.vectors[1], standardized.vectors[1], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "column",
    [
        np.array(DRUGS[:3]),
        np.array(DRUGS[:3], dtype=object)[:, None],
        pd.Series(DRUGS[:3], index=[7, 8, 9]),
        pd.DataFrame({"smiles": DRUGS[:3]}),
        pa.array(DRUGS[:3]),
        pa.chunked_array([DRUGS[:1], DRUGS[1:3]]),
        pa.array(DRUGS[:3]).dictionary_encode(),
        pa.table({"smiles": DRUGS[:3]}),
        pd.Series(DRUGS[:3], dtype="string"),
        pd.Series(DRUGS[:3], dtype="category"),
        tuple(DRUGS[:3]),
        iter(DRUGS[:3]),
    ],
    ids=lambda column: type(column).__name__,
)
def test_takes_any_column(embedder, column):
    np.testing.assert_array_equal(embedder.transform(column), embedder.transform(DRUGS[:3]))


def test_takes_polars(embedder):
    polars = pytest.importorskip("polars")
    for column in (polars.Series("smiles", [*DRUGS[:2], None]), polars.DataFrame({"smiles": [*DRUGS[:2], None]})):
        np.testing.assert_array_equal(embedder.transform(column), embedder.transform([*DRUGS[:2], None]))
        assert [bad.reason for bad in embedder.report_] == ["empty"]


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
    unfitted = make_pipeline(clone(embedder))
    assert unfitted.transform(DRUGS[:2]).shape == (2, 16), "there is nothing to fit"


def test_travels_to_another_process(embedder):
    arrived = pickle.loads(pickle.dumps(embedder))  # noqa: S301  as joblib sends it
    np.testing.assert_array_equal(arrived.transform(DRUGS), embedder.transform(DRUGS))


def test_raises_where_it_is_asked_to(embedder):
    strict = clone(embedder).set_params(on_error="raise")
    with pytest.raises(EmbeddingError, match=r"1 of 2 rows have no vector, the first of them row 1 \('xx'\)"):
        strict.transform([DRUGS[0], "xx"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"view": "other"}, "view='other' is not a view of this model; it has structure, unified, gin"),
        ({"view": "comenet"}, "reads conformers; pass conformers='etkdg'"),
        ({"view": "resnet", "pictures": False}, "reads pictures"),
        ({"on_error": "skip"}, "on_error='skip' must be one of nan, raise, drop"),
        ({"conformers": "all"}, "must be one of none, given, etkdg"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of 1 or more, or 'auto'"),
        ({"batch_size": None}, "batch_size=None must be a whole number"),
        ({"readers": None}, "readers=None must be a whole number of 0 or more"),
        ({"device": "gpu"}, "device='gpu' is no device that torch knows"),
        ({"device": "cuda:99"}, "device='cuda:99': torch sees [0-9]+ GPUs here"),
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
    with pytest.raises(TypeError, match="not a dict; pass one column"):
        embedder.transform({"smiles": ["CCO"]})
    with pytest.raises(TypeError, match="not a NoneType"):
        embedder.transform(None)


def test_embeds_without_the_extras(embedder, tmp_path):
    """Where they are installed torch-geometric brings triton along, by way of torch._dynamo; nothing needs it."""
    embedder.save_pretrained(tmp_path / "model")
    code = f"""
import sys
for name in ("ray", "deepspeed", "webdataset", "bokeh", "faiss", "triton", "tensorboard", "umap", "matplotlib"):
    sys.modules[name] = None  # importing it is an ImportError
from mmsa_dist.embed import Embedder
print(Embedder.from_pretrained({str(tmp_path / "model")!r}).transform({DRUGS[:2]!r}).shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "(2, 16)\n", done.stderr
