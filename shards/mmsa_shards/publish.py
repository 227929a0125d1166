"""The end of a preparation: what is ready in the work folder moves to where it is read.

The manifest in the work folder is the point of no return. Whoever finds one there, this run or the next, moves
what has not been moved yet and replaces the manifest of the folder last.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from mmsa_shards.folder import Folder
from mmsa_shards.manifest import JOB_NAME, MANIFEST_NAME, Manifest
from mmsa_shards.rejects import REJECTS_NAME
from mmsa_shards.workplace import clear

#: Manifests that were replaced, by the first digits of their digest.
EARLIER_MANIFESTS = "manifests"


def digests(work: Path) -> dict[str, str]:
    """Returns the SHA-256 of what is ready beside the shards, for `mmsa_shards.manifest.Manifest.files`."""
    ready = [*sorted((work / REJECTS_NAME).parent.glob("*.parquet")), work / JOB_NAME]
    found = {}
    for path in ready:
        with path.open("rb") as file:
            found[path.relative_to(work).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def finish_publishing(work: Path, folder: Folder) -> bool:
    """Publishes what is ready and removes the work folder; returns whether there was anything ready."""
    ready = work / MANIFEST_NAME
    if not ready.exists():
        return False
    for shard in Manifest.load(work).shards:
        publish_shard(work / "shards" / shard.name, folder.url)
    if (work / REJECTS_NAME).exists():
        folder.take(work / REJECTS_NAME, REJECTS_NAME)
    content, before = ready.read_bytes(), folder.read(MANIFEST_NAME)
    if before is not None and before != content:
        folder.write(f"{EARLIER_MANIFESTS}/{Manifest.load(folder.url).digest[:12]}.json", before)
    folder.write(MANIFEST_NAME, content)
    folder.write(JOB_NAME, (work / JOB_NAME).read_bytes())
    ready.unlink()  # before what it speaks of, so that nobody finds it without
    clear(work)
    return True


def publish_shard(shard: Path, folder: str) -> None:
    """Moves a shard that is new, or made anew, to its place; does nothing where that is done."""
    if shard.exists():
        Folder(folder).take(shard, shard.name)
