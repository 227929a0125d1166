"""Configurations as runs record them, and how two of them differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmsa_dist.config.schema import Config
from mmsa_shards.folder import Folder

UNSET = type("Unset", (), {"__repr__": lambda self: "(not set)"})()
"""Stands for a setting that only one of two configurations has, since versions of this package differ."""


def as_recorded(config: Config) -> Config:
    """Returns the configuration for the run folder: with the absolute path of `data.shards`, or its URL as it is.

    Who reads the run folder later works in another folder, where a relative path may name other shards.
    """
    shards = config.data.shards
    if shards and (path := Folder(shards).path) is not None:
        shards = str(path)
    return config.model_copy(update={"data": config.data.model_copy(update={"shards": shards})})


def differences(was: Mapping[str, Any], now: Mapping[str, Any], section: str = "") -> dict[str, tuple[Any, Any]]:
    """Returns both values of each setting that differs, by its dotted key.

    Args:
        was: the earlier configuration, as plain values.
        now: the later one.
        section: begins every key.
    """
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(was.keys() | now.keys()):
        key, before, after = f"{section}{name}", was.get(name, UNSET), now.get(name, UNSET)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{key}.")
        elif before != after:
            found[key] = before, after
    return found


def in_words(changed: Mapping[str, tuple[Any, Any]]) -> str:
    """Formats what `differences` returns for a message: ``train.lr=0.001, now 0.0001``."""
    return ", ".join(f"{key}={was!r}, now {now!r}" for key, (was, now) in changed.items())
