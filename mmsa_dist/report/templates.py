"""Jinja for the pages of this package: everything is escaped, and a name that is not given is an error."""

from __future__ import annotations

import math

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment() -> Environment:
    """Templates of this package with the filters ``drawing``, ``figure`` and ``words``."""
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
    """A number as people read it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) >= 10):
        return f"{value:,.0f}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
