"""Which methods stand in the table of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mmsa_dist.config.load import load_config
from mmsa_dist.embed.pretrained import PretrainedModel
from mmsa_dist.evaluate.protocols import methods_of
from mmsa_dist.model import MMSAModel
from tests.fixtures.embedders import mini_config, random_embedder
from tests.fixtures.labelled import some_of_freesolv


@pytest.fixture(scope="module")
def model() -> PretrainedModel:
    return random_embedder().pretrained


def lines(methods) -> list[tuple[str, str]]:
    return [(method.features, method.model) for method in methods]


BASELINES = [("ECFP4", "random forest"), ("none", "constant")]


def test_finetune(model):
    methods = methods_of("finetune", {"pre-trained": model}, mini_config())
    tuned, bare = ("GIN, pre-trained", "fine-tuned"), ("GIN, no pre-training", "fine-tuned")
    assert lines(methods) == [tuned, bare, *BASELINES]
    assert methods[0].fit_predict.keywords["architecture"] == methods[1].fit_predict.keywords["architecture"]
    assert lines(methods_of("finetune", {}, mini_config())) == [bare, *BASELINES]
    without = mini_config().model.model_copy(update={"encoders": ("comenet",)})
    blind = PretrainedModel(MMSAModel(without), model.inference.model_copy(update={"model": without}))
    with pytest.raises(
        ValueError, match=r"no encoder 'gin'.*it has comenet: evaluate its vectors with --protocol probe"
    ):
        methods_of("finetune", {"blind": blind}, mini_config())


def test_probe(model):
    methods = methods_of("probe", {"pre-trained": model}, load_config())
    simple = [
        (name, kind)
        for name, kernel in (
            ("MMSA, pre-trained (structure)", "RBF kernel"),
            ("MMSA, no pre-training (structure)", "RBF kernel"),
            ("ECFP4", "Tanimoto kernel"),
        )
        for kind in ("linear", kernel, "k-NN")
    ]
    assert lines(methods) == [*simple, *BASELINES]
    data = some_of_freesolv(6)
    trained, untrained = (methods[number].make(data).value for number in (0, 3))
    assert trained.shape == untrained.shape
    assert not np.allclose(trained, untrained)
    np.testing.assert_array_equal(
        untrained, methods_of("probe", {"pre-trained": model}, load_config())[3].make(data).value
    )
    salt = replace(data, smiles=("CC(=O)O", "CC(=O)[O-].[Na+]", *data.smiles[2:]))
    vectors = methods[0].make(salt).value
    assert not np.allclose(vectors[0], vectors[1]), "molecules are taken as they are given, as fingerprints take them"
    unified = load_config(None, ["embed.view=unified"]).embed
    other = methods_of("probe", {"pre-trained": model}, load_config(), {"pre-trained": unified})
    assert [features for features, _ in lines(other)[:6:3]] == [
        "MMSA, pre-trained (unified)",
        "MMSA, no pre-training (unified)",
    ]
    flat = methods_of("probe", {"pre-trained": model}, load_config(None, ["embed.pictures=false"]))
    assert not np.allclose(flat[0].make(data).value, trained), "pictures are left out as `embed.pictures` says"
    assert flat[0].identity != methods[0].identity
    asked = methods_of("probe", {"pre-trained": model}, load_config(None, ["embed.view=unified"]))
    assert {features for features, _ in lines(asked)[:6]} == {
        "MMSA, pre-trained (unified)",
        "MMSA, no pre-training (unified)",
    }
    assert lines(methods_of("probe", {}, mini_config())) == [*simple[3:], *BASELINES]


def test_the_line_without_pretraining_is_seen_as_the_first_arm_is(model):
    arms = {"2D+3D": model, "+ memory": model}
    views = {"2D+3D": "unified", "+ memory": "structure"}
    embed = {name: load_config(None, [f"embed.view={view}"]).embed for name, view in views.items()}
    methods = methods_of("probe", arms, load_config(), embed)
    embed["+ memory"] = load_config(None, ["embed.pictures=false"]).embed
    flat = methods_of("probe", arms, load_config(), embed)
    assert [method.identity == other.identity for method, other in zip(methods[:9:3], flat[:9:3], strict=True)] == [
        True,
        False,
        True,
    ], "an arm's own options of vectors are those that it is judged with"
    assert [features for features, _ in lines(methods)[:9:3]] == [
        "MMSA, 2D+3D (unified)",
        "MMSA, + memory (structure)",
        "MMSA, no pre-training (unified)",
    ]
    data = some_of_freesolv(6)
    first, bare = (methods[number].make(data).value.shape for number in (0, 6))
    assert first == bare
