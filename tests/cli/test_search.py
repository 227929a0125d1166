"""`mmsa search`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmsa_dist.cli.main import app
from mmsa_dist.embed import export_embeddings
from tests.fixtures.embedders import DRUGS, random_embedder

pytest.importorskip("faiss", reason="search needs faiss-cpu, of the extras train and report")


@pytest.fixture(scope="module")
def drugs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search") / "drugs.smi"
    path.write_text("".join(f"{smiles} D{n}\n" for n, smiles in enumerate(DRUGS)))
    return path


def test_a_folder_at_a_url(drugs, tmp_path):
    url = f"memory://{tmp_path.name}/vectors"
    export_embeddings(random_embedder(), drugs, url)
    done = CliRunner().invoke(app, ["search", url, "D1", "--by-id", "-k", "2", "--json"], catch_exceptions=False)
    assert [len(hits) for hits in json.loads(done.stdout).values()] == [2]
    page = tmp_path / "near.html"
    CliRunner().invoke(app, ["search", url, "D1", "--by-id", "--html", str(page)], catch_exceptions=False)
    assert "<h1>vectors</h1>" in page.read_text()


def test_a_page_that_cannot_be_is_refused_before_the_search(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pages").mkdir()
    for name, mend in ((".", "such as neighbours.html"), ("pages", "such as pages/neighbours.html")):
        with pytest.raises(ValueError, match=f"--html {name} is a folder; name a file in it, {mend}"):
            CliRunner().invoke(app, ["search", "nowhere", "D1", "--by-id", "--html", name], catch_exceptions=False)


def test_vectors_with_conformers_of_shards_are_asked_with_conformers(tiny_shards, tmp_path):
    embedder = random_embedder(conformers="given", view="comenet")
    export_embeddings(embedder, tiny_shards, tmp_path / "vectors", dtype="float32")
    embedder.save_pretrained(tmp_path / "model")
    words = ["search", str(tmp_path / "vectors"), "CCCCO", "-m", str(tmp_path / "model"), "-k", "1", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    ((found,),) = json.loads(done.stdout).values()
    assert (found["id"], round(found["similarity"], 4)) == ("M-CCCCO", 1.0)
