"""Two hosts: network namespaces with a cable between them, started as a cluster is.

Both see the same file system, as nodes of a cluster do. These tests skip where the user may not make namespaces, or
where sshd and pdsh are not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmsa_dist.runtime.watchdog import EXIT_STATUS
from tests.fixtures.pretraining import MINI, ROOT, different, environment, losses, metrics, pretrain

pytestmark = pytest.mark.distributed

LINK = "mmsa0"  # the same name on both hosts, as GLOO_SOCKET_IFNAME is often one for all nodes
DEEPSPEED = str(Path(sys.executable).with_name("deepspeed"))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True)


class Hosts:
    """Two namespaces, `names`, with the addresses `addresses`."""

    def __init__(self) -> None:
        self.names = [f"mmsa-{os.getpid()}-{letter}" for letter in "ab"]
        self.addresses = ["10.177.0.1", "10.177.0.2"]

    def make(self) -> str:
        """Returns why it could not, else nothing."""
        first, second = self.names
        ends = [f"mm{os.getpid()}{letter}"[:15] for letter in "ab"]
        steps = [
            *(["ip", "netns", "add", name] for name in self.names),
            ["ip", "link", "add", ends[0], "netns", first, "type", "veth", "peer", "name", ends[1], "netns", second],
        ]
        for name, end, address in zip(self.names, ends, self.addresses, strict=True):
            steps += [
                ["ip", "-n", name, "link", "set", end, "name", LINK],
                ["ip", "-n", name, "addr", "add", f"{address}/24", "dev", LINK],
                ["ip", "-n", name, "link", "set", LINK, "up"],
                ["ip", "-n", name, "link", "set", "lo", "up"],
            ]
        for step in steps:
            done = run(*step)
            if done.returncode:
                return f"{' '.join(step)}: {done.stderr.strip()}"
        return ""

    def inside(self, host: int, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[host], *command]

    def remove(self) -> None:
        for name in self.names:
            for pid in run("ip", "netns", "pids", name).stdout.split():
                run("kill", "-9", pid)
            run("ip", "netns", "delete", name)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if shutil.which("ip") is None:
        pytest.skip("needs ip (iproute2) to make two hosts")
    hosts = Hosts()
    reason = hosts.make()
    try:
        if reason:
            pytest.skip(f"this user cannot make network namespaces: {reason}")
        yield hosts
    finally:
        hosts.remove()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue("make_tiny_shards")(tmp_path_factory.mktemp("two-hosts"))


def hostfile(hosts: Hosts, folder: Path) -> str:
    path = folder / "hostfile"
    path.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    return str(path)


def settings(folder: Path, shards: Path, *words: str) -> list[str]:
    return ["launch/pretrain.py", "--config", str(MINI), f"run.dir={folder / 'run'}", f"data.shards={shards}", *words]


@pytest.fixture
def ssh(hosts: Hosts, tmp_path: Path) -> dict[str, str]:
    """An sshd on each host that lets this test in; the environment that pdsh needs to reach them."""
    for tool in ("sshd", "pdsh", "ssh-keygen"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} (Debian: openssh-server, pdsh)")
    for key in ("host", "user"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key))
    shutil.copy(tmp_path / "user.pub", tmp_path / "authorized_keys")
    (tmp_path / "sshd_config").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized_keys\nStrictModes no\nPort 22\n"
        f"PermitRootLogin prohibit-password\nPidFile none\nUsePAM no\n"
    )
    (tmp_path / "ssh_config").write_text(
        f"Host *\n  IdentityFile {tmp_path}/user\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n  ServerAliveInterval 5\n  ServerAliveCountMax 3\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    for host in range(2):
        started = run(*hosts.inside(host, str(shutil.which("sshd")), "-f", str(tmp_path / "sshd_config")))
        assert started.returncode == 0, started.stderr
    (tmp_path / "deepspeed_env").write_text(
        "".join(
            f"{name}={value}\n"
            for name, value in {
                "GLOO_SOCKET_IFNAME": LINK,
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": environment()["PYTHONPATH"],
            }.items()
        )
    )
    return {
        **environment(),
        "PDSH_SSH_ARGS_APPEND": f"-F {tmp_path}/ssh_config",
        "DS_ENV_FILE": str(tmp_path / "deepspeed_env"),
    }


def test_the_launcher_trains_on_the_hosts_of_a_hostfile(
    hosts: Hosts, ssh: dict[str, str], shards: Path, tmp_path: Path
) -> None:
    launcher = [DEEPSPEED, "--hostfile", hostfile(hosts, tmp_path), "--no_ssh_check", "--force_multi"]
    address = ["--master_addr", hosts.addresses[0], "--master_port", "29511"]
    done = subprocess.run(
        hosts.inside(0, *launcher, *address, *settings(tmp_path, shards)),
        cwd=ROOT,
        env=ssh,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout + done.stderr
    one_host = tmp_path / "one-host"
    assert pretrain(one_host, shards).returncode == 0
    assert losses(tmp_path / "run") == losses(one_host), "two hosts compute what two ranks of one host do"
    assert different(tmp_path / "run", one_host) == []


def test_a_link_that_goes_silent_ends_both_sides(hosts: Hosts, shards: Path, tmp_path: Path) -> None:
    """Nothing tells the ends of a cut cable that it is cut: gloo alone was seen to wait on for ever."""
    limit_s = 8
    processes = [
        subprocess.Popen(
            hosts.inside(
                host,
                *(DEEPSPEED, "--hostfile", hostfile(hosts, tmp_path), "--no_ssh", "--node_rank", str(host)),
                *("--master_addr", hosts.addresses[0], "--master_port", "29512"),
                *settings(tmp_path, shards, "train.steps=100000", "train.valid_every=100000"),
                f"train.lost_after_s={limit_s}",
            ),
            cwd=ROOT,
            env={**environment(), "GLOO_SOCKET_IFNAME": LINK},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    try:
        deadline = time.monotonic() + 120
        record = tmp_path / "run" / "metrics.jsonl"
        while not record.exists() or len(metrics(tmp_path / "run")) < 5:
            assert [process.poll() for process in processes] == [None, None]
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert run("ip", "-n", hosts.names[1], "link", "set", LINK, "down").returncode == 0
        begin = time.monotonic()
        outputs = [process.communicate(timeout=120)[0] for process in processes]
        assert time.monotonic() - begin < 60
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == EXIT_STATUS, output
        assert "--resume" in output
