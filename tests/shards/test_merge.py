"""Merging: which record becomes the molecule, what joins it, and that order and instalments do not matter."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import example, given
from hypothesis import strategies as st

from mmsa_shards import merge as merging
from mmsa_shards.merge import Entry, Merged


def merge(entries: list[Entry], conformers: int) -> Merged:
    """Coordinates fit unless they are of a SMILES that ends in O or is before the other in the alphabet."""
    return merging.merge(entries, conformers, lambda pairs: [not (b.endswith("O") or a > b) for a, b in pairs])


def record(id: str, inchikey: str = "A", smiles: str = "a", xyz: str = "", source: str = "input", **more) -> Entry:
    conformers = tuple(sorted(letter.encode() for letter in xyz))
    values = {"file": "x.smi", "number": 1, "xyz_smiles": smiles, **more}
    return Entry(id=id, inchikey=inchikey, smiles=smiles, xyz=conformers, conformer_source=source, **values)


def held(id: str, row: int, **more) -> Entry:
    return record(id, row=row, file="train-00000.tar", **more)


def content(entry: Entry) -> tuple:
    return (entry.inchikey, entry.smiles, entry.id, entry.xyz, entry.conformer_source if entry.xyz else "none")


def molecules(merged: Merged) -> list[tuple]:
    return sorted(map(content, merged.stay + merged.make))


def test_of_duplicates_the_first_by_content_stays_and_3d_goes_before_none():
    merged = merge([record("b"), record("c", xyz="x"), record("a"), record("d", inchikey="B")], conformers=1)
    assert molecules(merged) == [("A", "a", "c", (b"x",), "input"), ("B", "a", "d", (), "none")]
    assert (merged.duplicates, merged.joined) == (2, 0)


def test_conformers_of_records_drawn_alike_stand_side_by_side():
    entries = [record("b", xyz="z"), record("a", xyz="y"), record("c", xyz="y"), record("d", smiles="b", xyz="x")]
    assert molecules(merge(entries, conformers=3)) == [("A", "a", "a", (b"y", b"z"), "input")]
    assert molecules(merge(entries, conformers=1)) == [("A", "a", "a", (b"y",), "input")]


def test_coordinates_of_pubchem3d_go_to_the_2d_record_of_the_same_cid():
    flat = record("CID1", inchikey="A-FLAT", smiles="CC(N)F")
    solid = record("CID1", inchikey="A-STEREO", smiles="C[C@H](N)F", xyz="x", source="pubchem3d")
    merged = merge([solid, flat], conformers=1)
    assert merged.make == [replace(solid, inchikey="A-FLAT", smiles="CC(N)F")]
    assert merged.make[0].xyz_smiles == "C[C@H](N)F"
    assert (merged.duplicates, merged.joined) == (0, 1)


def test_coordinates_that_do_not_fit_stay_with_their_own_record():
    flat = record("CID1", inchikey="A-FLAT", smiles="CC(N)F")
    tautomer = record("CID1", inchikey="A-STEREO", smiles="C=C(N)O", xyz="x", source="pubchem3d")
    merged = merge([tautomer, flat], conformers=1)
    assert (molecules(merged), merged.joined) == ([content(flat), content(tautomer)], 0)
    same_key = replace(tautomer, inchikey="A-FLAT")
    merged = merge([same_key, flat], conformers=1)
    assert (merged.make, merged.duplicates, merged.joined) == ([same_key], 1, 0)


def test_records_of_one_cid_and_two_skeletons_are_two_molecules():
    """They are so where the two skeletons belong to different shards, so they must be where there is one shard."""
    flat = record("CID1", inchikey="A-FLAT", smiles="CC(N)F")
    other = record("CID1", inchikey="B-STEREO", smiles="CC(N)F", xyz="x", source="pubchem3d")
    merged = merge([other, flat], conformers=1)
    assert (molecules(merged), merged.joined) == ([content(flat), content(other)], 0)


def test_only_pubchem3d_is_joined_by_id():
    flat = record("1", inchikey="A-FLAT", smiles="CC(N)F")
    solid = record("1", inchikey="A-STEREO", smiles="C[C@H](N)F", xyz="x")
    assert len(merge([solid, flat], conformers=1).make) == 2


def test_what_a_shard_holds_stays_unless_it_changes():
    ours = held("b", row=4)
    merged = merge([ours, record("c")], conformers=1)
    assert (merged.stay, merged.make, merged.duplicates) == ([ours], [], 1)
    assert merge([ours, record("a")], conformers=1).stay == [replace(ours, id="a")]
    better = record("c", xyz="x")
    assert merge([ours, better], conformers=1).make == [better]
    solid = held("b", row=4, xyz="x")
    assert merge([solid, record("a", xyz="x")], conformers=2).stay == [replace(solid, id="a")]
    assert merge([solid, record("a", xyz="y")], conformers=2).make == [record("a", xyz="xy")]


def test_pubchem3d_that_comes_later_is_joined_to_what_the_shard_holds():
    flat = held("CID1", row=0, inchikey="A-FLAT", smiles="CC(N)F")
    solid = record("CID1", inchikey="A-STEREO", smiles="C[C@H](N)F", xyz="x", source="pubchem3d")
    merged = merge([flat, solid], conformers=1)
    assert merged.make == [replace(solid, inchikey="A-FLAT", smiles="CC(N)F")]
    assert (merged.stay, merged.joined) == ([], 1)


RECORDS = st.lists(
    st.builds(
        record,
        id=st.sampled_from("abcd"),
        inchikey=st.sampled_from("AB"),
        smiles=st.sampled_from("ab"),
        xyz=st.sampled_from(["", "x", "y", "z"]),
        source=st.sampled_from(["input", "pubchem3d"]),
    ),
    max_size=8,
)


class _Reversed(Random):
    def sample(self, population, k, *, counts=None):
        return list(population)[::-1]


@given(entries=RECORDS, order=st.randoms(use_true_random=False), conformers=st.integers(1, 3))
@example(entries=[record("a"), record("a", source="pubchem3d")], order=_Reversed(), conformers=1)
def test_the_order_of_records_changes_nothing(entries, order, conformers):
    shuffled = order.sample(entries, len(entries))
    assert merge(shuffled, conformers) == merge(entries, conformers)


@given(first=RECORDS, second=RECORDS, conformers=st.integers(1, 3))
def test_two_instalments_give_what_one_gives(first, second, conformers):
    # Ids of PubChem3D's own, so that none is joined: a shard knows only one id of each of its molecules.
    first, second = (
        [replace(e, id=f"3d-{e.id}") if e.conformer_source == "pubchem3d" and e.xyz else e for e in part]
        for part in (first, second)
    )
    once = merge(first + second, conformers)
    earlier = merge(first, conformers)
    shard = [replace(entry, row=row) for row, entry in enumerate(earlier.make)]
    later = merge(shard + second, conformers)
    assert molecules(later) == molecules(once)
    assert earlier.duplicates + later.duplicates == once.duplicates
    assert all(entry.row is not None for entry in later.stay)
