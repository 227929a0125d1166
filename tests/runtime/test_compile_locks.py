"""A lock that a killed compilation left behind is named, and one at work is left alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from torch.utils.cpp_extension import _get_build_directory

from mmsa_dist.runtime.compile_locks import StaleCompileLock, refuse_stale_compile_locks


@pytest.fixture(params=["TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"])
def lock(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lock of an extension, where torch itself would put it."""
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv(request.param, str(tmp_path))
    path = Path(_get_build_directory("some_op", verbose=False)) / "lock"
    path.touch()
    return path


def test_a_lock_at_work_is_left_alone(lock: Path) -> None:
    refuse_stale_compile_locks()


def test_a_stale_lock_is_named(lock: Path) -> None:
    hours_ago = time.time() - 7200
    os.utime(lock, (hours_ago, hours_ago))
    with pytest.raises(StaleCompileLock, match=f"rm {lock}"):
        refuse_stale_compile_locks()


def test_no_folder_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "nowhere"))
    refuse_stale_compile_locks()
