from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HTTPError

from mmsa_dist import __version__
from mmsa_dist.embed import Embedder, ModelFolderError, PretrainedModel
from mmsa_dist.embed import pretrained as pretrained_module
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
    assert header(folder) == {
        "library_name": "mmsa-dist",
        "pipeline_tag": "feature-extraction",
        "tags": ["chemistry", "molecules", "molecular-representation", "self-supervised"],
    }
    assert embedder.digest in card
    assert "| training loss | 1.5 |" in card
    assert "| data.molecules | 20 |" in card
    assert "{" not in card.replace("{'", ""), "every field is filled"
    assert json.loads((folder / "config.json").read_text())["metrics"]["memory/g_cosine"] is None  # NaN is not JSON


def header(folder: Path) -> dict[str, object]:
    """The card's metadata, as the hub reads them."""
    return ModelCard.load(folder / "README.md").data.to_dict()


def test_the_licence_of_the_weights_stands_in_the_card_and_stays(embedder, tmp_path):
    for name, license in (("none", None), ("hub", "apache-2.0"), ("odd", 'mine: "as is" {no} # warranty')):
        embedder.save_pretrained(tmp_path / name, license=license)
        assert header(tmp_path / name).get("license") == license
        assert ModelCard.load(tmp_path / name / "README.md").text.count(license or "set by whoever trained") == 1
        assert Embedder.from_pretrained(tmp_path / name).digest == embedder.digest
    Embedder.from_pretrained(tmp_path / "hub").save_pretrained(tmp_path / "again")
    assert header(tmp_path / "again")["license"] == "apache-2.0"
    with pytest.raises(ValueError, match=r"license is empty; pass a name such as 'apache-2\.0'"):
        embedder.save_pretrained(tmp_path / "hub", license=" ")
    assert header(tmp_path / "hub")["license"] == "apache-2.0"
    rewrite(tmp_path / "hub", license=["apache-2.0"])
    with pytest.raises(ModelFolderError, match=r"license=\['apache-2.0'\] is no name"):
        Embedder.from_pretrained(tmp_path / "hub")


def test_saving_again_replaces_whole(embedder, folder):
    random_embedder(1).save_pretrained(folder)
    assert Embedder.from_pretrained(folder).digest == random_embedder(1).digest
    assert [p.name for p in folder.parent.iterdir()] == ["model"], "nothing is left beside it"


