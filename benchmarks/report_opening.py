"""How long a browser takes to open a report, until its map answers to the pointer.

    python benchmarks/report_opening.py runs/base/report.html
    python benchmarks/report_opening.py runs/base/report.html --rounds 15 --json opening.json

Chromium without a window and without a graphics card opens the page anew, in a profile of its own, ROUNDS times.
Opening: from the request to the moment the chosen molecule is drawn and the map listens. Processor time is that of the
page's main thread up to then. Hover: from the move of the pointer until the next frame but one. Before anything is
timed, a correctness gate: the page opens without an error, asks nothing of any network, and a step by keyboard
chooses another molecule.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright
from shared.figures import Figure, parser, publish

READY = "#map[data-ready]"
FRAMES = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def opened(browser: Browser, url: str) -> tuple[Page, dict[str, float]]:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(url)
    page.wait_for_selector(READY, state="attached", timeout=120_000)
    wall = page.evaluate("performance.now()") / 1000
    found = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    return page, {"wall_s": wall, "cpu_s": found["TaskDuration"], "heap_mb": found["JSHeapUsedSize"] / 1e6}


def gate(browser: Browser, url: str) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, wrong = context.new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: None if request.url == url else wrong.append(f"asks for {request.url}"))
    page.goto(url)
    page.wait_for_selector(READY, state="attached", timeout=120_000)
    before = page.text_content("#name")
    page.focus("#chart")
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):
        page.keyboard.press(key)
        if page.text_content("#name") != before:
            break
    else:
        wrong.append("no key chooses another molecule")
    context.close()
    if wrong:
        raise SystemExit(f"the page is wrong, nothing is timed: {'; '.join(wrong)}")


def hovered(page: Page) -> list[float]:
    page.locator("#chart").scroll_into_view_if_needed()
    box = page.locator("#chart").bounding_box()
    assert box is not None
    seconds = []
    for share in (0.3, 0.4, 0.45, 0.5, 0.55, 0.6):
        start = time.perf_counter()
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
        page.evaluate(FRAMES)
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    options = parser(__doc__)
    options.add_argument("page", type=Path, help="a report, report.html")
    options.add_argument("--rounds", type=int, default=9, help="openings (9)")
    options.add_argument("--browser", default="/usr/bin/chromium", help="the installed Chromium or Chrome")
    arguments = options.parse_args()
    url = arguments.page.resolve().as_uri()
    rounds: list[dict[str, float]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.browser, args=["--no-sandbox", "--disable-gpu", "--no-first-run"]
        )
        gate(browser, url)
        for _ in range(arguments.rounds):
            page, numbers = opened(browser, url)
            rounds.append(numbers | {"hover_s": statistics.median(hovered(page))})
            page.context.close()
        version = browser.version
        browser.close()
    median = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    figures = [
        Figure("size of the page", arguments.page.stat().st_size / 1e6, "MB"),
        Figure("opening", median["wall_s"], "s"),
        Figure("opening, processor time", median["cpu_s"], "s"),
        Figure("heap", median["heap_mb"], "MB"),
        Figure("hover", median["hover_s"], "s"),
    ]
    publish(f"Chromium {version}, medians of {arguments.rounds} openings", figures, arguments.json)


if __name__ == "__main__":
    main()
