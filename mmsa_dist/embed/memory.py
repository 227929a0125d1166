"""Batch size that fits the memory of a GPU, from the measured memory per molecule."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import torch

from mmsa_shards.block import Molecule, molecules_to_block

ON_CPU = 128
"""Atom vectors of larger batches do not fit the caches; in smaller ones the call overhead dominates."""
LARGEST = 4096
"""Larger batches of 2D molecules do not speed up an H100 or a smaller GPU: it is saturated long before."""

_SHARE = 0.5  # of the free memory: batches differ, and molecules may be larger than the sample
_SAMPLE = 64  # molecules


def fitting_batch_size(device: torch.device, compute: Callable[[pa.RecordBatch], object]) -> int:
    """Returns a number of molecules that fits the memory of `device`, a power of two.

    Args:
        device: for a CPU the result is `ON_CPU`, without a measurement.
        compute: computes the vectors of a block on `device`.
    """
    if device.type != "cuda":
        return ON_CPU
    block = _sample()
    compute(block)  # libraries allocate and keep their own memory in the first call
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    compute(block)
    bytes_of_one = max(torch.cuda.max_memory_allocated(device) - before, 1) / _SAMPLE
    torch.cuda.empty_cache()  # so that torch's cached memory counts as free
    free, _ = torch.cuda.mem_get_info(device)
    fits = max(int(_SHARE * free / bytes_of_one), 1)
    return min(1 << (fits.bit_length() - 1), LARGEST)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Returns whether a torch error reports insufficient memory."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@cache
def _sample() -> pa.RecordBatch:
    """Returns molecules with 64 heavy atoms, more than nearly all have, at a realistic atomic density."""
    grid = np.stack(np.meshgrid(*[np.arange(4.0)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    atoms = len(grid)
    molecule = Molecule(
        id="",
        inchikey="",
        smiles="",
        atoms=np.full((atoms, 9), [5, 0, 4, 5, 0, 0, 2, 0, 1], dtype=np.uint8),
        bonds=np.zeros((atoms - 1, 4), dtype=np.uint8),
        bond_ends=np.stack([np.arange(atoms - 1), np.arange(1, atoms)], axis=1).astype(np.uint16),
        xy=(1.5 * np.stack(np.divmod(np.arange(atoms), 8), axis=1)).astype(np.float32),
        conformers=(1.5 * grid[None]).astype(np.float32),
        conformer_source="etkdg",
    )
    return molecules_to_block([molecule] * _SAMPLE)
