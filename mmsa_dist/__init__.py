"""MMSA: multi-modal molecular representation learning with structure awareness, as a distributed system.

The names that most programs need are here. Each loads its module when it is first used, so importing the package
loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmsa_dist.config.load import load_config
    from mmsa_dist.embed import Embedder, export_embeddings, read_embeddings
    from mmsa_dist.embed.search import SearchIndex
    from mmsa_dist.train.loop import pretrain

__version__ = "0.1.0"
__all__ = ["Embedder", "SearchIndex", "__version__", "export_embeddings", "load_config", "pretrain", "read_embeddings"]

_MODULES = {
    "Embedder": "mmsa_dist.embed",
    "SearchIndex": "mmsa_dist.embed.search",
    "export_embeddings": "mmsa_dist.embed",
    "load_config": "mmsa_dist.config.load",
    "pretrain": "mmsa_dist.train.loop",
    "read_embeddings": "mmsa_dist.embed",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
