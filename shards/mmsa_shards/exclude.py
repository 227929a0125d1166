"""Files of molecules to exclude -> the skeletons by which preparation recognizes them.

A molecule that cannot be read here cannot be excluded, so none of them is passed over in silence.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from mmsa_shards.catalog import chunks_of
from mmsa_shards.errors import ColumnError, PrepareError
from mmsa_shards.job import Input, check_unchanged
from mmsa_shards.options import PrepareOptions, Standardization
from mmsa_shards.read import Record, Refused, read_records
from mmsa_shards.standardize import Refusal, standardize_many

_CUT_OFF = ("truncated_file", "damaged_file")
# The inputs are standardized in the same way, so none of them keeps a molecule that is refused for one of these. Other
# reasons may lie in how a molecule is written, and the inputs may have it in another form.
_IN_NO_INPUT = ("too_many_atoms", "undefined_atom", "inchi")


class Exclusion(NamedTuple):
    """What a file contributes to the molecules that are excluded."""

    skeletons: frozenset[str]
    """First blocks of the InChIKeys; none of molecules that no input can hold, such as those with too many atoms."""
    unread: str
    """A sentence about the molecules that cannot be read, and so are not excluded; empty if there are none."""


def excluded_by(source: Input, options: PrepareOptions) -> Exclusion:
    """Reads a file of molecules to exclude.

    Args:
        source: the file.
        options: `smiles_column` names the column of the inputs; a table without it is read by the usual names.
            `allow_truncated` concerns inputs alone: what a cut-off file has lost would not be excluded.

    Raises:
        PrepareError: the file cannot be read to its end, none of its molecules can be read, or it has changed.
    """
    options = replace(options, id_column="", allow_truncated=True)  # a cut comes as a refusal, told below
    try:
        return _excluded_by(source, options)
    except ColumnError:
        return _excluded_by(source, replace(options, smiles_column=""))
    finally:  # a file that was replaced explains any other error
        check_unchanged(source)


def _excluded_by(source: Input, options: PrepareOptions) -> Exclusion:
    how = Standardization.from_options(options)
    skeletons: set[str] = set()
    read = unread = 0
    first = ""
    for chunk in chunks_of(read_records(source.url, options, name=source.name)):
        records = [record for record in chunk if isinstance(record, Record)]
        lost = [record for record in chunk if isinstance(record, Refused)]
        if lost and lost[-1].reason in _CUT_OFF:
            raise PrepareError(
                f"cannot exclude the molecules of {source.url}: {lost[-1].message}; fetch it again "
                "(prepare.allow_truncated is for inputs only)"
            )
        for record, parent in zip(records, standardize_many([r.structure for r in records], how), strict=True):
            if not isinstance(parent, Refusal):
                skeletons.add(parent.inchikey.partition("-")[0])
            elif parent.reason not in _IN_NO_INPUT:
                lost.append(Refused(record.id, record.place, parent.reason, parent.message))
        read, unread = read + len(chunk), unread + len(lost)
        if lost and not first:
            place, message = min((refused.place.number, refused.message) for refused in lost)
            first = f"the first, number {place}: {message}"
    if unread == read:
        raise PrepareError(
            f"none of the {read:,} molecules of {source.url}, a file to exclude, can be read ({first}): see that the "
            "SMILES come first in each line, or in a column named smiles or by prepare.smiles_column, or leave the "
            "file out"
        )
    told = f"{unread:,} of {read:,} molecules of {source.url} cannot be read, so they are not excluded: {first}"
    return Exclusion(frozenset(skeletons), told if unread else "")
