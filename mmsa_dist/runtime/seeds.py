"""Randomness as a function of the position in a run, so that a resumed run needs no saved generator state."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(*parts: int | str) -> int:
    """Returns a 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seeds torch's global generators (dropout, masks) for one optimizer step of one rank."""
    torch.manual_seed(derived_seed("step", seed, step, rank))


def shared_generator(seed: int, step: int, micro: int) -> torch.Generator:
    """Returns a CPU generator with the same draws on every rank, for choices on which ranks must agree."""
    return torch.Generator().manual_seed(derived_seed("shared", seed, step, micro))
