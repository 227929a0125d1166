"""Whatever stands in a file: each of its records comes out or is refused, in its place, and none inside another."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from mmsa_shards.read import Record, read_records
from tests.shards.test_read import MOLFILE

ENDS = st.sampled_from(["\n", "\r\n", "\r"])
#: Good ones, and such as only RDKit will refuse.
SMILES = st.sampled_from(["C", "CCO", "[Na+].[O-]C(=O)C", "F/C=C/F", "c1cccc1", "C*", "C(C)(C)(C)(C)C"])
#: Ids, around the number of the record: by the quotes of the last four no program would mean anything.
PLAIN = ["{}", "{} (5'-3')", '{} 5"', '"{}"', '"{}, or ""other"""', '"{}\tb"', '"{} of\n\ntwo, or\nthree lines"']
STRAY = ['"{}', '"{}, or "" other', '"{}" or other', '"{} "or other"']


def _accounts(path, options) -> list[tuple[int, list[str]]]:
    """Of each outcome its place and the records that its id names."""
    records = read_records(str(path), options)
    return [(r.place.number, re.findall(r"r\d+x", r.id) if isinstance(r, Record) else []) for r in records]


def _check(path, options, lines: list[str], end: str, starts: dict[int, str], *, exactly: bool) -> None:
    """Looks that a file of `lines` gives an outcome at the place of each record, which names none but that one."""
    path.write_bytes(end.join(line.replace("\n", end) for line in lines).encode())
    found = _accounts(path, options)
    places = [place for place, _ in found]
    assert places == sorted(set(places))
    assert set(starts) <= set(places)
    assert not exactly or set(starts) == set(places)
    for place, named in found:
        assert set(named) <= {starts.get(place)}


@settings(max_examples=150, deadline=None)
@given(data=st.data(), end=ENDS)
def test_lines_of_smiles(data, end, options, tmp_path_factory):
    kinds = st.sampled_from(
        ["{smiles}\t{id}", "{smiles} {id}", "  {smiles} {id}", "\t{id}", " \t {id}\tmore", "", " \t"]
    )
    lines, starts = ["C r0x"], {1: "r0x"}
    for number, kind in enumerate(data.draw(st.lists(kinds, max_size=12)), 2):
        lines.append(kind.format(smiles=data.draw(SMILES), id=f"r{number}x"))
        if lines[-1].strip():
            starts[number] = f"r{number}x"
    _check(tmp_path_factory.mktemp("lines") / "a.smi", options, lines, end, starts, exactly=True)


@settings(max_examples=300, deadline=None)
@given(
    data=st.data(), end=ENDS, delimiter=st.sampled_from([",", ";", "\t"]), stray=st.booleans(), short=st.booleans(),
    order=st.permutations(["smiles", "id", "note"]),
)  # fmt: skip
def test_rows_of_tables(data, end, delimiter, stray, short, order, options, tmp_path_factory):
    lines, starts, number = [delimiter.join(order)], {}, 2
    ids = st.sampled_from(PLAIN + STRAY * stray)
    smiles = SMILES if stray else SMILES | st.just("")  # a line without a SMILES may belong to a cell
    for _ in range(data.draw(st.integers(1, 12))):
        if starts and data.draw(st.integers(0, 5)) == 0:
            lines.append("")
            number += 1
            continue
        name = data.draw(ids) if starts else "{}"  # which says how many cells there are
        cells = {"smiles": data.draw(smiles), "id": name.format(f"r{number}x"), "note": "1"}
        row = [cells[column] for column in order]
        lines.append(delimiter.join(row[:-1] if short and order[-1] == "note" else row))
        starts[number] = f"r{number}x"
        number += 1 + name.count("\n")
    _check(tmp_path_factory.mktemp("rows") / "a.csv", options, lines, end, starts, exactly=not stray)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), end=ENDS)
def test_records_of_sdf(data, end, options, tmp_path_factory):
    """With and without dollars between them, titles, items, and molfiles in items."""
    lines, starts = [], {}
    items = ["> <NOTE>\nM  END\n$$$\n", "> <HELD>\n" + MOLFILE, '> <Q>\n"\n', "> <BLANK>\n"]
    for number in range(1, data.draw(st.integers(2, 8))):
        title = data.draw(st.sampled_from([f"r{number}x", ""]))
        lines.append(MOLFILE.replace("ethanol", title, 1).rstrip("\n"))
        for item in data.draw(st.lists(st.sampled_from([*items, f"> <ID>\nr{number}x\n"]), max_size=3)):
            lines.append(item)
        starts[number] = f"r{number}x"
        if data.draw(st.booleans()):
            lines.append("$$$$")
    lines += [""] if lines[-1] == "$$$$" else ["$$$$", ""]
    _check(tmp_path_factory.mktemp("records") / "a.sdf", options, lines, end, starts, exactly=True)
