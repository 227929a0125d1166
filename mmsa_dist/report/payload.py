"""Data for the page's script: texts as JSON and numeric columns, gzipped, in base64.

It cannot contain markup, whatever the texts hold. The bytes are: length of the JSON (4 bytes, little-endian), the
JSON, whose key ``columns`` lists name, type and length of each column, and the concatenated columns.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SCRIPT_TYPES = {
    "int8": "Int8", "uint8": "Uint8", "int16": "Int16", "uint16": "Uint16", "int32": "Int32", "float32": "Float32",
}  # fmt: skip


def to_payload(texts: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> str:
    """Packs texts and columns into one string.

    Args:
        texts: any JSON-serializable values.
        columns: arrays by name; the script receives them flattened.

    Raises:
        ValueError: the script cannot read the dtype of an array.
    """
    listed, packed = [], []
    for name, column in columns.items():
        if column.dtype.name not in _SCRIPT_TYPES:
            raise ValueError(f"column {name}: the script reads {', '.join(_SCRIPT_TYPES)}, not {column.dtype.name}")
        listed.append([name, _SCRIPT_TYPES[column.dtype.name], column.size])
        packed.append(np.ascontiguousarray(column, column.dtype.newbyteorder("<")).tobytes())
    head = json.dumps({**texts, "columns": listed}, allow_nan=False, separators=(",", ":")).encode()
    content = len(head).to_bytes(4, "little") + head + b"".join(packed)
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
