"""Publishing a model and fetching it again, over HTTP, from a hub on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from mmsa_dist.embed import Embedder
from mmsa_dist.embed.hub import HubError
from tests.fixtures.embedders import random_embedder

pytest.importorskip("flask")

from tests.fixtures.hub import COMMIT, Hub, started_hub

FILES = {"config.json", "model.safetensors", "reference.safetensors", "README.md"}


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder()


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """The client of this process takes it for the hub."""
    with started_hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the protocol that this hub does not speak
        yield server


def test_published_and_fetched(hub, embedder, tmp_path):
    embedder.save_pretrained(tmp_path / "model")
    url = embedder.push_to_hub("someone/mmsa", token="hf_writer", private=True)
    assert url == f"{hub.url}/someone/mmsa/commit/{COMMIT}"
    assert hub.files == {name: (tmp_path / "model" / name).read_bytes() for name in FILES}
    assert hub.commits == [f"Model {embedder.digest[:12]}"]
    assert hub.private is True
    assert any("mmsa-dist" in agent for agent in hub.agents)

    hub.files["pytorch_model.bin"] = b"not looked at"
    # The client takes the address for downloads from its environment when it is imported.
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    code = "from mmsa_dist.embed import Embedder; print(Embedder.from_pretrained('someone/mmsa').digest)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == embedder.digest, done.stderr
    assert not list((tmp_path / "home").rglob("*.bin"))


def test_a_hub_that_does_not_answer_is_said(embedder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(HubError, match=r"was not published as someone/mmsa \(.*refused\); see whether this machine"):
        embedder.push_to_hub("someone/mmsa", token="hf_writer")


def test_the_licence_is_published(hub, embedder):
    embedder.push_to_hub("someone/mmsa", token="hf_writer", license="mit")
    assert b"\nlicense: mit\n" in hub.files["README.md"]


def test_as_a_pull_request(hub, embedder):
    url = embedder.push_to_hub("someone/mmsa", token="hf_writer", create_pr=True, commit_message="Better")
    assert url == f"{hub.url}/someone/mmsa/discussions/1"
    assert hub.commits == ["Better"]


@pytest.mark.parametrize(
    ("name", "token", "words"),
    [
        ("someone/mmsa", "hf_reader", "pass a token of an account that may write there"),
        ("not a name", "hf_writer", "was not published as not a name .*; name it organisation/name"),
    ],
)
def test_a_refusal_is_said(hub, embedder, name, token, words):
    with pytest.raises(HubError, match=words):
        embedder.push_to_hub(name, token=token)
    assert hub.files == {}
