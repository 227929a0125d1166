"""What the model can do on held-out molecules: finding a molecule by its code of another modality."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, validation_batches
from mmsa_dist.losses.contrast import retrieval_at_1
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.distributed import all_ranks_agree, all_reduce_mean, rank, world_size


@torch.no_grad()
def validate(model: MMSAModel, reader: BlockReader, config: Config, device: torch.device) -> dict[str, float]:
    """Retrieval@1 between modalities over the molecules of `reader`, and its chance level (collective).

    Returns:
        ``valid/retrieval_at_1`` and ``valid/chance``, meaned over the batches of all ranks.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, device=device)
    for batch, counts in _in_step(reader, config):
        fusion = model.fuse(batch.to(device))
        hits = retrieval_at_1(fusion.codes, fusion.present)
        if counts and torch.isfinite(hits):  # NaN says that no molecule of the batch has two modalities
            sums += torch.stack([hits, hits.new_tensor(1 / len(batch)), hits.new_ones(())])
    model.train(was_training)
    hits, chance, batches = all_reduce_mean(sums).tolist()
    if batches == 0:
        return {}
    return {"valid/retrieval_at_1": hits / batches, "valid/chance": chance / batches}


def _in_step(reader: BlockReader, config: Config) -> Iterator[tuple[MoleculeBatch, bool]]:
    """Gives every rank equally many batches (collective), each with whether it counts.

    A rank that has no batch left takes the first of all, uncounted: at ZeRO 3 calling the model is collective.
    """

    def batches(number: int, world: int) -> Iterator[MoleculeBatch]:
        size, side = config.train.valid_batch_size, config.picture_size
        return validation_batches(reader, batch_size=size, picture_size=side, rank=number, world=world)

    own = batches(rank(), world_size())
    while True:
        batch = next(own, None)
        (over,) = all_ranks_agree(batch is None)
        if over:
            return
        yield (next(batches(0, 1)), False) if batch is None else (batch, True)
