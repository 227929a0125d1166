"""The page of a search."""

from __future__ import annotations

from xml.etree import ElementTree

from mmsa_dist.embed.search import Neighbour
from mmsa_dist.report.drawing import structure_svg
from mmsa_dist.report.gallery import write_gallery


def test_page(tmp_path):
    hits = [Neighbour("D1", "CCO", "K1", 0.98765), Neighbour("<b>&", "c1ccccc1", "K2", 0.5)]
    path = tmp_path / "page.html"
    answers = {"CCN": hits, "<script>": []}
    write_gallery(answers, path, title="drugs", facts={"molecules": "2"}, drawn={"CCN": "CCN", "<script>": "<script>"})
    page = path.read_text()
    for text in ("drugs", "0.988", "&lt;b&gt;&amp;", "&lt;script&gt;", "No other molecule is in the index."):
        assert text in page
    assert "<script" not in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    drawings = [piece.split("</svg>")[0] + "</svg>" for piece in page.split("<svg")[1:]]
    assert len(drawings) == 4, "two hits and two queries"
    for drawing in drawings:
        ElementTree.fromstring(f"<svg{drawing}")


def test_queries_are_drawn_as_the_molecules_that_they_name(tmp_path):
    def page(**drawn: str) -> str:
        write_gallery({"C": []}, tmp_path / "page.html", title="t", facts={}, drawn=drawn)
        return (tmp_path / "page.html").read_text()

    assert "<svg" not in page()
    assert structure_svg("c1ccccc1") in page(C="c1ccccc1"), "and not methane, which the id looks like"
