"""What the site has beside docs/: README.md as its first page, and every file of the repository that a page links to.

Links are written for the repository, where they work in any viewer. Here a target outside docs/ becomes a page of the
site, so that the same links work without knowing where the repository is hosted. Two things are made for the theme:
ids of headings that its script can look up, and the search index as a script (docs/js/search_from_folder.js).
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository that are pages of the navigation."""

_LINK = re.compile(r"(\]\()([^)\s#:]*)(#[^)\s]*)?(\))")  # a colon would be that of a scheme
_FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1", re.DOTALL | re.MULTILINE)


def on_config(config: MkDocsConfig) -> None:
    """Chooses how headings become ids."""
    config.mdx_configs["toc"]["slugify"] = _id_of


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages, and those that they link to in turn."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()] + list(PAGES)
    seen: set[str] = set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if not source.startswith("docs/"):
            files.append(File.generated(config, _page_of(source), content=_content(source)))
        if source.endswith(".md"):
            found = {_target(source, match[2]) for match in _LINK.finditer(_prose((ROOT / source).read_text()))}
            waiting += [f for f in found if _is_ours(f) and not f.startswith("docs/") and (ROOT / f).is_file()]
    for name, style in (("light", "default"), ("dark", "github-dark")):
        colours = HtmlFormatter(style=style).get_style_defs(".highlight")
        files.append(File.generated(config, f"css/code-{name}.css", content=colours))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository into links to their pages."""
    source = _source_of(page.file.src_uri)
    if not source.endswith(".md"):
        return markdown

    def rewritten(match: re.Match[str]) -> str:
        target, link = _target(source, match[2]), match[2]
        if _is_ours(target) and (ROOT / target).is_file():  # of others mkdocs says what is wrong with them
            link = posixpath.relpath(_page_of(target), posixpath.dirname(page.file.src_uri) or ".")
        fragment = f"#{_selectable(match[3][1:])}" if match[3] else ""
        return f"{match[1]}{link}{fragment}{match[4]}"

    return _LINK.sub(rewritten, markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Writes the search index as a script, which a page that is opened from a folder can load."""
    folder = Path(config.site_dir) / "search"
    (folder / "search_index.js").write_text(f"const searchIndex = {(folder / 'search_index.json').read_text()};\n")


def _id_of(heading: str, separator: str) -> str:
    return _selectable(slugify(heading, separator))


def _selectable(name: str) -> str:
    """An id that is a CSS selector: the theme's script fails on others, and leaves tables and menus as they are."""
    return f"_{name}" if name[:1].isdigit() else name


def _target(source: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _is_ours(target: str) -> bool:
    return not target.startswith(("..", "/"))


def _page_of(source: str) -> str:
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/")
    return f"files/{source.removesuffix('.md')}.md"


def _source_of(page: str) -> str:
    """The file that `page` was made from, for those that are Markdown."""
    for source, name in PAGES.items():
        if name == page:
            return source
    if not page.startswith("files/"):
        return f"docs/{page}"
    name = page.removeprefix("files/")
    return name if (ROOT / name).is_file() else name.removesuffix(".md")


def _content(source: str) -> str:
    text = (ROOT / source).read_text()
    if source.endswith(".md"):
        return text
    try:
        language = get_lexer_for_filename(source).aliases[0]
    except (ClassNotFound, IndexError):
        language = "text"
    return f"# {source}\n\n~~~~~~{language}\n{text}\n~~~~~~\n"


def _prose(markdown: str) -> str:
    return _FENCE.sub("", markdown)
