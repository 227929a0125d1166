"""The end of a preparation: finished files move from the work folder to the output folder.

The manifest in the work folder is the point of no return. Any run that finds one there moves the files that have
not been moved yet and replaces the manifest of the output folder last.
"""

from __future__ import annotations

from pathlib import Path

from mmsa_shards.folder import Folder
from mmsa_shards.manifest import JOB_NAME, MANIFEST_NAME, Manifest
from mmsa_shards.places import sha256_of
from mmsa_shards.rejects import REJECTS_NAME
from mmsa_shards.workplace import clear

#: Folder of replaced manifests, named by the first digits of their digests.
EARLIER_MANIFESTS = "manifests"


def digests(work: Path) -> dict[str, str]:
    """Returns the SHA-256 of finished files other than shards, for `mmsa_shards.manifest.Manifest.files`."""
    ready = [*sorted((work / REJECTS_NAME).parent.glob("*.parquet")), work / JOB_NAME]
    return {path.relative_to(work).as_posix(): sha256_of(str(path)) for path in ready}


def finish_publishing(work: Path, folder: Folder) -> None:
    """Publishes finished files, if there are any, and empties the work folder."""
    ready = work / MANIFEST_NAME
    if not ready.exists():
        return
    for shard in Manifest.load(work).shards:
        publish_shard(work / "shards" / shard.name, folder.url)
    if (work / REJECTS_NAME).exists():
        folder.take(work / REJECTS_NAME, REJECTS_NAME)
    content, before = ready.read_bytes(), folder.read(MANIFEST_NAME)
    if before is not None and before != content:
        folder.write(f"{EARLIER_MANIFESTS}/{Manifest.load(folder.url).digest[:12]}.json", before)
    folder.write(MANIFEST_NAME, content)
    folder.write(JOB_NAME, (work / JOB_NAME).read_bytes())
    ready.unlink()  # before the files that it lists, so that no run finds it without them
    clear(work)


def publish_shard(shard: Path, folder: str) -> None:
    """Moves a new or rewritten shard to its place; does nothing if it was moved already."""
    if shard.exists():
        Folder(folder).take(shard, shard.name)
