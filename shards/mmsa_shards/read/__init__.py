"""Files of molecules -> records as text, each with its place in its file. No chemistry happens here.

Malformed records (such as one that is cut off, or a line of ten megabytes) are yielded as `Refused`, in order with
the good records around them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator

from mmsa_shards.errors import ColumnError, PrepareError
from mmsa_shards.options import PrepareOptions
from mmsa_shards.places import opened
from mmsa_shards.read.failures import access_errors, truncation_errors
from mmsa_shards.read.files import EXPORT_KEY, files_of
from mmsa_shards.read.kinds import CID_SMILES, check_kind, is_known_kind, kind_of, name_of, without_query
from mmsa_shards.read.lines import cid_smiles_records, line_batches, smiles_records
from mmsa_shards.read.record import Place, Record, Refused, Structure
from mmsa_shards.read.sdf import sdf_records
from mmsa_shards.read.tables import csv_records, parquet_records
from mmsa_shards.read.unpack import plain, read_pieces, unpacked

__all__ = [
    "EXPORT_KEY",
    "Place",
    "Record",
    "Refused",
    "Structure",
    "check_kind",
    "files_of",
    "is_known_kind",
    "kind_of",
    "read_records",
    "without_query",
]


def read_records(
    path: str, options: PrepareOptions, *, name: str | None = None, progress: Callable[[int], None] | None = None
) -> Iterator[Record | Refused]:
    """Yields the records of a file, gzipped or not, whose kind is determined by its name.

    Args:
        path: local or any URL that fsspec supports; ``.smi .csv .tsv .parquet .sdf .mol``, text also with ``.gz``.
            PubChem's ``CID-SMILES`` is recognized by its name.
        options: `smiles_column`, `id_column` and `allow_truncated` are used.
        name: name of the file in the places of records, and in the ids of records that have none; None uses the last
            component of `path`.
        progress: called with the number of bytes read so far; for Parquet, estimated from the rows.

    Raises:
        PrepareError: the file cannot be opened, is of an unknown kind, holds no record, lacks a column, unpacks to
            far more than molecules do, or ends in the middle of a record and `allow_truncated` is off.
    """
    check_kind(path)
    kind = kind_of(path)
    file, count, number = name or name_of(path), 0, 0
    try:
        with opened(path) as stream:
            if kind == ".parquet":
                records = parquet_records(stream, file, options, progress)
            else:
                pieces = read_pieces(stream, progress)
                records = _TEXT[kind](plain(unpacked(pieces, path), path), file, options)
            for record in records:
                count += 1
                number = record.place.number
                yield record
    except truncation_errors() as error:
        truncated = not isinstance(error, zlib.error)
        what = "ends in the middle" if truncated else "is damaged"
        if not options.allow_truncated:
            raise PrepareError(
                f"{path} {what} after {count} records ({error}): fetch it again, or accept what is left of it with "
                "prepare.allow_truncated=true"
            ) from error
        reason = "truncated_file" if truncated else "damaged_file"
        warning = "" if truncated else "; records just before may be wrong"
        place = Place(file, number + 1)
        yield Refused(place.as_id, place, reason, f"the file {what} here ({error}): what follows is lost{warning}")
        return
    except ColumnError as error:
        raise ColumnError(f"{path} {error}") from None
    except FileNotFoundError:
        raise PrepareError(f"input {path} does not exist: check the path") from None
    except access_errors() as error:
        raise PrepareError(f"cannot read {path}: {error}") from error
    if count == 0:
        raise PrepareError(f"{path} holds no records: leave it out or name another file")


def _csv(pieces: Iterable[bytes], file: str, options: PrepareOptions) -> Iterator[Record | Refused]:
    return csv_records(line_batches(pieces), file, options)


_Reader = Callable[[Iterable[bytes], str, PrepareOptions], Iterator[Record | Refused]]
_TEXT: dict[str, _Reader] = {
    ".smi": smiles_records,
    ".smiles": smiles_records,
    CID_SMILES: cid_smiles_records,
    ".csv": _csv,
    ".tsv": _csv,
    ".sdf": sdf_records,
    ".mol": sdf_records,
    ".mdl": sdf_records,
}
