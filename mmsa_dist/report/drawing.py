"""Structures as compact SVG: RDKit's drawing, compressed to about a kilobyte.

RDKit's own SVG takes 5 to 15 kB for a drug, nearly all of it for one styled path per half bond. Here half bonds of
one colour share a path of integers and atom labels are text, so that thousands of structures fit on one page.
"""

from __future__ import annotations

import re
from collections import defaultdict
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

WIDTH, HEIGHT = 480, 360
"""View box, about twice the size on screen because coordinates are integers."""

_SVG = "{http://www.w3.org/2000/svg}"
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_STYLE = re.compile(r"([a-z-]+):([^;]+)")
_INK = "currentColor"  # replaces RDKit's black by the text colour of the page

Points = list[tuple[int, int]]


def structure_svg(smiles: str) -> str:
    """Draws a molecule as SVG.

    Args:
        smiles: of the molecule.

    Returns:
        A scalable ``<svg>`` element. It holds only what RDKit drew, never the text of `smiles`, and is empty if
        `smiles` does not parse.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem.Draw import rdMolDraw2D

    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">'
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            return f"{box}</svg>"
        # The last argument makes labels text instead of glyph outlines.
        drawer = rdMolDraw2D.MolDraw2DSVG(WIDTH, HEIGHT, -1, -1, True)
        options: Any = drawer.drawOptions()  # the stubs of RDKit 2026.9 type its attributes wrongly
        options.clearBackground = False
        options.padding = 0.05
        options.bondLineWidth = 3
        options.fixedBondLength = 50
        options.minFontSize = 15
        options.maxFontSize = 26
        rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
        drawer.FinishDrawing()
    return box + _fold(drawer.GetDrawingText()) + "</svg>"


def _fold(svg: str) -> str:
    strokes: dict[str, list[Points]] = defaultdict(list)
    wedges: dict[str, list[Points]] = defaultdict(list)
    labels = []
    for element in ElementTree.fromstring(svg).iter():
        style = dict(_STYLE.findall(element.get("style", "")))
        if element.tag == f"{_SVG}path" and element.get("class"):  # without a class: a rounded corner, not needed
            points = _points(element.get("d", ""))
            if style.get("fill", "none") == "none":
                strokes[_colour(style.get("stroke"))].append(points)
            else:
                wedges[_colour(style["fill"])].append(points)
        elif element.tag == f"{_SVG}text" and element.text:
            x, y = (round(float(element.get(axis, "0"))) for axis in "xy")
            size = round(float(_NUMBER.findall(style.get("font-size", "20"))[0]))
            colour = quoteattr(_colour(element.get("fill") or style.get("fill")))
            labels.append(f'<text x="{x}" y="{y}" fill={colour} font-size="{size}">{escape(element.text)}</text>')
    parts = [f"<path d={quoteattr(_path(lines))} fill={quoteattr(c)} />" for c, lines in wedges.items()]
    parts += [f"<path d={quoteattr(_path(lines))} stroke={quoteattr(c)} />" for c, lines in strokes.items()]
    bonds = "".join(parts).replace(" />", "/>")
    return f'<g fill="none" stroke-width="3" stroke-linecap="round">{bonds}</g>{"".join(labels)}'


def _points(path: str) -> Points:
    numbers = [round(float(number)) for number in _NUMBER.findall(path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _path(lines: list[Points]) -> str:
    """Joins lines into one path of relative steps, continuing from the previous line where possible."""
    text, at = "", None
    for points in lines:
        if points[0] != at:
            text += f"M{points[0][0]} {points[0][1]}"
        for (x0, y0), (x1, y1) in pairwise(points):
            text += f"l{x1 - x0} {y1 - y0}"
        at = points[-1]
    return text.replace(" -", "-")


def _colour(colour: str | None) -> str:
    return _INK if colour is None or colour.upper() in ("#000000", "BLACK") else colour
