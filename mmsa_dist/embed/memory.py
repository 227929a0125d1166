"""How many molecules are computed at a time: what the memory of a GPU holds, by measuring what one molecule takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pyarrow as pa
import torch

from mmsa_shards.block import Molecule, molecules_to_block

ON_CPU = 128
"""Of larger batches the vectors of atoms leave the caches, and of smaller ones the calls cost more."""
LARGEST = 4096
"""More molecules of 2D do not make an H100 or anything smaller faster: its units are busy long before."""

_SHARE = 0.5  # of what is free: batches differ, and molecules larger than the sample come
_SAMPLE = 64  # molecules


def fitting_batch_size(device: torch.device, compute: Callable[[pa.RecordBatch], object]) -> int:
    """Returns a number of molecules for which the memory of `device` will do, a power of two.

    Args:
        device: on a CPU the answer is `ON_CPU`, and nothing is measured.
        compute: computes the vectors of a block on `device`.
    """
    if device.type != "cuda":
        return ON_CPU
    block = _sample()
    compute(block)  # libraries take room of their own at the first time, and keep it
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    compute(block)
    bytes_of_one = max(torch.cuda.max_memory_allocated(device) - before, 1) / _SAMPLE
    torch.cuda.empty_cache()  # so that what torch holds for later counts as free
    free, _ = torch.cuda.mem_get_info(device)
    fits = max(int(_SHARE * free / bytes_of_one), 1)
    return min(1 << (fits.bit_length() - 1), LARGEST)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that memory was too short."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@cache
def _sample() -> pa.RecordBatch:
    """Molecules of 64 heavy atoms, more than nearly all have, packed as densely as atoms are."""
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
