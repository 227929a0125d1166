"""The page as a browser reads it: what it says, that it is harmless, and that it needs no network."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
import shutil
import tracemalloc
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmsa_dist.embed import export_embeddings, read_embeddings
from mmsa_dist.embed.parquet import Embeddings
from mmsa_dist.report import inspect_shards, write_report
from mmsa_dist.report.ids import SharedIds
from mmsa_dist.report.space import ChemicalSpace
from mmsa_dist.report.structures import pack
from mmsa_shards.manifest import Manifest
from mmsa_shards.shard import read_block
from tests.fixtures.embedders import DRUGS, random_embedder

pytest.importorskip("bokeh", reason="the report needs bokeh, of the extra report")

SECTIONS = ["preparation", "training", "retrieval", "anchors", "bank", "map", "gallery", "evaluation", "environment"]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, str] = dict.fromkeys(SECTIONS, "")
        self.scripts: list[str] = []
        self._section, self._within = "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag
        if tag == "section":
            self._section = dict(attrs)["id"]

    def handle_endtag(self, tag):
        self._within = ""
        if self._section:
            self.text[self._section] += " "
        if tag == "section":
            self._section = ""

    def handle_data(self, data):
        if self._within == "script":
            self.scripts.append(data)
        elif self._section:
            self.text[self._section] += data

    def unplaced(self) -> set[str]:
        """Figures of which the page has the data but not the element, or the element alone: one, and none is drawn."""
        drawn = {place for script in self.scripts for place in re.findall(r'"p\d+":"([0-9a-f-]{36})"', script)}
        return drawn ^ {attributes["id"] for _, attributes in self.tags if "data-root-id" in attributes}

    def figures(self) -> int:
        return sum("data-root-id" in attributes for _, attributes in self.tags)

    def payload(self) -> dict:
        (packed,) = (s for s in self.scripts if re.fullmatch(r"[A-Za-z0-9+/=]{100,}", s.strip()))
        content = gzip.decompress(base64.b64decode(packed))
        at = 4 + int.from_bytes(content[:4], "little")
        found = json.loads(content[4:at])
        for name, kind, size in found.pop("columns"):
            found[name] = np.frombuffer(content, np.dtype(kind.lower()).newbyteorder("<"), size, at)
            at += found[name].nbytes
        assert at == len(content)
        return found


@pytest.fixture(scope="session")
def page(report) -> Page:
    assert report.name == "report.html"
    assert report.stat().st_size < 3e6
    return Page(report.read_text())


def words(text: str) -> str:
    return " ".join(text.split())


def test_every_section_says_what_was_measured(page):
    text = {name: words(of) for name, of in page.text.items()}
    assert "read 55 duplicates − 0" in text["preparation"]
    assert "written 55" in text["preparation"]
    assert "Sizes and elements" in text["preparation"]
    assert "Losses by name" in text["training"]
    assert "Use of the 8 anchors" in text["anchors"]
    assert "55 molecules by their structure vector, laid out by UMAP on the cosine." in text["map"]
    assert text["gallery"].count("M-") == 8 * 6
    assert re.search(r"cluster 1 · \d+ molecules", text["gallery"])
    assert "Not by split" not in text["map"]
    assert "ECFP4 linear 4.165" in text["evaluation"]
    assert "ECFP4 cannot represent 3 molecules; they get the mean prediction" in text["evaluation"]
    assert "torch" in text["environment"]
    assert not [name for name in SECTIONS if "Not measured yet" in text[name] or "Cannot be read" in text[name]]


def test_the_page_needs_no_network(page, run):
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert "default-src 'none'" in policy
    fetched = [(t, a) for t, a in page.tags if a.get("src") or (t == "link" and a.get("href"))]
    assert [t for t, a in fetched if not a["src"].startswith("data:image/png;base64,")] == []
    assert {a["href"][0] for t, a in page.tags if t == "a"} == {"#"}


def test_the_sheet_of_molecules_is_in_the_page(page):
    (sheet,) = (a["src"] for t, a in page.tags if t == "img")
    png = base64.b64decode(sheet.removeprefix("data:image/png;base64,"), validate=True)
    assert len(png) <= 300_000
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (6 * 236 + 12, 3 * 258 + 12)


def test_a_sample_is_said_to_be_one_wherever_it_is_shown(run, page, tmp_path, monkeypatch):
    monkeypatch.setattr("mmsa_dist.report.space.LARGEST_MAP", 20)
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("report.html"))
    sampled = Page(write_report(root).read_text())
    said = {
        "map": ("20 of 55 molecules by their structure vector", "55 molecules by their structure vector"),
        "gallery": (
            "whose vectors are nearest to its own (cosine), among the 20 on the map.",
            "whose vectors are nearest to its own (cosine).",
        ),
        "anchors": (
            "Use of the 8 anchors by 20 of 55 embedded molecules Most used first",
            "Use of the 8 anchors by the embedded molecules Most used first",
        ),
    }
    for section, (of_a_sample, of_all) in said.items():
        assert of_a_sample in words(sampled.text[section]), section
        assert of_all in words(page.text[section]), section
        assert of_a_sample not in words(page.text[section]), section
    assert "largest share of their attention, among the 20 on the map." in words(sampled.text["anchors"])
    assert "largest share of their attention." in words(page.text["anchors"])


def test_shards_that_cannot_be_read_say_so(run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("report.html", "config.yaml"))
    (root / "shards" / "train-00001.tar").unlink()
    text = words(Page(write_report(root).read_text()).text["preparation"])
    assert "read 55 duplicates − 0" in text
    assert "Cannot be read: cannot read block 0 of" in text


def test_shards_of_another_run_are_not_shown_as_its_own(run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("report.html"))
    (root / "checkpoints" / "step_60").mkdir(parents=True)
    (root / "checkpoints" / "latest").write_text("step_60\n")
    (root / "checkpoints" / "step_60" / "run.json").write_text(json.dumps({"manifest": "0123456789abcdef"}))
    page = Page(write_report(root).read_text())
    text = words(page.text["preparation"])
    assert f"Cannot be read: {root / 'shards'} does not hold the run's shards: its manifest has the digest " in text
    assert "the training used 0123456789ab;" in text
    assert "Ledger" not in text
    assert [group["name"] for group in page.payload()["groups"]] == ["cluster"]
    assert page.figures() == 3 + 3 + 2 + 1 + 1 + 1, "no histograms of molecules"
    assert [tag for tag, _ in page.tags if tag == "img"] == [], "nor a sheet of them"


def test_ids_that_several_molecules_have_are_told(run, tmp_path, monkeypatch, page):
    assert "molecules read share" not in words(page.text["preparation"])
    root = tmp_path / "run"
    (root / "shards").mkdir(parents=True)
    for path in (run / "shards").iterdir():
        (root / "shards" / path.name).write_bytes(path.read_bytes())
    shared = SharedIds(ids=3, molecules=7, examples=("CID1", EVIL))
    found = dataclasses.replace(inspect_shards(root / "shards"), shared_ids=shared)
    monkeypatch.setattr("mmsa_dist.report.record.inspect_shards", lambda path, blocks: found)
    html = write_report(root).read_text()
    assert EVIL not in html
    said = f"7 of the molecules read share 3 ids, such as CID1, {EVIL}."
    assert said in words(Page(html).text["preparation"])


def test_structures_are_in_the_page(page):
    payload = page.payload()
    assert len(payload["ids"]) == len(payload["smiles"]) == len(payload["atoms"]) == 55
    drawn = pack(payload["smiles"])
    assert [tuple(label) for label in payload["labels"]] == drawn.labels
    for name in ("atoms", "bonds", "label", "first", "second", "stroke"):
        assert payload[name].tolist() == getattr(drawn, name).tolist(), name
    for name in ("x", "y"):
        assert np.cumsum(payload[name], dtype=np.uint8).tolist() == getattr(drawn, name).tolist()
    near = payload["neighbours"].reshape(55, 6)
    assert all(i not in row for i, row in enumerate(near.tolist())), "no molecule is its own neighbour"
    assert {payload[f"property{n}"].size for n in range(len(payload["properties"]))} == {55}
    assert sum(tag == "svg" for tag, _ in page.tags) == 8 * 6 + 6 * 4, "galleries of neighbours and of anchors"


def test_groups_are_what_the_shards_say(page, run):
    payload = page.payload()
    names = [group["name"] for group in payload["groups"]]
    assert names == ["cluster", "split", "3D from"], "all ids begin alike, which tells nothing"
    labels = {n: [payload["groups"][n]["labels"][of] for of in payload[f"group{n}"]] for n in range(3)}
    assert Counter(labels[1]) == {"train": 44, "val": 11}
    assert Counter(labels[2]) == {"etkdg": 43, "none": 12}
    in_order = [
        source
        for shard in Manifest.load(run / "shards").shards
        for number in range(len(shard.blocks))
        for source in read_block(run / "shards", shard, number)["conformer_source"].to_pylist()
    ]
    assert labels[2] == in_order, "the export has the order of the shards"


def test_shards_that_are_damaged_leave_the_other_colours(run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("report.html", "config.yaml"))
    (root / "shards" / "train-00001.tar").unlink()
    page = Page(write_report(root).read_text())
    assert [group["name"] for group in page.payload()["groups"]] == ["cluster"]
    assert "Not by split and conformer source: cannot read block 0 of" in page.text["map"]


def test_the_same_run_gives_the_same_map(run, page):
    again = Page(write_report(run).read_text())
    ours, theirs = again.payload(), page.payload()
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


METRICS = (
    *("train/loss", "train/contrast_loss", "molecules_per_s", "data_wait_s", "bank/recall", "bank/age_mean"),
    *("valid/retrieval_at_1", "valid/chance", "valid/alignment", "valid/uniformity"),
    *("memory/anchor_entropy", "memory/dead_anchors", "memory/g_cosine"),
)


def test_every_figure_has_its_place(page):
    assert page.unplaced() == set()
    assert page.figures() == 2 + 3 + 3 + 2 + 1 + 1 + 1, "molecules, training, retrieval, anchors, their use, bank, map"


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return tmp_path_factory.mktemp("bare")


@given(st.sets(st.sampled_from(METRICS)))
@settings(max_examples=40, deadline=None)
def test_whatever_was_measured_is_placed(bare, names):
    """Of a diverged run losses are null, of one modality nothing is retrieved: any metric may be there by itself."""
    line = {"step": 1} | {name: 0.5 if name in names else None for name in METRICS}
    (bare / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    page = Page(write_report(bare).read_text())
    assert page.unplaced() == set()
    assert page.figures() == len(names - {"valid/chance"})
    parts = {"training": METRICS[:4], "bank": METRICS[4:6], "retrieval": METRICS[6:10], "anchors": METRICS[10:]}
    for section, metrics in parts.items():
        measured = names & set(metrics) - {"valid/chance"}
        assert ("Not measured yet" in page.text[section]) == (not measured), section


def test_one_modality_has_nothing_to_retrieve(lone):
    page = Page(write_report(lone).read_text())
    text = words(page.text["retrieval"])
    assert "There is nothing to retrieve: the model has one modality" in text
    assert "Not measured yet" not in text
    assert page.unplaced() == set()
    (lone / "config.yaml").unlink()
    text = words(Page(write_report(lone).read_text()).text["retrieval"])
    assert "no held-out molecule has codes of two modalities" in text


def test_a_run_without_a_finite_loss_says_so(bare):
    (bare / "metrics.jsonl").write_text('{"step": 1, "train/loss": null, "molecules_per_s": 90.0}\n')
    page = Page(write_report(bare).read_text())
    assert "No finite loss is in metrics.jsonl" in page.text["training"]
    assert page.figures() == 1


def test_a_run_that_has_only_begun(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    page = Page(write_report(tmp_path).read_text())
    assert [name for name in SECTIONS if "Not measured yet" not in page.text[name]] == []
    assert page.scripts == []


@pytest.mark.parametrize("part", ["metrics.jsonl", "shards", "model", "embeddings", "evaluation", "config.yaml"])
def test_any_part_may_be_missing(run, tmp_path, part):
    root = tmp_path / "run"
    shutil.copytree(run, root, ignore=shutil.ignore_patterns("report.html", part))
    page = Page(write_report(root).read_text())
    assert page.unplaced() == set()
    text = page.text
    missing = {
        "metrics.jsonl": ("training", "retrieval", "anchors", "bank"),
        "shards": ("preparation",),
        "model": (),
        "embeddings": ("map", "gallery"),
        "evaluation": ("evaluation",),
        "config.yaml": (),
    }[part]
    assert tuple(name for name in SECTIONS if "Not measured yet" in text[name]) == missing


def test_damaged_parts_say_so(run, tmp_path):
    root = tmp_path / "run"
    shutil.copytree(run, root)
    (root / "metrics.jsonl").write_text("{broken\n")
    (root / "config.yaml").write_text(f"{EVIL}: [")
    (root / "shards" / "manifest.json").write_text("[]")
    (root / "environment.json").write_text("[]")
    (root / "evaluation" / "results.json").write_text("no json")
    (root / "embeddings" / "part-00000.parquet").unlink()
    html = write_report(root).read_text()
    text = Page(html).text
    for name in ("preparation", "training", "map", "evaluation", "environment"):
        assert "Cannot be read" in text[name], name
    assert EVIL not in html


def test_names_from_files_are_harmless(tmp_path):
    root = tmp_path / EVIL.replace("/", "_")
    root.mkdir()
    (root / "in.csv").write_text("smiles,id\n" + "".join(f'{s},"{EVIL}{n}"\n' for n, s in enumerate(DRUGS)))
    export_embeddings(random_embedder(), root / "in.csv", root / "embeddings")
    (root / "environment.json").write_text(json.dumps({"python": EVIL, "libraries": {EVIL: EVIL}, "git": {EVIL: EVIL}}))
    (root / "evaluation").mkdir()
    line = {"task": EVIL, "split": EVIL, "metric": EVIL, "features": EVIL, "model": EVIL, "mean": 1.0, "spread": None}
    results = {"summaries": [line | {"values": [1.0], "best": False}]}
    (root / "evaluation" / "results.json").write_text(json.dumps(results))
    html = write_report(root).read_text()
    page = Page(html)
    assert EVIL not in html
    assert not [a for t, a in page.tags if t == "img" or any(name.startswith("on") for name in a)]
    assert not [script for script in page.scripts if "alert(" in script]
    assert page.payload()["ids"][0] == f"{EVIL}0", "the name itself is kept"
    assert f"{EVIL}0" in page.text["gallery"] + page.text["map"] + page.text["anchors"]


def test_salts_of_one_drug_are_shown_once(tmp_path):
    smiles = [*DRUGS, "OC(=O)c1ccccc1OC(C)=O.[Na+]", DRUGS[0]]
    (tmp_path / "in.smi").write_text("".join(f"{s} D{n}\n" for n, s in enumerate(smiles)))
    export_embeddings(random_embedder(), tmp_path / "in.smi", tmp_path / "embeddings")
    payload = Page(write_report(tmp_path).read_text()).payload()
    assert payload["ids"] == [f"D{n}" for n in range(len(DRUGS))]


def test_each_molecule_is_shown_by_its_first_row(monkeypatch):
    smiles = ["N", "C", "N", "O", "C", "CC", "CCC"]
    vectors = np.arange(14, dtype=np.float32).reshape(7, 2)
    embeddings = Embeddings([f"D{n}" for n in range(7)], [None] * 7, smiles, vectors, summary=None)
    space = ChemicalSpace(embeddings)
    assert (space.in_all, space.shown.ids) == (5, ["D0", "D1", "D3", "D5", "D6"])
    assert space.shown.vectors.tolist() == [[0, 1], [2, 3], [6, 7], [10, 11], [12, 13]]
    monkeypatch.setattr("mmsa_dist.report.space.LARGEST_MAP", 3)
    space = ChemicalSpace(embeddings)
    assert (space.in_all, space.shown.ids) == (5, ["D0", "D3", "D6"])


def test_one_long_smiles_does_not_cost_its_length_for_each_molecule():
    n = 20_000
    smiles = ["C" * 1500, *map(str, range(1, n))]
    embeddings = Embeddings(smiles, [None] * n, smiles, np.zeros((n, 1), np.float32), summary=None)
    tracemalloc.start()
    try:
        assert len(ChemicalSpace(embeddings)) == n
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 10e6, "an array of text takes n x 1,500 x 4 bytes, 120 MB"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("C methane\nCC ethane\n", "2 distinct molecules of embeddings/ have a vector; a map and neighbours take at "),
        ("CCO a\nOCC b\njunk c\n", "1 distinct molecule of embeddings/ has a vector; a map"),
        ("junk a\n", "0 distinct molecules of embeddings/ have a vector; a map"),
    ],
)
def test_too_few_molecules_for_a_map(tmp_path, lines, said):
    (tmp_path / "in.smi").write_text(lines)
    export_embeddings(random_embedder(), tmp_path / "in.smi", tmp_path / "embeddings")
    text = Page(write_report(tmp_path).read_text()).text
    for section in ("map", "gallery"):
        assert said in words(text[section])
        assert "Not measured yet" not in text[section]


def test_a_map_by_pca_is_one_of_directions(tmp_path):
    """Vectors of one direction have a cosine of 1, and one place, however long they are."""
    (tmp_path / "in.smi").write_text("".join(f"{s} D{n}\n" for n, s in enumerate(DRUGS)))
    export_embeddings(random_embedder(), tmp_path / "in.smi", tmp_path / "embeddings", dtype="float32")
    embeddings = read_embeddings(tmp_path / "embeddings")
    space = ChemicalSpace(embeddings)
    assert space.layout.startswith("PCA of the vectors, scaled to length one")
    lengths = np.linspace(0.5, 20, len(DRUGS), dtype=np.float32)[:, None]
    scaled = ChemicalSpace(dataclasses.replace(embeddings, vectors=embeddings.vectors * lengths))
    np.testing.assert_allclose(scaled.coordinates(), space.coordinates(), atol=1e-5)
    assert f"laid out by {space.layout}." in words(Page(write_report(tmp_path).read_text()).text["map"])


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run folder .* does not exist; `mmsa pretrain` makes it"):
        write_report(tmp_path / "none")


def test_a_folder_of_something_else_is_left_as_it_is(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"is not the folder of a run: it has none of config\.yaml, "):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
