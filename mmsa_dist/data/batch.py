"""The input of the model: a batch of molecules as flat tensors with row pointers.

Size letters that mean the same in every module: B molecules of a batch, A their atoms, E their bonds. Each module
explains its other letters at its head; here F is the number of descriptors, H x W a picture's pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MoleculeBatch:
    """A batch of B molecules with A heavy atoms and E bonds in all.

    The masks say which molecules have a modality. Where a mask is False, values are NaN (`xyz_A3`) or white
    (`picture_B3HW`), and no encoder may read them.
    """

    index_B: Tensor
    """(B,) int64: number of the molecule in its manifest split (its row in the embedding bank); -1 if it is in none."""
    atoms_A9: Tensor
    """(A, 9) uint8: columns of `mmsa_shards.schema.AtomColumn`."""
    atom_ptr: Tensor
    """(B + 1,) int64: atoms of molecule b are rows atom_ptr[b]:atom_ptr[b + 1]."""
    bonds_E4: Tensor
    """(E, 4) uint8: columns of `mmsa_shards.schema.BondColumn`; each bond once."""
    bond_ends_E2: Tensor
    """(E, 2) int64: the two atoms of a bond, numbered within the batch (0..A-1)."""
    xyz_A3: Tensor
    """(A, 3) float32, Å: one conformer per molecule; NaN for atoms of molecules without one."""
    has_xyz_B: Tensor
    """(B,) bool: molecules that have a conformer."""
    picture_B3HW: Tensor | None
    """(B, 3, H, W) uint8 RGB: depictions; None if no pictures were requested."""
    has_picture_B: Tensor
    """(B,) bool: molecules that have a picture."""
    descriptors_BF: Tensor
    """(B, F) float32: `mmsa_shards.descriptors.NAMES`, NaN where there is no value; (B, 0) if the shards have none.
    Targets of a loss; no encoder reads them."""

    def __len__(self) -> int:
        return self.index_B.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of all tensors of the batch."""
        return self.index_B.device

    @property
    def molecule_of_atom_A(self) -> Tensor:
        """(A,) int64: the molecule that each atom belongs to."""
        sizes_B = self.atom_ptr[1:] - self.atom_ptr[:-1]
        molecules_B = torch.arange(len(self), device=self.device)
        return torch.repeat_interleave(molecules_B, sizes_B, output_size=self.atoms_A9.shape[0])

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> MoleculeBatch:
        """Returns the batch on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def without_conformers(self) -> MoleculeBatch:
        """Returns the batch with the 3D modality masked for every molecule."""
        return dataclasses.replace(
            self, xyz_A3=torch.full_like(self.xyz_A3, torch.nan), has_xyz_B=torch.zeros_like(self.has_xyz_B)
        )

    def without_pictures(self) -> MoleculeBatch:
        """Returns the batch as if no pictures had been requested."""
        return dataclasses.replace(self, picture_B3HW=None, has_picture_B=torch.zeros_like(self.has_picture_B))

    def pin_memory(self) -> MoleculeBatch:
        """Returns the batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Marks the batch as used by `stream`, so that its GPU memory is not reused before the stream is done."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _map(self, function: Callable[[Tensor], Tensor]) -> MoleculeBatch:
        return dataclasses.replace(self, **{name: function(tensor) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}
