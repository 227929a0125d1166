"""The guard: results in order, and what becomes of an item that hangs or crashes its process."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmsa_shards.guard import Guard, Lost


def double(x: int) -> int:
    return 2 * x


def misbehave(what: str) -> str:
    if what == "spin":
        while True:
            pass
    if what == "sleep":
        time.sleep(60)
    if what == "segfault":
        ctypes.string_at(0)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise KeyError("as without a guard")
    if what == "print":
        os.write(1, b"noise on stdout, as C++ libraries make it\n")
    return what


def processes(_: object) -> tuple[int, int]:
    return os.getpid(), os.getppid()


def name_process(width: int) -> str:
    """The number of its process, after as long as results wait for each other."""
    time.sleep(0.1)
    return f"{os.getpid():{width}}"


def die_at_first(order: tuple[str, str, int]) -> str:
    """Kills its process, or the parent of that, the first so many times that it is called."""
    victim, record, times = order
    with Path(record).open("a") as file:
        file.write("x")
    if len(Path(record).read_text()) <= times:
        os.kill(os.getpid() if victim == "worker" else os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return victim


def raise_end_of_file(_: object) -> None:
    raise EOFError("its own")


def allocate(gigabytes: int) -> int:
    return len(bytearray(gigabytes << 30))


def announce_and_spin(path: str) -> None:
    Path(path).write_text(f"{os.getpid()} {os.getppid()} .")
    while True:
        pass


@pytest.fixture
def guard():
    guard = Guard()
    yield guard
    guard.close()


def test_results_come_in_order(guard):
    assert list(guard.map(double, range(500), seconds=1)) == [2 * x for x in range(500)]
    assert list(guard.map(double, [], seconds=1)) == []


def test_steps_follow_one_another(guard):
    results = list(guard.map(double, range(50), then=(double, str), seconds=1))
    assert results == [str(4 * x) for x in range(50)]


def test_an_item_may_be_lost_at_any_step(guard):
    items = ["a", "spin", "b", "segfault", *"cdefghijklmnopqrstuvwxyz", "exit", "print"]
    results = list(guard.map(str.strip, items, then=(misbehave, str.upper), seconds=0.2))
    assert [r.reason if isinstance(r, Lost) else r for r in results] == [
        "A", "timeout", "B", "crash", *"CDEFGHIJKLMNOPQRSTUVWXYZ", "crash", "PRINT",
    ]  # fmt: skip


def test_an_error_at_a_later_step_is_raised_after_what_came_before_it(guard):
    results = guard.map(str.strip, ["a", "raise", "b"], then=(misbehave,), seconds=1)
    assert next(results) == "a"
    with pytest.raises(KeyError, match="without a guard"):
        next(results)
    assert list(guard.map(misbehave, ["c"], seconds=1)) == ["c"]


def test_the_worker_has_a_quicker_malloc_where_ray_is_installed(guard):
    pytest.importorskip("ray")
    (mapped,) = guard.map(Path.read_text, [Path("/proc/self/maps")], seconds=1)
    assert "libjemalloc" in mapped


def test_an_item_that_ends_the_process_costs_only_itself(guard):
    results = list(guard.map(misbehave, ["a", "spin", "b", "segfault", "exit", "print", "sleep"], seconds=0.2))
    assert [r.reason if isinstance(r, Lost) else r for r in results] == [
        "a", "timeout", "b", "crash", "crash", "print", "timeout",
    ]  # fmt: skip
    assert "SIGSEGV" in results[3].message


def test_the_time_limit_holds(guard):
    list(guard.map(misbehave, ["warm"], seconds=1))
    started = time.process_time(), time.monotonic()
    assert list(guard.map(misbehave, ["spin"], seconds=0.3)) == [Lost("timeout", "took more than 0.3 s")]
    assert time.monotonic() - started[1] < 3.0


def test_an_error_is_raised_and_the_guard_goes_on(guard):
    with pytest.raises(KeyError, match="without a guard"):
        list(guard.map(misbehave, ["a", "raise", "b"], seconds=1))
    assert list(guard.map(misbehave, ["c"], seconds=1)) == ["c"]


def test_results_larger_than_a_pipe_pass(guard):
    big = ["x" * 1_000_000] * 4
    assert list(guard.map(misbehave, big, seconds=1)) == big


@pytest.mark.parametrize("victim", ["worker", "fork server"])
def test_an_item_killed_from_outside_is_tried_again(guard, tmp_path, victim):
    items = [("none", str(tmp_path / f"{n}"), 0) for n in range(3)]
    items.insert(2, (victim, str(tmp_path / "killed"), 2))
    assert list(guard.map(die_at_first, items, seconds=30)) == ["none", "none", victim, "none"]
    assert (tmp_path / "killed").read_text() == "xxx"


def test_an_item_killed_every_time_is_given_up(guard, tmp_path):
    items = [("worker", str(tmp_path / "always"), 99), ("none", str(tmp_path / "never"), 0)]
    lost, other = guard.map(die_at_first, items, seconds=30)
    assert isinstance(lost, Lost)
    assert "SIGKILL" in lost.message
    assert other == "none"
    assert (tmp_path / "always").read_text() == "xxx"


def test_a_worker_that_dies_within_a_message_is_replaced(guard):
    results = guard.map(name_process, [0, 1 << 26], seconds=30)
    pid = int(next(results))  # it is writing the second by now, more than the pipe holds
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    assert len(next(results)) == 1 << 26


def test_a_process_killed_while_idle_is_replaced(guard):
    for index in (0, 1):
        (pids,) = guard.map(processes, [None], seconds=1)
        os.kill(pids[index], signal.SIGKILL)
        assert list(guard.map(double, [1, 2], seconds=1)) == [2, 4]


def test_the_next_worker_is_forked_from_the_same_server(guard):
    ((first, server),) = guard.map(processes, [None], seconds=1)
    list(guard.map(misbehave, ["segfault"], seconds=1))
    ((second, same),) = guard.map(processes, [None], seconds=1)
    assert first != second
    assert server == same


def test_an_item_cannot_take_the_memory_of_the_machine(guard):
    lost, other = guard.map(allocate, [1 << 10, 0], seconds=5)
    assert lost == Lost("crash", "needs more than 4 GiB of memory")
    assert other == 0


def test_an_error_of_the_connection_is_the_functions_own(guard):
    with pytest.raises(EOFError, match="its own"):
        list(guard.map(raise_end_of_file, [0], seconds=1))


def test_nothing_is_left_running_when_the_caller_is_killed(tmp_path):
    note = tmp_path / "pids"
    script = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from mmsa_shards.guard import Guard\n"
        "from test_guard import announce_and_spin\n"
        f"list(Guard().map(announce_and_spin, [{str(note)!r}], seconds=60))\n"
    )
    path = os.pathsep.join(filter(None, sys.path))
    with subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}) as caller:
        _wait_until(lambda: note.exists() and note.read_text().endswith("."))
        pids = list(map(int, note.read_text().split()[:2]))
        assert all(map(_runs, pids))
        caller.kill()
    _wait_until(lambda: not any(map(_runs, pids)))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"  # dead, and nobody has asked yet


def _wait_until(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)
