"""Compiles encoders for training (`train.compile`)."""

from __future__ import annotations

import dataclasses

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.model import MMSAModel


def compile_encoders(model: MMSAModel, config: Config, batch: MoleculeBatch) -> None:
    """Compiles the forward and backward passes of the encoders in `train.compile`, for any batch size, in place.

    Parameters keep their names and values. Inference does not use the compiled form
    (``torch.compiler.set_stance("force_eager")``), because a second form would take as long to compile.

    Args:
        model: the model, which DeepSpeed already wraps, at ZeRO 0 to 2.
        config: gives `train.compile` and the precision.
        batch: a batch on the device of the model, the same on every rank and in every start of a run. What torch
            compiles, and so how it rounds, depends on the sizes it sees first, and all ranks use what one of them has
            put into torch's cache.
    """
    batch = _without_the_first_conformer_and_picture(batch)
    for name in config.train.compile:
        encoder = model.encoder(name)
        encoder.compile(dynamic=True)
        statistics = [buffer.clone() for buffer in encoder.buffers()]
        encoder.train()
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            feature = encoder(batch)
        # Not `backward`: DeepSpeed would take these gradients for those of a step.
        torch.autograd.grad(feature.sum(), list(encoder.parameters()), allow_unused=True)
        for buffer, before in zip(encoder.buffers(), statistics, strict=True):
            buffer.copy_(before)


def _without_the_first_conformer_and_picture(batch: MoleculeBatch) -> MoleculeBatch:
    """Drops one conformer and one picture, so that torch treats the numbers of molecules of each as independent."""
    others_B = torch.arange(len(batch), device=batch.device) > 0
    return dataclasses.replace(
        batch,
        has_xyz_B=batch.has_xyz_B & others_B,
        xyz_A3=batch.xyz_A3.where(others_B[batch.molecule_of_atom_A, None], torch.nan),
        has_picture_B=batch.has_picture_B & others_B,
    )
