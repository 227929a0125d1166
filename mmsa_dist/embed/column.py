"""Extracts a column of SMILES from common containers and classifies entries that are not text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pyarrow as pa

from mmsa_shards.read import Structure


def rows_of(molecules: object) -> list[object]:
    """Returns the rows of a column of SMILES unchanged.

    Args:
        molecules: a list or other iterable, a numpy array (masked elements are missing), or a column of pandas, polars
            or Arrow; a table with one column counts as that column.

    Raises:
        TypeError: `molecules` is one string, not a column, unordered, or a table of several columns.
    """
    if isinstance(molecules, str | bytes):
        raise TypeError(f"transform takes a list of SMILES, not one string; pass [{molecules!r}]")
    if isinstance(molecules, set | frozenset):
        raise TypeError(
            f"transform takes a list of SMILES, not a {type(molecules).__name__}, which has no order to give vectors "
            "in; pass sorted(...) of it, and keep that"
        )
    if isinstance(molecules, pa.Array | pa.ChunkedArray):
        return molecules.to_pylist()
    if not hasattr(molecules, "shape"):
        if isinstance(molecules, Mapping) or not isinstance(molecules, Iterable):
            raise TypeError(f"transform takes a list of SMILES, not a {type(molecules).__name__}; pass one column")
        return list(molecules)
    column = np.array(molecules, dtype=object)
    if isinstance(molecules, np.ma.MaskedArray):
        column[np.ma.getmaskarray(molecules)] = None
    if column.ndim == 2 and column.shape[1] == 1:  # a table with one column, as ColumnTransformer passes it
        column = column[:, 0]
    if column.ndim != 1:
        raise TypeError(f"transform takes one column of SMILES, not a table of shape {column.shape}; select one")
    return list(column)


def is_text_or_missing(row: object) -> bool:
    """Returns whether `row` is text, a `Structure`, None, NaN or pandas' NA."""
    if row is None or isinstance(row, str | Structure):
        return True
    try:
        return bool(row != row)  # only NaN differs from itself
    except TypeError:
        return True  # pandas' NA has no truth value
    except ValueError:
        return False  # an array compares elementwise


def not_text(row: object) -> tuple[str, str]:
    """Returns reason and message of a row that is neither text nor missing."""
    return "not_text", f"of type {type(row).__name__}, not the text of a SMILES"
