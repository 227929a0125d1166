from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmsa_shards.lock import locked

HOLDS = """
import sys, time
from pathlib import Path
from mmsa_shards.lock import locked
with locked(Path(sys.argv[1]), ValueError()):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another is"), locked(path, ValueError("another is")):
        pytest.fail("entered")
    assert path.exists()
    holder.kill()
    holder.wait()
    with locked(path, ValueError("another is")):  # what is left of a killed one locks nothing
        assert path.exists()
    assert not path.exists()


def test_an_error_inside_passes_and_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(BlockingIOError), locked(path, ValueError("another is")):
        raise BlockingIOError
    assert not path.exists()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_warned_of(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "lock"
    with locked(path, ValueError("another is")):
        assert path.exists()
    assert not path.exists()
    assert caplog.messages == [f"{tmp_path} has no locks ({os.strerror(number)}): start no second process there"]


def test_other_errors_of_locking_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "lock", ValueError("another is")):
        pytest.fail("entered")
