"""Differences between two manifests of a folder of shards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mmsa_shards.manifest import Manifest, ShardEntry


@dataclass(frozen=True)
class Changes:
    """The differences from one manifest to a later one."""

    same: tuple[ShardEntry, ...]
    """Shards that did not change."""
    rewritten: tuple[tuple[ShardEntry, ShardEntry], ...]
    """Shards before and after."""
    added: tuple[ShardEntry, ...]
    removed: tuple[ShardEntry, ...]
    molecules: int
    """Growth of the folder, in molecules."""
    inputs: dict[str, int]
    """Number of records in each added input."""
    conformer_sources: dict[str, int]
    """Growth of each source, in molecules; sources that did not change are left out."""
    options: dict[str, tuple[object, object]]
    """Options and library versions that differ, as (before, after)."""


def changes_between(before: Manifest, after: Manifest) -> Changes:
    """Compares two manifests, of the same folder or of different ones."""
    old = {shard.name: shard for shard in before.shards}
    new = {shard.name: shard for shard in after.shards}
    both = [(old[name], new[name]) for name in sorted(old.keys() & new.keys())]
    sources = Counter(after.conformer_sources)
    sources.subtract(before.conformer_sources)
    settings = [{**manifest.options, **manifest.versions} for manifest in (before, after)]
    return Changes(
        same=tuple(now for was, now in both if was.sha256 == now.sha256),
        rewritten=tuple((was, now) for was, now in both if was.sha256 != now.sha256),
        added=tuple(new[name] for name in sorted(new.keys() - old.keys())),
        removed=tuple(old[name] for name in sorted(old.keys() - new.keys())),
        molecules=after.ledger.written - before.ledger.written,
        inputs={name: count for name, count in after.inputs.items() if name not in before.inputs},
        conformer_sources={name: count for name, count in sorted(sources.items()) if count},
        options={
            name: (settings[0].get(name), settings[1].get(name))
            for name in sorted(settings[0].keys() | settings[1].keys())
            if settings[0].get(name) != settings[1].get(name)
        },
    )
