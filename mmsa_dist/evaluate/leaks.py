"""Check for overlap between a model's pre-training molecules and the molecules it is evaluated on.

A molecule counts as seen if one with the same skeleton (first block of the InChIKey, which ignores stereo, isotopes and
protons) is in the pre-training shards, train or val. The SMILES of a task are standardized as those shards were.
`mmsa prepare --exclude` keeps such molecules out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmsa_dist.config.load import ConfigError, load_config
from mmsa_dist.embed.pretrained import CONFIG
from mmsa_dist.evaluate.markdown import code_span
from mmsa_dist.evaluate.notes import Findings
from mmsa_dist.evaluate.splits import PARTS, Split
from mmsa_dist.evaluate.tasks import TaskData
from mmsa_dist.runtime.run_folder import RunFolder
from mmsa_shards.from_smiles import standard_inchikeys
from mmsa_shards.manifest import Manifest, ManifestError
from mmsa_shards.options import Standardization
from mmsa_shards.shard import ShardError, read_entry

_SKELETON = 14
"""Characters of the first block of an InChIKey."""
_EXAMPLES = 3
_AT_A_TIME = 1 << 20
"""Molecules of the shards per lookup; each lookup rebuilds the hash table of the wanted skeletons."""

Progress = Callable[[int, int], None]


class LeakError(ValueError):
    """Shards that cannot be searched for molecules; the message says which, why and what to do."""


@dataclass(frozen=True)
class Leak:
    """Number of molecules in each part of a task's split that were among the pre-training molecules."""

    task: str
    which: str
    """Which of its splits, as in `Split.which`."""
    split_digest: str
    molecules: Mapping[str, int]
    """Molecules per part."""
    seen: Mapping[str, int]
    """Of these, the ones seen in pre-training."""
    refused: int
    """Molecules that standardization rejects, which no shard can contain."""
    examples: tuple[str, ...]
    """SMILES of the first test molecules that were seen."""


@dataclass(frozen=True)
class NotChecked:
    """Result of a check that was not possible."""

    reason: str

    @property
    def sentence(self) -> str:
        """The note for a reader of the results."""
        return f"overlap of test molecules with the pre-training data was not checked, because {self.reason}"


def check_leaks(
    model: str | os.PathLike[str], tasks: Sequence[tuple[TaskData, Split]], *, progress: Progress | None = None
) -> list[Leak] | NotChecked:
    """Searches the shards that a model was trained on for the molecules of tasks.

    Args:
        model: folder of an exported model.
        tasks: tasks with their splits; the shards are read once for all.
        progress: called with the number of molecules searched and the total in the shards.
    """
    shards = shards_of(model)
    if isinstance(shards, NotChecked):
        return shards
    try:
        return find_leaks(shards, tasks, progress=progress)
    except (ManifestError, ShardError, LeakError) as error:
        return NotChecked(str(error))


def look_for_leaks(
    model: str | os.PathLike[str], tasks: Sequence[tuple[TaskData, Split]], *, progress: Progress | None = None
) -> Findings:
    """Returns notes and facts on the overlap with the pre-training molecules, or why it was not checked.

    Takes the arguments of `check_leaks`. The facts contain all counts; splits of a task with equal counts share a
    sentence.
    """
    found = check_leaks(model, tasks, progress=progress)
    if isinstance(found, NotChecked):
        return Findings((found.sentence,), {"leaks": {"checked": False, "reason": found.reason}})
    by_sentence: dict[str, list[Leak]] = {}
    for leak in found:
        by_sentence.setdefault(note_on(leak, ""), []).append(leak)
    sentences = tuple(note_on(same[0], "".join(leak.which for leak in same)) for same in by_sentence.values())
    return Findings(sentences, {"leaks": {"checked": True, "splits": [asdict(leak) for leak in found]}})


def note_on(leak: Leak, which: str) -> str:
    """Returns the note for a reader of the results, on the splits `which`."""
    counts = {part: f"{leak.seen[part]:,} of {leak.molecules[part]:,} {part}" for part in PARTS}
    where = leak.task + which
    others = f"{counts['valid']} and {counts['train']} molecules"
    if not leak.seen["test"]:
        return f"{where}: none of {leak.molecules['test']:,} test molecules was in the pre-training data ({others})"
    share = 100 * leak.seen["test"] / leak.molecules["test"]
    return (
        f"{where}: {counts['test']} molecules ({share:.1f} %) were in the pre-training data ({others}), such "
        f"as {', '.join(map(code_span, leak.examples))}; to remove them, prepare the shards with --exclude and retrain"
    )


