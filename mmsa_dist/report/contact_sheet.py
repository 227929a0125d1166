"""A contact sheet of molecules in a folder of shards, as the image encoder reads them.

B molecules, H and W height and width of a picture.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from mmsa_dist.report.shard_statistics import spread_blocks
from mmsa_shards.atomic import write_atomically
from mmsa_shards.manifest import Manifest
from mmsa_shards.shard import read_block

if TYPE_CHECKING:
    from PIL.Image import Image

_COLUMNS = 6


def contact_sheet(folder: str | os.PathLike[str], path: str | os.PathLike[str], molecules: int = 24) -> None:
    """Draws a PNG of molecules as the image encoder reads them, sampled evenly over the shards.

    Args:
        folder: of the shards.
        path: of the PNG.
        molecules: how many; fewer if the shards hold fewer.

    Raises:
        ManifestError: `folder` has no valid manifest.
        ValueError: the shards are empty.
    """
    sheet = _sheet(os.fspath(folder), molecules)
    with write_atomically(Path(path)) as file:
        sheet.save(file, format="PNG")


def small_sheet(folder: str | os.PathLike[str], *, molecules: int = 18, most_bytes: int = 300_000) -> bytes:
    """Returns the sheet of `contact_sheet` as a PNG, with as many rows as fit `most_bytes`."""
    png = io.BytesIO()
    _sheet(os.fspath(folder), molecules).save(png, format="PNG", optimize=True)
    if len(png.getvalue()) <= most_bytes or molecules <= _COLUMNS:
        return png.getvalue()
    return small_sheet(folder, molecules=molecules - _COLUMNS, most_bytes=most_bytes)


def _sheet(folder: str, molecules: int) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    from mmsa_dist.data.collate import block_to_batch

    blocks = [read_block(folder, *place) for place in spread_blocks(Manifest.load(folder), molecules)]
    if not blocks:
        raise ValueError(f"{folder} holds no molecules; there is nothing to draw")
    share = -(-molecules // len(blocks))
    some = pa.Table.from_batches([block.slice(0, share) for block in blocks]).slice(0, molecules)
    picked = some.combine_chunks().to_batches()[0]
    batch = block_to_batch(picked, picture_size=224)
    assert batch.picture_B3HW is not None
    pictures = batch.picture_B3HW.permute(0, 2, 3, 1).numpy()
    columns = min(_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    gap, caption = 12, 22
    cell_w, cell_h = 224 + gap, 224 + caption + gap
    sheet = Image.new("RGB", (columns * cell_w + gap, rows * cell_h + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (picture, name) in enumerate(zip(pictures, picked["id"].to_pylist(), strict=True)):
        x, y = gap + number % columns * cell_w, gap + number // columns * cell_h
        sheet.paste(Image.fromarray(picture), (x, y))
        draw.rectangle((x - 1, y - 1, x + 224, y + 224), outline="#e3e8ea")
        draw.text((x + 2, y + 228), name[:34], fill="#6b7780", font=font)
    return sheet
