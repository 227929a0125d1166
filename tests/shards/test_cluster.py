"""Ray that is not there, and how a person who ends a preparation is answered."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mmsa_shards.errors import PrepareError

pytest.importorskip("ray")

from mmsa_shards.cluster import ray_pool

pytestmark = pytest.mark.distributed

MMSA = [sys.executable, "-c", "from mmsa_dist.cli import main; main()"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **more}


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no.such.host.invalid:6379"])
def test_a_cluster_that_is_not_there_is_named(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("mmsa_shards.cluster._CLUSTER_TIMEOUT_S", 1.5)
    said: list[str] = []
    begun = time.monotonic()
    words = rf"RAY_ADDRESS={re.escape(address)} \(.*\): check that it runs .* unset RAY_ADDRESS"
    with pytest.raises(PrepareError, match=words), ray_pool(1, said.append):
        pass
    assert time.monotonic() - begun < 20
    assert said == [f"connecting to the Ray cluster at RAY_ADDRESS={address}"]


def test_a_port_that_opens_late_is_waited_for(monkeypatch):
    from mmsa_shards import cluster

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tries = []

    def connect(place: tuple[str, int], timeout: float) -> socket.socket:
        tries.append(place)
        if len(tries) == 1:
            raise ConnectionRefusedError
        return socket.socket()

    monkeypatch.setattr("socket.create_connection", connect)
    cluster._wait_for_port(f"127.0.0.1:{port}")
    assert tries == [("127.0.0.1", port)] * 2
    for other in ("auto", "local", "ray://127.0.0.1:1", "127.0.0.1"):
        cluster._wait_for_port(other)
    assert len(tries) == 2


@pytest.mark.slow
def test_what_listens_and_is_no_ray_is_given_up_too(tmp_path):
    (tmp_path / "a.smi").write_text("CCO")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = subprocess.run(
            [*MMSA, "prepare", str(tmp_path / "a.smi"), "--out", str(tmp_path / "out")],
            env=environment(RAY_ADDRESS=address), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"mmsa: cannot connect to the Ray cluster at RAY_ADDRESS={address}" in done.stderr
    assert "cannot write" not in done.stderr


def begun(tmp_path: Path, made: Path) -> psutil.Popen:
    """Starts a preparation in a process of its own, and returns when it has made something."""
    (tmp_path / "a.smi").write_text("\n".join(f"{'C' * (n % 40 + 1)}N{'C' * (n // 40)} m{n}" for n in range(400)))
    words = ["prepare", str(tmp_path / "a.smi"), "--out", str(tmp_path / "out"), "prepare.workers=1"]
    variables = environment()
    variables.pop("RAY_ADDRESS", None)
    process = psutil.Popen([*MMSA, *words], env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(made.parent.glob(made.name)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process


def end_by_sigterm(process: psutil.Popen) -> None:
    """Ends it as Slurm and Kubernetes do, and looks at the answer and at what is left."""
    family = [child for child in process.children(recursive=True) if not child.name().endswith("Agent")]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert errors.splitlines()[-1].startswith("mmsa: interrupted; what is finished is kept")
    assert "***" not in errors, "a stack of C++"
    assert not psutil.wait_procs(family, timeout=30)[1], "processes outlive the driver"


def test_sigterm_is_answered_in_words_and_work_is_kept(tmp_path):
    pieces = tmp_path / "out" / ".work" / "pieces"
    end_by_sigterm(begun(tmp_path, pieces / "*.arrow"))
    assert list(pieces.glob("*.arrow"))
    assert not list(Path(tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("later", [0.0, 1.5])
def test_sigterm_is_answered_in_words_while_ray_starts(tmp_path, later):
    process = begun(tmp_path, tmp_path / "out" / ".work" / "job.json")
    time.sleep(later)
    end_by_sigterm(process)


@pytest.mark.distributed
def test_the_signal_handler_of_a_caller_stays_its_own():
    def own(*_: object) -> None:
        """A graceful end of a program that has this one for a library."""

    before = signal.signal(signal.SIGTERM, own)
    try:
        with ray_pool(1):
            assert signal.getsignal(signal.SIGTERM) is not own
        assert signal.getsignal(signal.SIGTERM) is own
    finally:
        signal.signal(signal.SIGTERM, before)
