"""The site in a real browser: no page fails, tables are styled, and the menu of colours and the search work."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Gives the URL of the folder on a plain web server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a browser; the test fails where its scripts do."""
    wrong: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    made = context.new_page()
    made.on("pageerror", lambda error: wrong.append(f"{made.url}: {error}"))
    made.on("console", lambda line: line.type == "error" and wrong.append(f"{made.url}: {line.text}"))
    yield made
    context.close()
    assert wrong == []


def test_every_page_opens_without_an_error_and_with_its_tables_styled(site, page):
    bare = "[...document.querySelectorAll('table')].filter((t) => !t.classList.contains('table-striped')).length"
    pages = sorted(file for file in site.rglob("*.html") if file.name != "404.html")  # its links are a server's
    assert len(pages) > 30
    for file in pages:
        page.goto(file.as_uri())
        assert page.evaluate(bare) == 0, file


def test_a_heading_that_begins_with_a_digit_is_linked_to(site, page):
    page.goto(f"{site.as_uri()}/decisions.html")
    heading = page.locator("h3[id^=_2000]")
    assert heading.text_content().startswith("2,000 reference rows")
    page.goto(f"{site.as_uri()}/measurements/embedding.html")
    page.click("a[href='../decisions.html#_2000-reference-rows']")
    assert page.url.endswith("/decisions.html#_2000-reference-rows")


def test_colours_are_chosen_in_the_menu_and_kept(site, page):
    background = "getComputedStyle(document.querySelector('.highlight')).backgroundColor"
    page.emulate_media(color_scheme="light")
    page.goto(f"{site.as_uri()}/index.html")
    assert page.get_attribute("html", "data-bs-theme") == "light"
    light = page.evaluate(background)
    page.click("#theme-menu")
    page.click("[data-bs-theme-value=dark]")
    assert page.get_attribute("html", "data-bs-theme") == "dark"
    assert page.evaluate(background) != light
    page.reload()
    assert page.get_attribute("html", "data-bs-theme") == "dark"


@pytest.mark.parametrize("opened_from", ["a folder", "a server"])
def test_the_search_finds_a_page(site, page, opened_from):
    def search(root: str) -> None:
        page.goto(f"{root}/howto/cluster.html")
        page.click("[data-bs-target='#mkdocs_search_modal']")
        page.fill("#mkdocs-search-query", "ledger")
        found = page.locator("#mkdocs-search-results a").first
        for _ in range(60):
            page.press("#mkdocs-search-query", "End")  # keys are listened to once the index is there
            if found.count():
                break
            page.wait_for_timeout(500)
        assert "ledger" in found.locator("xpath=ancestor::article").text_content().lower()
        with page.expect_navigation():
            found.click()
        assert page.url.startswith(root)
        assert page.locator("h1").count() == 1

    if opened_from == "a folder":
        search(site.as_uri())
    else:
        with served(site) as url:
            search(url)
