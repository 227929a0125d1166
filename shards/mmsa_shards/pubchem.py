"""PubChem's bulk files: their layout on the server, and which of them hold a range of compounds.

The layout is that of https://ftp.ncbi.nlm.nih.gov/pubchem/: compounds with 2D coordinates in files of 500,000
compound ids (CIDs), their conformers in files of 25,000 with gaps in the series, and one table of all SMILES.
PubChem provides a checksum ``<name>.md5`` for the first and the last, and none for the conformers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mmsa_shards.download import Outcome, Progress, download, list_names
from mmsa_shards.download_patience import Patience
from mmsa_shards.download_sources import DownloadError, open_source
from mmsa_shards.download_transfer import RemoteFile

BASE_URL = "https://ftp.ncbi.nlm.nih.gov/pubchem/"

_HIGHEST_CID = 999_999_999  # file names have nine digits


@dataclass(frozen=True)
class Series:
    """Files of one folder, each of which holds a range of `cids_per_file` CIDs."""

    title: str
    folder: str
    template: str
    cids_per_file: int

    def name(self, first: int) -> str:
        """Returns the name of the file that begins with CID `first`."""
        return self.template.format(first, first + self.cids_per_file - 1)

    def cids(self, name: str) -> range | None:
        """Returns the range of CIDs of a file, or None if the name is not of this series."""
        found = re.fullmatch(re.sub(r"\{[^}]*\}", r"(\\d{8,})", self.template.replace(".", r"\.")), name)
        return range(int(found[1]), int(found[2]) + 1) if found else None

    def begins(self, first: int, last: int) -> range:
        """Returns the first CIDs of the files that a series without gaps would have for this range."""
        return range((first - 1) // self.cids_per_file * self.cids_per_file + 1, last + 1, self.cids_per_file)


COMPOUNDS = Series("2D", "Compound/CURRENT-Full/SDF", "Compound_{:09d}_{:09d}.sdf.gz", 500_000)
CONFORMERS = Series("3D", "Compound_3D/01_conf_per_cmpd/SDF", "{:08d}_{:08d}.sdf.gz", 25_000)
ALL_SMILES = RemoteFile("Compound/Extras", "CID-SMILES.gz")


@dataclass(frozen=True)
class PubChemDownload:
    """The result of a download."""

    outcome: Outcome
    inputs: tuple[str, ...]
    """Inputs for `mmsa prepare`: patterns of files, relative to the folder of the download."""


def download_pubchem(
    folder: str | Path,
    first: int,
    last: int,
    *,
    compounds: bool = True,
    conformers: bool = False,
    smiles: bool = False,
    base_url: str = BASE_URL,
    parallel: int = 4,
    patience: Patience | None = None,
    progress: Progress = lambda received, total, note: None,
    say: Callable[[str], None] = lambda words: None,
) -> PubChemDownload:
    """Fetches the files of PubChem that hold the CIDs `first` to `last` into `folder`, laid out as on the server.

    Files that are present are kept, and partial ones are resumed; see `mmsa_shards.download.download`.

    Args:
        folder: local; created if missing.
        first: smallest CID, from 1.
        last: largest CID, inclusive.
        compounds: the SDF files with 2D coordinates.
        conformers: the SDF files with one conformer of each compound.
        smiles: ``CID-SMILES.gz``, which holds all CIDs regardless of the range.
        base_url: URL of PubChem's folder or of a mirror: http(s), or any URL that fsspec supports.
        parallel: files at a time.
        patience: how often to retry after failures of the server; default `Patience()`.
        progress: see `mmsa_shards.download.Progress`.
        say: called with a sentence if the server's series has gaps or cannot be listed.

    Raises:
        DownloadError: the range is invalid, no file holds it, or a file cannot be fetched.
    """
    if not 1 <= first <= last <= _HIGHEST_CID:
        raise DownloadError(
            f"compounds {first} to {last} are not a range: choose 1 <= from <= to <= {_HIGHEST_CID}, such as --from 1 "
            "--to 500000"
        )
    wanted = [series for series, asked in ((COMPOUNDS, compounds), (CONFORMERS, conformers)) if asked]
    if not wanted and not smiles:
        raise DownloadError("nothing was asked for: choose the 2D files, --3d or --smiles")
    source = open_source(base_url)
    patience = patience or Patience()
    files = []
    for series in wanted:
        listed = list_names(source, series.folder, patience, progress)
        files += _files(f"{source.url}{series.folder}/", listed, series, first, last, say)
    patterns = tuple(f"{file}/*.sdf.gz" for file in dict.fromkeys(file.folder for file in files))
    if smiles:
        files.append(ALL_SMILES)
    if not files:
        raise DownloadError(f"{base_url} has no file for compounds {first:,} to {last:,}: choose another range")
    outcome = download(source, files, folder, parallel=parallel, patience=patience, progress=progress)
    return PubChemDownload(outcome, patterns or (ALL_SMILES.path,))


def _files(
    url: str, listed: frozenset[str] | None, series: Series, first: int, last: int, say: Callable[[str], None]
) -> list[RemoteFile]:
    """Returns the files of a series that overlap the range, from the server's listing if there is one."""
    asked = series.begins(first, last)
    held = {name: cids for name in listed or () if (cids := series.cids(name)) is not None}
    if not listed or not held:
        say(
            f"{url} gives no listing, so the names of the {len(asked):,} {series.title} files "
            "were worked out from the range; a missing one will be an error"
        )
        return [RemoteFile(series.folder, series.name(begin)) for begin in asked]
    end = max(cids.stop for cids in held.values()) - 1
    holes = {begin for begin in asked if begin <= end} - {cids.start for cids in held.values()}
    if holes:
        say(f"the server has no {series.title} file for {len(holes):,} of the {len(asked):,} parts of this range")
    if last > end:
        say(f"the last {series.title} file of the server ends at compound {end:,}")
    meeting = sorted((cids.start, name) for name, cids in held.items() if cids.start <= last and first < cids.stop)
    return [RemoteFile(series.folder, name, has_checksum=f"{name}.md5" in listed) for _, name in meeting]
