"""Jinja environment of the pages: everything is escaped, and an undefined name is an error."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment() -> Environment:
    """Returns the environment with the filters ``drawing``, ``figure`` and ``words``."""
    made = Environment(
        loader=PackageLoader("mmsa_dist.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "drawing": lambda picture: Markup(picture.svg),
        "figure": figure,
        "words": lambda name: name.replace("_", " "),
    }
    return made


def figure(value: object) -> str:
    """Formats a number for display."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