def shards_of(model: str | os.PathLike[str]) -> str | NotChecked:
    """Returns the shards that an exported model was trained on, located by the configuration of its run.

    They count only if their manifest's digest is the one recorded in the model.

    Args:
        model: folder of the model, ``<run.dir>/model``.

    Returns:
        The folder or URL of the shards, or why they cannot be determined.
    """
    folder = Path(model)
    try:
        about = json.loads((folder / CONFIG).read_text())
        digest = about["training"]["data"]["manifest"]
    except OSError:
        return NotChecked(f"{folder} is not a folder on this machine, so its run and shards cannot be found")
    except (ValueError, KeyError, TypeError):
        return NotChecked(f"{folder / CONFIG} does not say which shards the model was trained on")
    # The run's folder `model` may be a link to where the weights are, and so may the whole run.
    beside, linked = (RunFolder(path.parent) for path in (folder.absolute(), folder.resolve()))
    run = beside if beside.config.is_file() else linked
    if not run.config.is_file():
        return NotChecked(f"{folder} is not inside its run folder, whose config.yaml names the shards")
    try:
        config = load_config(run.config)
    except ConfigError as error:
        return NotChecked(f"the configuration of the run cannot be read: {error}")
    shards = run.shards(config.data.shards)
    try:
        manifest = Manifest.load(shards)
    except ManifestError as error:
        return NotChecked(f"the shards of the training cannot be read: {error}")
    if manifest.digest != digest:
        return NotChecked(
            f"{shards} is not what the model was trained on: its manifest has the digest {manifest.digest[:12]}, "
            f"the training used {str(digest)[:12]}"
        )
    return shards


def find_leaks(
    shards: str | os.PathLike[str], tasks: Sequence[tuple[TaskData, Split]], *, progress: Progress | None = None
) -> list[Leak]:
    """Searches a folder of shards for the molecules of tasks.

    Args:
        shards: folder or URL with a manifest.
        tasks: tasks with their splits; the shards are read once for all.
        progress: called with the number of molecules searched and the total in the shards.

    Raises:
        ManifestError: the manifest is missing or damaged.
        ShardError: a shard is missing or damaged.
        LeakError: the manifest does not say how molecules were standardized.
    """
    manifest = Manifest.load(os.fspath(shards))
    how = _standardization(manifest, os.fspath(shards))
    skeletons = {data.smiles_digest: _skeletons(data, how) for data, _ in tasks}
    wanted = {skeleton for ours in skeletons.values() for skeleton in ours if skeleton is not None}
    seen = _seen(os.fspath(shards), manifest, wanted, progress)
    return [_leak(data, split, skeletons[data.smiles_digest], seen) for data, split in tasks]


def _standardization(manifest: Manifest, shards: str) -> Standardization:
    names = [field.name for field in fields(Standardization)]
    missing = [name for name in names if name not in manifest.options]
    if missing:
        raise LeakError(
            f"the manifest of {shards} does not say how molecules were standardized (it lacks {', '.join(missing)}): "
            "prepare the shards again"
        )
    return Standardization(**{name: manifest.options[name] for name in names})


def _skeletons(data: TaskData, how: Standardization) -> list[str | None]:
    return [None if key is None else key[:_SKELETON] for key in standard_inchikeys(data.smiles, how)]


def _seen(shards: str, manifest: Manifest, wanted: set[str], progress: Progress | None) -> set[str]:
    """Returns the `wanted` skeletons that occur in the shards."""
    table = pa.array(sorted(wanted), pa.string())
    total = sum(shard.molecules for shard in manifest.shards)
    seen: set[str] = set()
    done = 0
    for keys in _inchikeys(shards, manifest):
        skeletons = pc.utf8_slice_codeunits(keys, 0, _SKELETON)
        seen.update(skeletons.filter(pc.is_in(skeletons, value_set=table)).unique().to_pylist())
        done += len(keys)
        if progress is not None:
            progress(done, total)
    return seen


def _inchikeys(shards: str, manifest: Manifest) -> Iterator[pa.ChunkedArray]:
    """Yields the InChIKeys of all molecules, about a million at a time."""
    parts: list[pa.Array] = []
    held = 0
    for shard in manifest.shards:
        for number, entry in enumerate(shard.blocks):
            parts.append(read_entry(shards, shard.name, number, entry, ("inchikey",)).column(0))
            held += entry.molecules
            if held >= _AT_A_TIME:
                yield pa.chunked_array(parts)
                parts, held = [], 0
    if parts:
        yield pa.chunked_array(parts)


def _leak(data: TaskData, split: Split, skeletons: Sequence[str | None], seen: set[str]) -> Leak:
    is_seen = np.array([skeleton in seen for skeleton in skeletons], dtype=bool)
    return Leak(
        task=data.task.name,
        which=split.which,
        split_digest=split.digest,
        molecules={part: len(getattr(split, part)) for part in PARTS},
        seen={part: int(is_seen[getattr(split, part)].sum()) for part in PARTS},
        refused=sum(skeleton is None for skeleton in skeletons),
        examples=tuple(data.smiles[row] for row in split.test[is_seen[split.test]][:_EXAMPLES]),
    )
