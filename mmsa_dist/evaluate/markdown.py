"""Text of files and users in Markdown, shown as it is."""

from __future__ import annotations

import re


def code_span(text: str) -> str:
    """`text` as inline code, in which nothing is markup; control characters are escaped as in Python."""
    if not text:
        return "(empty)"
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * (longest + 1)
    # A space at both ends is taken off again by the reader, and keeps a backtick off the fence.
    beside = " " if shown.startswith("`") or shown.endswith("`") or (shown[0] == shown[-1] == " ") else ""
    return f"{fence}{beside}{shown}{beside}{fence}"


def table_cell(text: str) -> str:
    """`text` as a cell of a table, on one line and with its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")
