"""Which of PubChem's files hold a range of compounds."""

from __future__ import annotations

import gzip
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError
from mmsa_shards.pubchem import COMPOUNDS, CONFORMERS, download_pubchem
from tests.fixtures.download_server import Fault, Server, serving

HASTY = Patience(tries=2, first_wait_s=0.01, longest_wait_s=0.01)
TWO_D = "Compound/CURRENT-Full/SDF"
THREE_D = "Compound_3D/01_conf_per_cmpd/SDF"
FILES = (
    f"{TWO_D}/Compound_000000001_000500000.sdf.gz",
    f"{TWO_D}/Compound_000500001_001000000.sdf.gz",
    f"{TWO_D}/Compound_001000001_001234567.sdf.gz",  # the last one, and short
)
CONFORMER_FILES = (
    f"{THREE_D}/00000001_00025000.sdf.gz",
    f"{THREE_D}/00050001_00075000.sdf.gz",  # after a hole
    f"{THREE_D}/00075001_00081000.sdf.gz",
)
SMILES = "Compound/Extras/CID-SMILES.gz"


@pytest.fixture
def server():
    with serving() as server:
        for path in (*FILES, SMILES):
            server.put(path, gzip.compress(path.encode()))
        for path in CONFORMER_FILES:
            server.put(path, gzip.compress(path.encode()), md5=False)
        server.put(f"{TWO_D}/README-Compound-SDF", b"read me", md5=False)
        yield server


def fetch(server: Server, out, first: int, last: int, **asked):
    said: list[str] = []
    done = download_pubchem(out, first, last, base_url=server.url, patience=HASTY, say=said.append, **asked)
    here = {str(path.relative_to(out)) for path in out.rglob("*.gz")}
    for path in here:
        assert (out / path).read_bytes() == server.files[path]
    return done, here, said


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1, 500_000, FILES[:1]),
        (500_000, 500_001, FILES[:2]),
        (700_000, 1_234_567, FILES[1:]),
        (1, 1_000_001, FILES),
    ],
)
def test_the_files_that_meet_the_range_are_fetched(server, tmp_path, first, last, expected):
    done, here, said = fetch(server, tmp_path, first, last)
    assert here == set(expected)
    assert done.outcome.fetched == len(expected)
    assert done.inputs == (f"{TWO_D}/*.sdf.gz",)
    assert said == []


def test_holes_and_the_end_of_the_series_are_said(server, tmp_path):
    done, here, said = fetch(server, tmp_path, 1, 100_000, conformers=True)
    assert here == {FILES[0], *CONFORMER_FILES}
    assert done.inputs == (f"{TWO_D}/*.sdf.gz", f"{THREE_D}/*.sdf.gz")
    assert done.outcome.without_md5 == 3
    assert said == [
        "the server has no 3D file for 1 of the 4 parts of this range",
        "the last 3D file of the server ends at compound 81,000",
    ]
    assert not [line for line in server.log if line.path.startswith(THREE_D) and line.path.endswith(".md5")]


def test_the_table_of_smiles_can_be_had_alone(server, tmp_path):
    done, here, _ = fetch(server, tmp_path, 1, 1, compounds=False, smiles=True)
    assert here == {SMILES}
    assert done.inputs == (SMILES,)
    assert {line.path for line in server.log} == {SMILES, f"{SMILES}.md5"}


def test_without_a_listing_the_names_come_from_the_range_and_that_is_said(server, tmp_path):
    server.listings = False
    _, here, said = fetch(server, tmp_path, 1, 600_000)
    assert here == set(FILES[:2])
    assert said == [
        f"{server.url}{TWO_D}/ gives no listing, so the names of the 2 2D files were worked out from the range; a "
        "missing one will be an error"
    ]
    with pytest.raises(DownloadError, match=r"00025001_00050000\.sdf\.gz is not on the server"):
        fetch(server, tmp_path, 1, 50_000, compounds=False, conformers=True)


def test_a_listing_that_fails_at_first_is_asked_for_again(server, tmp_path):
    server.always[f"{TWO_D}/"] = Fault("status", status=503)
    with pytest.raises(DownloadError, match=r"cannot list .*SDF/ \(HTTP 503 .*; tried 2 times\)"):
        fetch(server, tmp_path, 1, 1)
    assert len(server.asked(f"{TWO_D}/")) == 2


@pytest.mark.parametrize(("first", "last"), [(0, 10), (-5, 10), (11, 10), (1, 10**9)])
def test_a_range_that_is_none_is_said_before_anything_is_asked(server, tmp_path, first, last):
    with pytest.raises(DownloadError, match=f"compounds {first} to {last} are not a range"):
        fetch(server, tmp_path / "out", first, last)
    assert not server.log
    assert not (tmp_path / "out").exists()


def test_a_range_that_no_file_holds_is_said(server, tmp_path):
    with pytest.raises(DownloadError, match="has no file for compounds 2,000,000 to 3,000,000"):
        fetch(server, tmp_path, 2_000_000, 3_000_000)
    with pytest.raises(DownloadError, match="nothing was asked for"):
        fetch(server, tmp_path, 1, 10, compounds=False)


def test_names_are_those_of_the_server():
    assert COMPOUNDS.name(1) == "Compound_000000001_000500000.sdf.gz"
    assert COMPOUNDS.name(173_500_001) == "Compound_173500001_174000000.sdf.gz"
    assert CONFORMERS.name(1) == "00000001_00025000.sdf.gz"
    assert CONFORMERS.name(100_000_001) == "100000001_100025000.sdf.gz"
    assert COMPOUNDS.cids("Compound_000000001_000500000.sdf.gz") == range(1, 500_001)
    for stranger in (
        "Compound_000000001_000500000.sdf.gz.md5",
        "Compound_1_2.sdf.gz",
        "README",
        "00000001_00025000.sdf",
    ):
        assert COMPOUNDS.cids(stranger) is None
        assert CONFORMERS.cids(stranger) is None


@given(
    series=st.sampled_from([COMPOUNDS, CONFORMERS]),
    first=st.integers(1, 200_000_000),
    length=st.integers(1, 3_000_000),
)
def test_names_cover_a_range_without_gap_or_overlap(series, first, length):
    last = first + length - 1
    held = [series.cids(name) for name in map(series.name, series.begins(first, last))]
    assert held[0].start <= first < held[0].stop
    assert held[-1].start <= last < held[-1].stop
    assert all(one.stop == other.start for one, other in pairwise(held))
    assert {len(cids) for cids in held} == {series.cids_per_file}
