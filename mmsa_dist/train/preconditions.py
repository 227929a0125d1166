"""What is checked before the first step: the shards, and that every encoder can learn from them."""

from __future__ import annotations

import time
from typing import Any

import torch

from mmsa_dist.config.schema import Config
from mmsa_dist.data.collate import collate
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.distributed import all_ranks_agree, is_distributed, rank
from mmsa_dist.runtime.watchdog import Watchdog
from mmsa_shards.manifest import ManifestError
from mmsa_shards.shard import ShardError
from mmsa_shards.verify import size_faults, verify_folder

_MOLECULES_CHECKED = 64  # to find out what encoders read
_TELL_EVERY_S = 60.0  # rank 0 tells the others that it is still verifying shards


def refuse_broken_shards(folder: str, watchdog: Watchdog, *, verify: bool) -> None:
    """Checks the shards, on rank 0 for all ranks, which hear of it that it is still at work (collective).

    Raises:
        ShardError: names what is broken.
    """
    answer: list[Any] = [()]
    told = time.monotonic()

    def tell(_read: int, _total: int | None) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_EVERY_S:
            all_ranks_agree(False)
            watchdog.going_on()
            told = time.monotonic()

    if rank() == 0:
        try:
            answer = [verify_folder(folder, progress=tell).faults if verify else size_faults(folder)]
        except ManifestError as error:
            answer = [(str(error),)]
    while not all(all_ranks_agree(True)):
        watchdog.going_on()
    if is_distributed():
        torch.distributed.broadcast_object_list(answer, src=0)
    if answer[0]:
        more = f" (and {len(answer[0]) - 1} more; mmsa inspect --verify names them)" if len(answer[0]) > 1 else ""
        raise ShardError(f"{answer[0][0]}{more}")


def refuse_what_cannot_learn(model: MMSAModel, config: Config, reader: BlockReader) -> None:
    """Checks that the shards hold what each encoder reads, and that it declares all that it reads.

    Raises:
        ValueError: names the encoder, and how to fix it.
    """
    some = reader.read(0)
    all_there = collate(some.slice(0, min(len(some), _MOLECULES_CHECKED)), picture_size=config.data.picture_size)
    for name in config.model.encoders:
        encoder, declared = model.encoder(name), all_there
        if "coordinates" not in encoder.reads:
            declared = declared.without_conformers()
        elif not reader.has_conformers:
            others = ", ".join(other for other in config.model.encoders if other != name)
            raise ValueError(
                f"no molecule in {config.shards_dir} has 3D, which {name} among model.encoders reads; prepare them "
                "with prepare.conformers=etkdg (or given)"
                + (f", or leave it out: model.encoders='[{others}]'" if others else "")
            )
        if "picture" not in encoder.reads:
            declared = declared.without_pictures()
        if not torch.equal(encoder.present(declared), encoder.present(all_there)):
            raise ValueError(
                f"{name} among model.encoders declares that it reads {', '.join(sorted(encoder.reads))} only, but "
                f"which molecules are present to it depends on more; add that to {type(encoder).__name__}.reads"
            )
