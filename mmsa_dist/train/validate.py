"""What the model can do on held-out molecules: finding a molecule by its code of another modality."""

from __future__ import annotations

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.loader import BlockReader, validation_batches
from mmsa_dist.losses.contrast import retrieval_at_1
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.distributed import all_reduce_mean, rank, world_size


@torch.no_grad()
def validate(model: MMSAModel, reader: BlockReader, config: Config, device: torch.device) -> dict[str, float]:
    """Retrieval@1 between modalities over the molecules of `reader`, and its chance level (collective).

    Returns:
        ``valid/retrieval_at_1`` and ``valid/chance``, meaned over the batches of all ranks.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=device)
    for batch in validation_batches(
        reader,
        batch_size=config.train.valid_batch_size,
        picture_size=config.picture_size,
        rank=rank(),
        world=world_size(),
    ):
        fusion = model.fuse(batch.to(device))
        hits = retrieval_at_1(fusion.codes, fusion.present)
        if torch.isfinite(hits):  # NaN says that no molecule of the batch has two modalities
            sums += torch.stack([hits, hits.new_tensor(1 / len(batch)), hits.new_ones(())])
    model.train(was_training)
    hits, chance, batches = all_reduce_mean(sums).tolist()
    if batches == 0:
        return {}
    return {"valid/retrieval_at_1": hits / batches, "valid/chance": chance / batches}
