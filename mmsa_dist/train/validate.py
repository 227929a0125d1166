"""Measures on held-out molecules whether the codes of one molecule find each other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.loader import BlockReader, validation_batches
from mmsa_dist.losses.agreement import alignment, retrieval, uniformity
from mmsa_dist.model import MMSAModel, picture_size
from mmsa_dist.runtime.distributed import all_ranks_agree, all_reduce_mean, rank, world_size

_METERS = ("valid/retrieval_at_1", "valid/chance", "valid/alignment", "valid/uniformity")


@torch.compiler.set_stance("force_eager")  # see `train.compiling`
@torch.no_grad()
def validate(model: MMSAModel, reader: BlockReader, config: Config, device: torch.device) -> dict[str, float]:
    """Measures how well the codes of each molecule of `reader` agree (collective).

    Returns:
        ``valid/retrieval_at_1`` with ``valid/chance``, ``valid/alignment`` and ``valid/uniformity`` (see
        `mmsa_dist.losses.agreement`), each averaged over the batches of all ranks in which it could be measured.
    """
    was_training = model.training
    model.eval()
    sums, measures = torch.zeros(len(_METERS), device=device), torch.zeros(len(_METERS), device=device)
    for batch, counts in _in_step(reader, config):
        fusion = model.fuse(batch.to(device))
        others = (meter(fusion.codes, fusion.present) for meter in (alignment, uniformity))
        values = torch.stack([*retrieval(fusion.codes, fusion.present), *others])
        measured = values.isfinite() & counts  # NaN means that no molecule of the batch has two modalities
        sums += torch.where(measured, values, 0)
        measures += measured
    model.train(was_training)
    sums, measures = all_reduce_mean(sums), all_reduce_mean(measures)
    means = zip(_METERS, (sums / measures).tolist(), measures.tolist(), strict=True)
    return {name: mean for name, mean, measured in means if measured}


def _in_step(reader: BlockReader, config: Config) -> Iterator[tuple[MoleculeBatch, bool]]:
    """Yields equally many batches on every rank, each with whether it counts (collective).

    A rank without batches left repeats the first one, uncounted, because calling the model is collective at ZeRO 3.
    """

    def batches(number: int, world: int) -> Iterator[MoleculeBatch]:
        return validation_batches(
            reader,
            batch_size=config.train.valid_batch_size,
            picture_size=picture_size(config),
            molecules=config.train.valid_molecules,
            rank=number,
            world=world,
        )

    own = batches(rank(), world_size())
    while True:
        batch = next(own, None)
        (over,) = all_ranks_agree(batch is None)
        if over:
            return
        yield (next(batches(0, 1)), False) if batch is None else (batch, True)
