"""What the model can do on held-out molecules: its codes of one molecule should find each other."""

from __future__ import annotations

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.loader import BlockReader, validation_batches
from mmsa_dist.losses.agreement import alignment, retrieval_at_1, uniformity
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.distributed import all_reduce_mean, rank, world_size

_METERS = ("valid/retrieval_at_1", "valid/chance", "valid/alignment", "valid/uniformity")


@torch.no_grad()
def validate(model: MMSAModel, reader: BlockReader, config: Config, device: torch.device) -> dict[str, float]:
    """How well codes agree on the molecules of `reader` (collective).

    Returns:
        ``valid/retrieval_at_1`` with ``valid/chance``, ``valid/alignment`` and ``valid/uniformity`` (see
        `mmsa_dist.losses.agreement`), each meaned over those batches of all ranks in which it could be measured.
    """
    was_training = model.training
    model.eval()
    sums, counts = torch.zeros(len(_METERS), device=device), torch.zeros(len(_METERS), device=device)
    for batch in validation_batches(
        reader,
        batch_size=config.train.valid_batch_size,
        picture_size=config.picture_size,
        rank=rank(),
        world=world_size(),
    ):
        fusion = model.fuse(batch.to(device))
        hits, *others = (meter(fusion.codes, fusion.present) for meter in (retrieval_at_1, alignment, uniformity))
        chance = torch.where(hits.isnan(), torch.nan, 1 / len(batch))
        values = torch.stack([hits, chance, *others])
        measured = values.isfinite()  # NaN says that no molecule of the batch has two modalities
        sums += torch.where(measured, values, 0)
        counts += measured
    model.train(was_training)
    sums, counts = all_reduce_mean(sums), all_reduce_mean(counts)
    means = zip(_METERS, (sums / counts).tolist(), counts.tolist(), strict=True)
    return {name: mean for name, mean, count in means if count}
