"""What several rooms' tests share."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.fixtures.browser import browser  # noqa: F401  (one for all folders: Playwright starts once a process)

# Without a GPU Triton's kernels are interpreted, where a test asks for them: this must be set before their module is
# imported, once in the life of a process.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# What a shell starts in the background ignores Ctrl-C and hands that on; the commands that tests interrupt must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real molecules, oracles and broken files that lie beside the checkout; the test skips where they do not."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs ../shared/data, which is not beside this checkout")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_tiny_shards() -> Callable[..., Path]:
    """Writes ``shards`` into a folder: two training shards and one for validation, 55 real little molecules.

    Blocks hold four molecules; those of one block in five have no 3D (with `flat` of all), and none has descriptors
    unless asked for.
    """
    from mmsa_shards.from_smiles import smiles_to_block
    from mmsa_shards.manifest import Ledger, Manifest
    from mmsa_shards.options import NO_CONFORMERS, Columns, Conformers, SmilesOptions
    from mmsa_shards.shard import write_shard
    from tests.fixtures.standardization import DEFAULT

    etkdg = Conformers(mode="etkdg", count=1, seed=0, timeout_s=5)

    chains = ["C" * n + end for n in range(1, 12) for end in ("O", "N", "Cl", "C(=O)O", "c1ccccc1")]

    def make(parent: Path, *, described: bool = False, flat: bool = False) -> Path:
        folder = parent / "shards"
        folder.mkdir()
        blocks = [
            smiles_to_block(
                chains[i : i + 4],
                SmilesOptions(
                    standardization=DEFAULT,
                    columns=Columns(conformers=NO_CONFORMERS if flat or i % 20 == 8 else etkdg, descriptors=described),
                ),
                [f"M-{smiles}" for smiles in chains[i : i + 4]],
            ).block
            for i in range(0, len(chains), 4)
        ]
        shards = (
            write_shard(folder, "train-00000.tar", "train", blocks[:5], "zstd"),
            write_shard(folder, "train-00001.tar", "train", blocks[5:11], "zstd"),
            write_shard(folder, "val-00000.tar", "val", blocks[11:], "zstd"),
        )
        sources = Counter(source for block in blocks for source in block["conformer_source"].to_pylist())
        ledger = Ledger(len(chains), len(chains), 0, 0, 0, 0)
        Manifest(shards=shards, ledger=ledger, conformer_sources=dict(sources)).save(folder)
        return folder

    return make


@pytest.fixture
def tiny_shards(make_tiny_shards: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The shards of `make_tiny_shards`, in a folder of the test."""
    return make_tiny_shards(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], tuple[Path, Callable[[str], None]]]]:
    """Makes a file system of a size such as ``200k``; returns its folder, and what gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *words, str(folder)], capture_output=True, text=True)

    def make(size: str) -> tuple[Path, Callable[[str], None]]:
        done = mount("-t", "tmpfs", "-o", f"size={size}", "none")
        if done.returncode:
            pytest.skip(f"this user cannot mount a file system to fill up: {done.stderr.strip()}")
        return folder, lambda size: mount("-o", f"remount,size={size}").check_returncode()

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
