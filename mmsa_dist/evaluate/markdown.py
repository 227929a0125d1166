"""Escaping of text from files and users for Markdown."""

from __future__ import annotations

import re


def code_span(text: str) -> str:
    """Returns `text` as inline code without active markup; control characters are escaped as in Python."""
    if not text:
        return "(empty)"
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    # Markdown strips one space at both ends; it separates a backtick from the fence.
    beside = " " if shown.startswith("`") or shown.endswith("`") or (shown[0] == shown[-1] == " ") else ""
    return f"{fence}{beside}{shown}{beside}{fence}"


def table_cell(text: str) -> str:
    """Returns `text` as a table cell, on one line and with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
