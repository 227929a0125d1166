"""The report in a real browser: pointer, keys, paper, a telephone, and names that are markup."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsa_dist.embed import export_embeddings
from mmsa_dist.embed.search import Neighbour
from mmsa_dist.report import write_report
from mmsa_dist.report.gallery import write_gallery
from tests.fixtures.browser import Opened
from tests.fixtures.embedders import DRUGS, random_embedder

pytest.importorskip("bokeh", reason="the report needs bokeh, of the extra report")

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"
WIDER_THAN_THE_WINDOW = """() => [...document.querySelectorAll("body *")].filter((e) => {
    const scrolls = e.closest("nav"), box = e.getBoundingClientRect();
    return !scrolls && box.width && (box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map((e) => e.tagName + "." + e.className)"""
CANVASES = """() => [...document.querySelectorAll("section [data-root-id]")].map((box) => {
    const inner = (element, name) => element.shadowRoot.querySelector(name);
    const canvas = inner(inner(box.querySelector(".bk-Figure"), ".bk-Canvas"), "canvas");
    const { width, height } = canvas.getBoundingClientRect();
    return width > 200 && height > 100;
})"""


@pytest.fixture
def opened(browser, report: Path) -> Iterator[Opened]:
    with Opened(browser, report.as_uri()) as page:
        yield page
        assert page.wrong == []


def test_every_figure_of_one_modality_is_drawn(browser, lone):
    with Opened(browser, write_report(lone).resolve().as_uri()) as opened:
        drawn = opened.page.evaluate(CANVASES)
        assert len(drawn) == 2 + 4 + 1 + 3 + 1 + 2 + 1
        assert all(drawn)
        assert opened.wrong == []


def test_a_page_that_is_not_drawn_is_not_ready(browser, report, tmp_path):
    html = re.sub(r'<div id="[0-9a-f-]{36}" data-root-id', "<div data-root-id", report.read_text(), count=1)
    (tmp_path / "broken.html").write_text(html)
    with Opened(browser, (tmp_path / "broken.html").as_uri(), ready="#name") as opened:
        opened.page.wait_for_timeout(500)
        assert "could not find" in opened.wrong[0]
        assert opened.page.get_attribute("#map", "data-ready") is None


def test_hover_shows_the_structure_and_a_click_chooses_it(opened):
    page = opened.page
    x, y = opened.place(7)
    page.mouse.move(x, y)
    opened.frame()
    assert page.is_visible("#tip")
    hovered = page.text_content("#tip .id")
    assert hovered.startswith("M-")
    assert set(page.text_content("#tip .mono")) <= set("CONlc()=1"), "the SMILES"
    assert page.locator("#tip svg path").count() > 0
    page.mouse.click(x, y)
    opened.frame()
    assert opened.name() == hovered
    assert page.locator("#card > svg path").count() > 0
    assert page.locator("#card .near button").count() == 6
    page.mouse.move(5, 5)
    opened.frame()
    assert not page.is_visible("#tip")


def test_a_long_smiles_is_cut_with_a_sign(browser, tmp_path):
    (tmp_path / "in.smi").write_text("".join(f"{'C' * n}O L{n}\n" for n in (89, 90, 120)))
    export_embeddings(random_embedder(), tmp_path / "in.smi", tmp_path / "embeddings")
    shown = []
    with Opened(browser, write_report(tmp_path).resolve().as_uri()) as opened:
        for row in range(3):
            opened.page.mouse.move(*opened.place(row))
            opened.frame()
            shown.append(opened.page.text_content("#tip .mono"))
    assert shown == ["C" * 89 + "O", "C" * 89 + "…", "C" * 89 + "…"]


def test_a_neighbour_is_chosen_by_click_and_by_key(opened):
    page = opened.page
    nearest = page.locator("#card .near button").first
    asked = nearest.get_attribute("title")
    nearest.click()
    assert (opened.name(), opened.focused()) == (asked, "name")
    second = page.locator("#card .near button").nth(1)
    asked = second.get_attribute("title")
    second.focus()
    page.keyboard.press("Enter")
    assert opened.name() == asked


def test_a_card_says_among_which_molecules_neighbours_are(browser, opened, run, tmp_path, monkeypatch):
    assert opened.page.text_content("#card > .note") == "Nearest by cosine"
    monkeypatch.setattr("mmsa_dist.report.space.LARGEST_MAP", 20)
    root = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("report.html"))
    with Opened(browser, write_report(root).resolve().as_uri()) as sampled:
        sampled.page.mouse.click(*sampled.place(7))
        assert sampled.page.text_content("#card > .note") == "Nearest by cosine, among the 20 on the map"
        assert sampled.page.locator("#card .near button").count() == 6
        assert sampled.wrong == []


def test_colours(opened):
    page = opened.page
    names = page.locator("#colour option").all_text_contents()
    assert names[:3] == ["cluster", "split", "3D from"]
    assert "heavy atoms" in names
    assert sum(map(int, page.locator("#legend .chip .note").all_text_contents())) == 55
    page.select_option("#colour", "split")
    assert page.locator("#legend .chip").all_text_contents() == ["train44", "val11"]
    page.select_option("#colour", "3D from")
    assert page.locator("#legend .chip").all_text_contents() == ["etkdg43", "none12"]
    coloured = """() => { const get = (n) => Bokeh.documents[0].get_model_by_name(n);
        return [[...get("molecules").data.value].filter((v) => !Number.isNaN(v)).length, get("bar").visible]; }"""
    assert page.evaluate(coloured) == [55, False]
    page.locator("#legend .chip").nth(1).click()
    assert page.evaluate(coloured) == [12, False]
    assert page.locator("#legend .chip[aria-pressed=true]").count() == 1
    page.locator("#legend .chip").nth(1).click()
    assert page.evaluate(coloured) == [55, False]
    page.select_option("#colour", "heavy atoms")
    assert page.evaluate(coloured) == [55, True]
    assert page.locator("#legend .chip").count() == 0


def test_a_molecule_is_found_by_its_name(opened):
    opened.page.fill("#find", "m-ccccccn")
    assert opened.page.locator("#found option").count() == 1
    opened.page.keyboard.press("Enter")
    assert opened.name() == "M-CCCCCCN"
    opened.page.fill("#find", "no such")
    opened.page.keyboard.press("Enter")
    assert opened.page.text_content("#answer") == "not on this map"


CHOSEN = """() => {
    const { data, selected } = Bokeh.documents.map((d) => d.get_model_by_name("molecules")).find(Boolean);
    return [data.x[selected.indices[0] ?? 0], data.y[selected.indices[0] ?? 0]]; }"""


def test_the_map_by_keyboard(opened):
    page = opened.page
    page.focus("#find")
    for _ in range(1 + page.locator("#legend .chip").count()):
        page.keyboard.press("Tab")
    assert opened.focused() == "chart"
    moves = 0
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowUp", 1, 1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, -1)) * 3:
        before = page.evaluate(CHOSEN)
        page.keyboard.press(key)
        after = page.evaluate(CHOSEN)
        assert after == before or sign * (after[axis] - before[axis]) > 0, key
        moves += after != before
    assert moves >= 3  # whatever lies around a molecule lies in one of the four directions
    assert page.text_content("#answer").startswith(f"{opened.name()}, cluster: cluster ")
    width = """() => {
        const { start, end } = Bokeh.documents[0].get_model_by_name("chart").x_range;
        return end - start; }"""
    whole = page.evaluate(width)
    page.keyboard.press("+")
    assert page.evaluate(width) == pytest.approx(whole / 1.5)
    page.keyboard.press("-")
    page.keyboard.press("0")
    opened.frame()
    assert page.evaluate(width) == pytest.approx(whole)
    page.keyboard.press("Enter")
    assert opened.focused() == "name"


def test_the_keyboard_goes_through_the_page_in_order_and_shows_where_it_is(opened):
    page, visited = opened.page, []
    opened.frame()
    page.wait_for_timeout(300)  # figures are taken out of the order once they are drawn
    shown = """() => { const style = getComputedStyle(document.activeElement);
        return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1; }"""
    for _ in range(60):
        page.keyboard.press("Tab")
        if opened.focused() == page.text_content("body").strip():
            break
        inner = page.evaluate("Boolean(document.activeElement.shadowRoot)")
        if not inner:  # the buttons of Bokeh's toolbar show their own
            assert page.evaluate(shown), opened.focused()
            visited.append(opened.focused())
    links = [" ".join(text.split()) for text in page.locator("nav a").all_text_contents()]
    assert visited[: len(links)] == links
    rest = visited[len(links) :]
    chips = page.locator("#legend .chip").count()
    assert rest[:2] == ["colour", "find"]
    assert rest[2 + chips] == "chart"
    assert "Resolved configuration" in rest[-1]
    assert len(rest) == 2 + chips + 1 + 6 + 1, "no figure is a stop of its own"


def test_headings_and_names_for_those_who_do_not_see(opened):
    page = opened.page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map((h) => +h.tagName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert page.locator("img:not([alt])").count() == 0
    figures = page.locator("section [data-root-id]").count()
    named = page.locator("[role=img][aria-label] [data-root-id]").count()
    assert (figures - named, page.get_attribute("#chart", "role")) == (1, "application"), "but for the map"
    label = page.locator("#training [role=img]").first.get_attribute("aria-label")
    assert label == "Total loss. Total loss: 4.95 at step 1, 2 at step 60; least 2, most 4.95."
    unnamed = "[...document.querySelectorAll('.mol svg')].filter((s) => !s.closest('[role=img][aria-label]')).length"
    assert page.evaluate(unnamed) == 0


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_nothing_is_wider_than_the_window(browser, report, width):
    with Opened(browser, report.as_uri(), width=width) as opened:
        assert opened.page.evaluate(WIDER_THAN_THE_WINDOW) == []


def test_on_paper(opened, tmp_path):
    page = opened.page
    page.set_viewport_size({"width": 1120, "height": 1600})  # what is left of the sheet within its margins
    page.emulate_media(media="print")
    opened.frame()
    assert page.evaluate(WIDER_THAN_THE_WINDOW) == []
    drawn = page.evaluate(CANVASES)
    assert drawn
    assert all(drawn)
    for hidden in ("nav", ".controls", "#keys"):
        assert not page.is_visible(hidden)
    for kept in ("#legend .chip", "#card svg", "#evaluation table", "#preparation table"):
        assert page.locator(kept).first.is_visible(), kept
    pdf = page.pdf(path=tmp_path / "report.pdf", prefer_css_page_size=True, print_background=False)
    assert pdf.startswith(b"%PDF")


def test_names_that_are_markup_stay_names(browser, tmp_path):
    (tmp_path / "in.csv").write_text("smiles,id\n" + "".join(f'{s},"{EVIL}{n}"\n' for n, s in enumerate(DRUGS)))
    export_embeddings(random_embedder(), tmp_path / "in.csv", tmp_path / "embeddings")
    with Opened(browser, write_report(tmp_path).resolve().as_uri()) as opened:
        for row in range(len(DRUGS)):
            x, y = opened.place(row)
            opened.page.mouse.move(x, y)
            opened.frame()
            opened.page.mouse.click(x, y)
            opened.frame()
            assert opened.name().startswith(EVIL)
        opened.page.fill("#find", EVIL[:9])
        opened.page.keyboard.press("Enter")
        assert opened.page.locator("img, section script").count() == 0
        assert opened.wrong == []


def test_answers_of_a_search_that_are_markup_stay_answers(browser, tmp_path):
    long = "C" * 300
    answers = {EVIL: [Neighbour(EVIL, "CCO", "K", 0.5), Neighbour("b", EVIL, "K", 0.4)]}
    answers |= {long: [Neighbour(long, long, "K", 0.3)]}
    write_gallery(answers, tmp_path / "page.html", title=EVIL, facts={EVIL: EVIL}, drawn={EVIL: EVIL, long: long})
    for width in (1280, 390):
        with Opened(browser, (tmp_path / "page.html").as_uri(), width=width, ready="h1") as opened:
            assert opened.page.text_content("h1") == EVIL
            assert opened.page.locator("img, script").count() == 0
            assert opened.page.evaluate(WIDER_THAN_THE_WINDOW) == []
            assert opened.wrong == []
