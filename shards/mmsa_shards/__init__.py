"""Molecules to shards: reading, standardizing, featurizing and packing, without torch.

The names that most programs need are here. Each loads its module when it is first used, so importing the package
loads nothing. `prepare_shards` and `repair_shards` are the functions of the modules `prepare` and `repair`, whose
names are taken.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsa_shards.from_smiles import smiles_to_block
    from mmsa_shards.manifest import Manifest
    from mmsa_shards.options import PrepareOptions
    from mmsa_shards.prepare import prepare as prepare_shards
    from mmsa_shards.read import read_records
    from mmsa_shards.repair import repair as repair_shards
    from mmsa_shards.shard import read_block, read_shard
    from mmsa_shards.verify import verify_folder

__all__ = [
    "Manifest",
    "PrepareOptions",
    "prepare_shards",
    "read_block",
    "read_records",
    "read_shard",
    "repair_shards",
    "smiles_to_block",
    "verify_folder",
]

_PLACES = {
    "Manifest": ("manifest", "Manifest"),
    "PrepareOptions": ("options", "PrepareOptions"),
    "prepare_shards": ("prepare", "prepare"),
    "read_block": ("shard", "read_block"),
    "read_records": ("read", "read_records"),
    "read_shard": ("shard", "read_shard"),
    "repair_shards": ("repair", "repair"),
    "smiles_to_block": ("from_smiles", "smiles_to_block"),
    "verify_folder": ("verify", "verify_folder"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PLACES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
