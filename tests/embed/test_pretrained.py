from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsa_dist.embed import Embedder, ModelFolderError, PretrainedModel
from mmsa_dist.embed.pretrained import Inference
from mmsa_dist.model import MMSAModel
from tests.fixtures.embedders import DRUGS, mini_config, random_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


@pytest.fixture
def folder(embedder, tmp_path) -> Path:
    embedder.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, **changes: object) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | changes))


def test_round_trip(embedder, folder):
    loaded = Embedder.from_pretrained(folder)
    np.testing.assert_array_equal(loaded.transform(DRUGS), embedder.transform(DRUGS))
    assert loaded.digest == embedder.digest
    assert torch.equal(loaded.pretrained.reference_RC, embedder.pretrained.reference_RC)
    assert loaded.pretrained.reference_RC.dtype == torch.float16
    assert not loaded.pretrained.model.training
    by_name = Embedder(str(folder))
    np.testing.assert_array_equal(by_name.transform(DRUGS), embedder.transform(DRUGS))


def test_without_reference_rows(tmp_path):
    config = mini_config()
    alone = Embedder.from_model(MMSAModel(config.model), config, None)
    alone.save_pretrained(tmp_path / "model")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    loaded = Embedder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(loaded.transform(DRUGS), alone.transform(DRUGS))


def test_the_digest_tells_models_apart(embedder):
    assert random_embedder(0).digest == embedder.digest
    assert random_embedder(1).digest != embedder.digest
    pretrained = embedder.pretrained
    other_rows = PretrainedModel(pretrained.model, pretrained.inference, pretrained.reference_RC[:5])
    assert other_rows.digest != embedder.digest


def test_loading_leaves_random_numbers_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    Embedder.from_pretrained(folder)
    assert torch.equal(torch.rand(3), expected)


def test_the_card_says_what_a_stranger_has_to_know(embedder, folder):
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mmsa-dist\n")
    assert embedder.digest in card
    assert "| training loss | 1.5 |" in card
    assert "| data.molecules | 20 |" in card
    assert "{" not in card.replace("{'", ""), "every field is filled"
    assert json.loads((folder / "config.json").read_text())["metrics"]["memory/g_cosine"] is None  # NaN is not JSON


def test_saving_again_replaces_whole(embedder, folder):
    random_embedder(1).save_pretrained(folder)
    assert Embedder.from_pretrained(folder).digest == random_embedder(1).digest
    assert [p.name for p in folder.parent.iterdir()] == ["model"], "nothing is left beside it"


def test_saving_never_overwrites_something_else(embedder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        embedder.save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        embedder.save_pretrained(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_reference_rows_must_fit(embedder):
    pretrained = embedder.pretrained
    with pytest.raises(ValueError, match=r"\(3, 5\) do not fit model.code=32"):
        PretrainedModel(pretrained.model, pretrained.inference, torch.zeros(3, 5))


def test_what_is_no_model_is_said(folder, tmp_path):
    with pytest.raises(ModelFolderError, match="does not exist; `mmsa pretrain` writes one"):
        Embedder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match="is not a model: it lacks"):
        Embedder.from_pretrained(tmp_path)


def test_an_unfit_version_is_said(folder):
    rewrite(folder, format=2, mmsa_dist="9.0")
    with pytest.raises(ModelFolderError, match=r"model format 2, written by mmsa-dist 9\.0"):
        Embedder.from_pretrained(folder)
    rewrite(folder, format=1, schema_version=7)
    with pytest.raises(ModelFolderError, match="was trained on block schema 7"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "reference.safetensors"])
def test_damage_is_noticed(folder, name):
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match=rf"{name} is damaged"):
        Embedder.from_pretrained(folder)


def test_a_changed_configuration_is_noticed(folder):
    inference = json.loads((folder / "config.json").read_text())["inference"]
    rewrite(folder, inference=inference | {"picture_size": 64})
    with pytest.raises(ModelFolderError, match="was changed after the export"):
        Embedder.from_pretrained(folder)
    rewrite(folder, inference=inference | {"surprise": 1})
    with pytest.raises(ModelFolderError, match=r"inference\.surprise is not usable"):
        Embedder.from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelFolderError, match="is not JSON"):
        Embedder.from_pretrained(folder)


def test_files_outside_the_folder_are_not_read(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    files = {"../secret": hashlib.sha256(b"x").hexdigest()}
    inference = Inference.model_validate_json(json.dumps(json.loads((folder / "config.json").read_text())["inference"]))
    from mmsa_dist.embed.pretrained import _identity

    rewrite(folder, files=files, digest=_identity(inference, files))
    with pytest.raises(ModelFolderError, match="is no file of a model"):
        Embedder.from_pretrained(folder)


def test_a_pickle_is_never_loaded(folder):
    (folder / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(ModelFolderError, match="is damaged"):
        Embedder.from_pretrained(folder)


def test_an_unregistered_encoder_is_said(embedder, tmp_path):
    inference = embedder.pretrained.inference
    model = inference.model.model_copy(update={"encoders": ("gin", "mine")})
    from mmsa_dist.embed.pretrained import _build

    with pytest.raises(ModelFolderError, match="'mine', which is not registered"):
        _build(tmp_path, inference.model_copy(update={"model": model}))
