from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from mmsa_dist.embed import Embedder, Embeddings, ExportError, export_embeddings, read_embeddings, search
from mmsa_dist.embed.parquet import EmbeddedRow, ExportSummary, write_part, write_summary
from mmsa_dist.embed.search import SearchError, SearchIndex
from mmsa_shards.folder import Folder
from tests.fixtures.embedders import DRUGS, random_embedder

pytest.importorskip("faiss", reason="search needs faiss-cpu, of the extras train and report")

from mmsa_dist.embed import vector_index


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return random_embedder(inchikeys=True)


@pytest.fixture(scope="module")
def index(embedder, tmp_path_factory) -> SearchIndex:
    folder = tmp_path_factory.mktemp("search")
    (folder / "drugs.smi").write_text("".join(f"{s} D{n}\n" for n, s in enumerate(["junk", *DRUGS])))
    export_embeddings(embedder, folder / "drugs.smi", folder / "out", dtype="float32")
    return SearchIndex.open(folder / "out")


def test_neighbours_equal_those_of_numpy(embedder, index):
    vectors = embedder.transform(DRUGS).astype(float)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    for row in range(len(DRUGS)):
        expected = [n for n in np.argsort(-cosine[row], kind="stable") if n != row][:4]
        found = index.by_id(f"D{row + 1}", k=4)
        assert [n.id for n in found] == [f"D{n + 1}" for n in expected]
        np.testing.assert_allclose([n.similarity for n in found], cosine[row, expected], atol=1e-6)


def test_a_molecule_finds_itself_however_it_is_written(embedder, index):
    (found,) = index.by_smiles(embedder, ["c1ccccc1OC(C)=O"], k=1)  # phenyl acetate is not in the index
    assert found[0].similarity < 1 - 1e-6
    (found,) = index.by_smiles(embedder, ["OC(=O)c1c(OC(C)=O)cccc1.[Na+]"], k=1)  # aspirin, as a salt
    assert found[0].id == "D1"
    assert found[0].inchikey == "BSYNRYMUTXBXSQ-UHFFFAOYSA-N"
    assert found[0].similarity == pytest.approx(1, abs=1e-6)


def test_more_neighbours_than_there_are(embedder, index):
    assert len(index) == len(DRUGS)
    assert len(index.by_id("D3", k=99)) == len(DRUGS) - 1
    assert len(index.by_smiles(embedder, ["C"], k=99)[0]) == len(DRUGS)


def test_similarities_are_cosines(index):
    """Though the product of two unit vectors in float32 may go beyond 1."""
    rows = np.random.default_rng(0).standard_normal((500, 16), dtype=np.float32)
    names = [str(n) for n in range(500)]
    many = SearchIndex.of(Embeddings(names, names, names, rows, index._rows.summary))
    similarities, found = many.nearest(rows, 1)
    assert found[:, 0].tolist() == list(range(500))
    assert similarities.max() <= 1
    np.testing.assert_allclose(similarities, 1, atol=1e-6)
    opposite, _ = many.nearest(-rows, 500)
    assert opposite.min() >= -1


def test_a_stored_index_answers_without_the_vectors(index, tmp_path, monkeypatch):
    """Which would fill the memory where an index is needed most."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((40, 16))[random.integers(0, 40, 3000)] + 0.5 * random.standard_normal((3000, 16))
    rows = [EmbeddedRow(f"M{n}", None, "C" * (n % 50), None if n % 10 else "syntax") for n in range(3000)]
    origin = index.origin
    for number in range(2):
        part = slice(1500 * number, 1500 * (number + 1))
        write_part(Folder(tmp_path), number, rows[part], vectors[part].astype(np.float32), origin)
    write_summary(ExportSummary(str(tmp_path), 3000, 2700, {"syntax": 300}, 2, 0, origin))
    exact = SearchIndex.of(read_embeddings(tmp_path))
    monkeypatch.setattr(vector_index, "EXACT_ROWS", 1000)
    built = SearchIndex.open(tmp_path)
    assert 0.98 <= built.recall <= 1
    monkeypatch.setattr(search, "read_embeddings", None)
    stored = SearchIndex.open(tmp_path)
    assert (len(stored), stored.recall) == (2700, built.recall)
    for name in ("M1", "M2999"):
        neighbours = stored.by_id(name, k=20)
        assert neighbours == built.by_id(name, k=20)
        expected = exact.by_id(name, k=20)
        assert len({n.id for n in neighbours} & {n.id for n in expected}) >= 19, "float16 swaps two at most"
        np.testing.assert_allclose([n.similarity for n in neighbours], [n.similarity for n in expected], atol=1e-3)


def test_a_row_is_left_out_though_others_equal_it(embedder, tmp_path):
    """Of molecules with equal vectors the row that was asked for is the one that is missing."""
    (tmp_path / "same.smi").write_text("".join(f"{DRUGS[0]} A{n}\n" for n in range(5)))
    export_embeddings(embedder, tmp_path / "same.smi", tmp_path / "out")
    same = SearchIndex.open(tmp_path / "out")
    for n in range(5):
        assert len(same.by_id(f"A{n}", k=2)) == 2
        assert {found.id for found in same.by_id(f"A{n}", k=4)} == {f"A{m}" for m in range(5)} - {f"A{n}"}


def test_nothing_to_search_is_said(embedder, tmp_path):
    (tmp_path / "junk.smi").write_text("junk a\n")
    export_embeddings(embedder, tmp_path / "junk.smi", tmp_path / "out")
    with pytest.raises(SearchError, match="has a vector; there is nothing to search"):
        SearchIndex.open(tmp_path / "out")
    with pytest.raises(ExportError, match="holds no finished embeddings"):
        SearchIndex.open(tmp_path)


def test_unfit_questions_are_said(embedder, index):
    with pytest.raises(SearchError, match=r"no embedded molecule has the id 'D0'; did you mean 'D10'\?"):
        index.by_id("D0")  # the one that is no molecule
    with pytest.raises(SearchError, match=r"has the id 'd_11'; did you mean 'D11' or "):
        index.by_id("d_11")
    with pytest.raises(SearchError, match=r"has the id 'aspirin'; ids are such as 'D1', 'D2', 'D3', all of them the"):
        index.smiles_of("aspirin")
    with pytest.raises(SearchError, match="query 'xx' has no vector"):
        index.by_smiles(embedder, ["xx"])
    with pytest.raises(SearchError, match="need view='structure', and the embedder has 'unified'"):
        index.by_smiles(clone(embedder).set_params(view="unified"), ["C"])
    with pytest.raises(SearchError, match="need standardize=True, and the embedder has False"):
        index.by_smiles(clone(embedder).set_params(standardize=False), ["C"])
    with pytest.raises(SearchError, match="made by model"):
        index.by_smiles(random_embedder(1), ["C"])
    for ask in (lambda: index.by_id("D1", k=0), lambda: index.by_smiles(embedder, ["C"], k=0)):
        with pytest.raises(SearchError, match="k=0 must be 1 or more"):
            ask()
    with pytest.raises(TypeError, match="not one string"):
        index.by_smiles(embedder, "CCO")
