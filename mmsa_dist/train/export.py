"""Writes the trained model as the folder that downstream users load.

R reference molecules, C width of u.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import numpy as np
import torch
from torch import Tensor

from mmsa_dist.config.schema import Config
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.embed.embedder import Embedder
from mmsa_dist.model import MMSAModel, picture_size
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_shards.options import PrepareOptions, Standardization


def export_model(
    model: MMSAModel,
    config: Config,
    reader: BlockReader,
    folder: RunFolder,
    device: torch.device,
    metrics: Mapping[str, float],
) -> None:
    """Writes the model, with `embed.reference_molecules` training molecules as reference, to ``model/`` of the run.

    The reference rows are computed anew in inference mode, because the rows of the training bank are outdated.

    Args:
        model: the trained model with all its parameters; left in evaluation mode.
        config: configuration of the run.
        reader: the training shards.
        folder: folder of the run.
        device: device of the model.
        metrics: the last scalars of the run by name, for the model card.
    """
    config = config.model_copy(update={"prepare": _as_prepared(config.prepare, reader)})
    model.eval()
    rows_RC = reference_rows(model, config, reader, device)
    data = {
        "molecules": reader.molecules,
        "manifest": reader.digest,
        "conformers": config.prepare.conformers,
    }
    Embedder.from_model(model, config, rows_RC, metrics, data=data).save_pretrained(folder.model)


def _as_prepared(options: PrepareOptions, reader: BlockReader) -> PrepareOptions:
    """Returns `options` with those that shape a molecule as the shards were prepared; the run's own may differ."""
    names = (*(field.name for field in fields(Standardization)), "conformers", "seed", "conformer_timeout_s")
    return replace(options, **{name: reader.options[name] for name in names if name in reader.options})


@torch.compiler.set_stance("force_eager")  # see `train.compiling`
@torch.no_grad()
def reference_rows(model: MMSAModel, config: Config, reader: BlockReader, device: torch.device) -> Tensor | None:
    """Returns (R, C) float16 unified embeddings of training molecules, from blocks spread evenly over the split.

    Returns None if `embed.reference_molecules` is 0, and for a model trained without neighbours, which also embeds
    without. Rows use 3D and pictures only if embedding will (`embed.conformers`, `embed.pictures`), so that queries are
    compared with rows of the same kind; molecules that then have no modality give none.
    """
    wanted = min(config.embed.reference_molecules, reader.molecules)
    if wanted == 0 or config.model.structure.neighbours == "none":
        return None
    blocks = min(len(reader), -(-wanted * len(reader) // reader.molecules))
    size = picture_size(config) if config.embed.pictures else None
    parts = []
    for block in np.linspace(0, len(reader) - 1, blocks).round().astype(int):
        batch = collate(reader.read(int(block)), picture_size=size)
        if config.embed.conformers == "none":
            batch = batch.without_conformers()
        fusion = model.fuse(batch.to(device))
        parts.append(fusion.unified_BC[fusion.has_any_B])
    rows_RC = torch.cat(parts)[:wanted].half().cpu()
    return rows_RC if len(rows_RC) else None
