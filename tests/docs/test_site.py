"""The documentation as a site: without warnings, without network, with every page reachable."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml

ROOT = Path(__file__).resolve().parents[2]


class Targets(HTMLParser):
    """What a page links to, loads, and offers as an anchor."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        if tag in ("script", "img"):
            self.loaded |= {values["src"]} if "src" in values else set()
        elif tag == "link":
            self.loaded |= {values["href"]}
        elif tag == "a" and "href" in values:
            self.links.add(values["href"])
        if "id" in values:
            self.anchors.add(values["id"])


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not [url for url in Targets(page).loaded if urlsplit(url).netloc], page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?https?:", sheet.read_text()), sheet


def test_every_link_leads_somewhere(site):
    pages = {page: Targets(page) for page in site.rglob("*.html") if page.name != "404.html"}
    for page, targets in pages.items():
        for link in targets.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            goal = (page.parent / unquote(url.path)).resolve() if url.path else page
            goal = goal / "index.html" if goal.is_dir() else goal
            assert goal.is_file(), f"{page.relative_to(site)} links to {link}"
            if url.fragment and goal in pages and not url.fragment.startswith("__"):
                assert unquote(url.fragment) in pages[goal].anchors, f"{page.relative_to(site)} links to {link}"


def test_the_first_page_is_the_readme_with_its_links(site):
    links = Targets(site / "index.html").links
    wanted = set(re.findall(r"\]\(([^)\s#:]+)\)", (ROOT / "README.md").read_text()))
    assert {"docs/results.md", "mmsa_dist/model.py"} <= wanted
    wanted = {link for link in wanted if not link.endswith(".svg")}  # pictures are shown, not linked to
    for link in wanted:
        inside = link.startswith("docs/") or link in ("CHANGELOG.md", "CONTRIBUTING.md")
        page = link.removeprefix("docs/").lower() if inside else f"files/{link}"
        assert f"{page.removesuffix('.md').removesuffix('/README')}" in {
            target.partition("#")[0].removesuffix(".html").removesuffix("/index") for target in links
        }, link


def test_a_file_of_the_repository_is_a_page(site):
    page = (site / "files/shards/mmsa_shards/schema.py.html").read_text()
    assert "BLOCK_SCHEMA" in page


def test_the_api_is_there(site):
    for page, name in {
        "embed": "mmsa_dist.embed.embedder.Embedder.transform",
        "evaluate": "mmsa_dist.evaluate.run.run_evaluation",
        "batch": "mmsa_dist.data.batch.MoleculeBatch",
        "encoders": "mmsa_dist.encoders.base.Encoder",
        "kernels": "mmsa_kernels.hyperedge_memory.op.hyperedge_memory_attention",
        "shards": "mmsa_shards.manifest.Manifest",
        "prepare": "mmsa_shards.prepare.prepare",
        "train": "mmsa_dist.train.loop.pretrain",
        "model": "mmsa_dist.model.MMSAModel",
        "config": "mmsa_dist.config.schema.Train.steps",
    }.items():
        assert name in Targets(site / f"api/{page}.html").anchors


def test_every_page_is_in_the_navigation():
    def leaves(item: object) -> set[str]:
        if isinstance(item, str):
            return {item}
        return set().union(*map(leaves, item.values() if isinstance(item, dict) else item))

    named = leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    docs = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert docs - named == set(), "name them in mkdocs.yml"
