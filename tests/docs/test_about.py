"""CITATION.cff and CHANGELOG.md say what the package says of itself."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_citation():
    """The keys that version 1.2.0 of the format asks for, and the method that was reimplemented."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert (cited["title"], cited["version"], cited["license"]) == (
        PROJECT["name"],
        PROJECT["version"],
        PROJECT["license"],
    )
    (article,) = cited["references"]
    assert {"type", "title", "authors"} <= article.keys()
    assert article["identifiers"][0]["value"] == "arXiv:2505.05877"
    assert [author["family-names"] for author in article["authors"]] == [
        "Yin",
        "Liu",
        "Hao",
        "Zhou",
        "Liu",
        "Ma",
        "Wang",
    ]


def test_the_changelog():
    text = (ROOT / "CHANGELOG.md").read_text()
    assert text.startswith("# Changelog\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert PROJECT["version"] in text