@pytest.mark.parametrize("fails_at", [1, 3, 5])
def test_a_failed_save_leaves_what_was_there(embedder, tmp_path, monkeypatch, fails_at):
    """A full disk at the first file, at the third and once all are written: no folder, or the former model."""

    def save(folder: Path) -> None:
        flush, calls = pretrained_module.flush, []

        def full(path: Path) -> None:
            calls.append(path)
            if len(calls) == fails_at:
                raise OSError("no space left on device")
            flush(path)

        with monkeypatch.context() as patch:
            patch.setattr(pretrained_module, "flush", full)
            with pytest.raises(OSError, match="no space left"):
                random_embedder(1).save_pretrained(folder)

    save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    embedder.save_pretrained(tmp_path / "model")
    save(tmp_path / "model")
    assert Embedder.from_pretrained(tmp_path / "model").digest == embedder.digest
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_cannot_take_its_name_puts_the_former_back(embedder, folder, monkeypatch):
    replace = Path.replace

    def refusing(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError("not now")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refusing)
    with pytest.raises(OSError, match="not now"):
        random_embedder(1).save_pretrained(folder)
    assert Embedder.from_pretrained(folder).digest == embedder.digest
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_never_overwrites_something_else(embedder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        embedder.save_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="is not a model folder"):
        embedder.save_pretrained(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_with_more_than_a_model_is_left_alone(embedder, folder, tmp_path):
    """Such as a project that has a config.json of its own, and a model that somebody put notes beside."""
    project = tmp_path / "project"
    (project / "data").mkdir(parents=True)
    for name in ("b.csv", "data/x", "config.json"):
        (project / name).write_text("{}")
    with pytest.raises(ModelFolderError, match=r"it holds b\.csv, config\.json, data, and no config\.json of an"):
        embedder.save_pretrained(project)
    assert sorted(path.name for path in project.iterdir()) == ["b.csv", "config.json", "data"]

    (folder / "notes").mkdir()
    with pytest.raises(ModelFolderError, match=r"holds more than a model \(notes\), which .* would delete; choose"):
        random_embedder(1).save_pretrained(folder)
    assert Embedder.from_pretrained(folder).digest == embedder.digest
    for name in "abcd":
        (folder / f"{name}.txt").touch()
    with pytest.raises(ModelFolderError, match=r"\(a\.txt, b\.txt, c\.txt and 2 more\)"):
        random_embedder(1).save_pretrained(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "project"], "nothing is left beside them"


def test_an_older_format_is_replaced(embedder, folder):
    rewrite(folder, format=4)
    embedder.save_pretrained(folder)
    assert Embedder.from_pretrained(folder).digest == embedder.digest


@pytest.mark.parametrize("there", [True, False], ids=["a model", "nothing"])
def test_a_link_stays_a_link(embedder, tmp_path, there):
    if there:
        embedder.save_pretrained(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    random_embedder(1).save_pretrained(tmp_path / "current")
    assert (tmp_path / "current").readlink() == Path("v1")
    assert Embedder.from_pretrained(tmp_path / "v1").digest == random_embedder(1).digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "v1"]


def test_the_working_folder_is_not_replaced(embedder, folder, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", folder):
        monkeypatch.chdir(place)
        with pytest.raises(ModelFolderError, match=rf"^{place} is the working folder, .*; name a folder in it$"):
            embedder.save_pretrained(".")
    monkeypatch.chdir(tmp_path)
    embedder.save_pretrained("empty")
    assert Embedder.from_pretrained("empty").digest == embedder.digest


def test_reference_rows_must_fit(embedder):
    pretrained = embedder.pretrained
    with pytest.raises(ValueError, match=r"\(3, 5\) do not fit model.code=32"):
        PretrainedModel(pretrained.model, pretrained.inference, torch.zeros(3, 5))


def test_what_is_no_model_is_said(folder, tmp_path):
    with pytest.raises(ModelFolderError, match="does not exist; `mmsa pretrain` writes one"):
        Embedder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ModelFolderError, match="is not a model: it lacks"):
        Embedder.from_pretrained(tmp_path)
    with pytest.raises(ModelFolderError, match="is not a model: it lacks"):
        Embedder.from_pretrained(folder / "README.md")


@pytest.mark.parametrize("error", [OSError, HTTPError])
def test_a_hub_that_does_not_answer_is_said(monkeypatch, error):
    def silent(name: str, **_: object) -> str:
        raise error("no route to host\nmore than a user wants to read")

    monkeypatch.setattr("huggingface_hub.snapshot_download", silent)
    with pytest.raises(ModelFolderError, match=r"neither a folder here nor a model .* \(no route to host\)$"):
        Embedder.from_pretrained("nobody/nothing")


def test_only_the_files_of_a_model_are_fetched(embedder, folder, monkeypatch):
    asked = {}

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert Embedder.from_pretrained("someone/mmsa").digest == embedder.digest
    files = ["config.json", "model.safetensors", "reference.safetensors", "README.md"]
    assert asked == {"someone/mmsa": files}


def test_an_unfit_version_is_said(folder):
    rewrite(folder, format=9, mmsa_dist="9.0")
    with pytest.raises(
        ModelFolderError, match=r"written by mmsa-dist 9\.0; .* install the version that wrote it \(9\.0"
    ):
        Embedder.from_pretrained(folder)
    rewrite(folder, format=9, mmsa_dist=__version__)
    with pytest.raises(
        ModelFolderError, match=rf"another build of {re.escape(__version__)} wrote it; install that one"
    ):
        Embedder.from_pretrained(folder)
    (folder / "config.json").write_text('{"format": 9, "schema_version": 9}')  # whose other keys nobody knows yet
    with pytest.raises(ModelFolderError, match="model format 9, written by"):
        Embedder.from_pretrained(folder)
    rewrite(folder, format="4")
    with pytest.raises(ModelFolderError, match=r"has model format '4', written by .* reads format 5:"):
        Embedder.from_pretrained(folder)


def test_a_configuration_that_is_nested_without_end_is_said(folder):
    (folder / "config.json").write_text(100_000 * "[")
    with pytest.raises(ModelFolderError, match=r"config\.json is not JSON \(maximum recursion depth exceeded"):
        Embedder.from_pretrained(folder)


def test_another_schema_is_said(folder):
    rewrite(folder, schema_version=7)
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
    whole = (folder / "config.json").read_text()
    inference = json.loads((folder / "config.json").read_text())["inference"]
    rewrite(folder, inference=inference | {"picture_size": 64})
    with pytest.raises(ModelFolderError, match="was changed after the export"):
        Embedder.from_pretrained(folder)
    rewrite(folder, inference=inference | {"surprise": 1})
    with pytest.raises(ModelFolderError, match=r"inference\.surprise is not usable"):
        Embedder.from_pretrained(folder)
    for section in ("inference", "files", "metrics", "training"):
        for value in (None, [], 3, "x"):
            rewrite(folder, **{section: value})
            with pytest.raises(ModelFolderError, match=f"lacks the section '{section}'"):
                Embedder.from_pretrained(folder)
        rewrite(folder, **{section: json.loads(whole)[section]})
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelFolderError, match="is not the configuration of an mmsa-dist model"):
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


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["model.safetensors", "reference.safetensors"])
def test_a_pickle_is_never_loaded(folder, tmp_path, name):
    """Not even one whose digests are all in order."""
    payload = pickle.dumps(Malice(tmp_path / "trace"))
    pickle.loads(payload)  # noqa: S301  to see that it does work
    (tmp_path / "trace").rmdir()
    (folder / name).write_bytes(payload)
    with pytest.raises(ModelFolderError, match="is damaged"):
        Embedder.from_pretrained(folder)
    about = json.loads((folder / "config.json").read_text())
    inference = Inference.model_validate_json(json.dumps(about["inference"]))
    files = about["files"] | {name: hashlib.sha256(payload).hexdigest()}
    rewrite(folder, files=files, digest=pretrained_module._identity(inference, files))
    with pytest.raises(ModelFolderError, match="the weights do not fit the architecture"):
        Embedder.from_pretrained(folder)
    assert not (tmp_path / "trace").exists()


def test_a_pickle_beside_the_weights_is_not_looked_at(embedder, folder, tmp_path):
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Malice(tmp_path / "trace")))
    np.testing.assert_array_equal(Embedder.from_pretrained(folder).transform(DRUGS), embedder.transform(DRUGS))
    assert not (tmp_path / "trace").exists()
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks config\.json or model\.safetensors"):
        Embedder.from_pretrained(folder)
    assert not (tmp_path / "trace").exists()


def test_an_unregistered_encoder_is_said(embedder, tmp_path):
    inference = embedder.pretrained.inference
    model = inference.model.model_copy(update={"encoders": ("gin", "mine")})
    from mmsa_dist.embed.pretrained import _build

    with pytest.raises(ModelFolderError, match="'mine', which is not registered"):
        _build(tmp_path, inference.model_copy(update={"model": model}))
