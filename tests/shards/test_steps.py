"""The steps in one process: what is told while inputs are read, and inputs that change or fail meanwhile."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mmsa_shards import catalog
from mmsa_shards.errors import ChangedError, PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.job import describe
from mmsa_shards.steps import Preparation
from tests.fixtures.download_server import serving


class OneProcess:
    """A pool without Ray: one call after the other, with a heartbeat before each result."""

    workers, gpus = 1, 0

    def check_that_all_see(self, folder):
        pass

    def share(self, value):
        return value

    def map(self, function, calls, *, gpus=0, heartbeat=None):
        for call in calls:
            result = function(*call)
            if heartbeat is not None:
                heartbeat()
            yield result


@pytest.fixture
def preparation(tmp_path, options):
    """Makes the steps for these inputs, with a list of what they tell."""
    told: list[tuple] = []

    def make(*inputs: Path | str, pool: OneProcess | None = None, **changes) -> tuple[Preparation, list[tuple]]:
        chosen, work = replace(options, **changes), tmp_path / "work"
        work.mkdir(exist_ok=True)
        job = describe([str(path) for path in inputs], chosen, None)
        made = Preparation(
            Folder(tmp_path / "out"), work, job, None, chosen, pool or OneProcess(), lambda *facts: told.append(facts)
        )
        made.set_up()
        return made, told

    return make


def test_an_input_that_is_replaced_before_it_is_read_is_refused(tmp_path, preparation):
    path, other = tmp_path / "a.smi", tmp_path / "b.smi"
    path.write_text("CCO a\n")
    other.write_text("C b\n")
    os.utime(path, (1, 1))
    steps, _ = preparation(path, other)
    path.write_text("CCN a\n")
    os.utime(path, (2, 2))
    with pytest.raises(PrepareError, match=r"^file file://\S+/a\.smi has changed since this preparation began: run"):
        steps.read()
    path.write_text("CCO a\n")  # its former state, whose chunks must not be those of the other one
    os.utime(path, (1, 1))
    chunks, counts = preparation(path, other)[0].read()
    assert counts.read == 2
    assert [b"CCO" in chunk.read_bytes() for chunk in chunks if chunk.parent.name == steps.job.inputs[0].key] == [True]


def test_an_input_that_is_replaced_by_a_part_of_it_is_said_to_have_changed(tmp_path, preparation):
    path, whole = tmp_path / "a.smi.gz", gzip.compress(b"CCO a\n" * 1000)
    path.write_bytes(whole)
    steps, _ = preparation(path, allow_truncated=True)
    path.write_bytes(whole[:-9])
    with pytest.raises(PrepareError, match=r"^file \S+/a\.smi\.gz has changed since"):
        steps.read()


def of_4000(end: str) -> str:
    """A SMILES file of several parts and chunks, whose molecules all have this end."""
    return "".join(f"{'C' * (n % 90 + 1)}{end} m{n}\n" for n in range(4000))


def test_a_chunk_of_a_file_that_was_replaced_while_it_was_read_is_not_kept(tmp_path, preparation, monkeypatch):
    path, standardize_many = tmp_path / "a.smi", catalog.standardize_many
    path.write_text(of_4000("O"))
    steps, _ = preparation(path)
    seen = []

    def replacing(structures, how):
        seen.append(structures)
        if len(seen) == 2:
            path.write_text(of_4000("N"))
            os.utime(path, (1, 1))
        return standardize_many(structures, how)

    monkeypatch.setattr(catalog, "standardize_many", replacing)
    chapter = steps.chapters[0]
    _, error = catalog.catalog_input(chapter, 0, 1, frozenset(), steps.options)
    assert isinstance(error, ChangedError)
    assert [path.name for path in chapter.folder.glob("*.arrow")] == ["000000.arrow"]


@pytest.mark.parametrize("then", ["stopped", "gone", "same"])
def test_nothing_stays_of_an_input_that_was_replaced_on_a_server(preparation, then):
    """Whatever happens while its other parts are read."""

    class Eventful(OneProcess):
        workers = 2

        def map(self, function, calls, *, gpus=0, heartbeat=None):
            for number, call in enumerate(calls):
                if number == 1 and then == "stopped":
                    raise KeyboardInterrupt
                result = function(*call)
                if number > 0 and then == "gone":
                    result = call[0].source.key, PrepareError("the server is gone")
                yield result

    with serving() as server:
        server.put("a.smi", of_4000("O").encode())
        steps, _ = preparation(f"{server.url}a.smi", pool=Eventful())
        assert steps.parts_of(steps.chapters[0], 1) > 1
        server.put("a.smi", of_4000("N").encode(), time=1_800_000_000.0)
        with pytest.raises(KeyboardInterrupt if then == "stopped" else PrepareError) as stop:
            steps.read()
        assert then == "stopped" or "has changed since this preparation began" in str(stop.value)
        assert list(steps.chapters[0].folder.glob("*.arrow")) == []


def test_the_work_of_telling_grows_with_the_number_of_inputs_and_no_faster(tmp_path, preparation, monkeypatch):
    inputs = [tmp_path / f"{n:02d}.smi" for n in range(40)]
    for number, path in enumerate(inputs):
        path.write_text("C" * (number + 1) + "\n" + "junk\n" * (number % 2))
    num_bytes = sum(path.stat().st_size for path in inputs)
    steps, told = preparation(*inputs)
    looks: list[Path] = []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: looks.append(folder) or glob(folder, pattern))
    _, counts = steps.read()
    assert (counts.read, counts.kept, counts.rejected) == (60, 40, 20)
    assert len(looks) <= 3 * len(inputs), "one before the task of an input, one meanwhile, one after it"
    assert [stage for stage, *_ in told] == ["read"] * 41
    assert [done for _, done, _, _ in told] == sorted(done for _, done, _, _ in told)
    assert told[0] == ("read", 2, 2 * num_bytes // 46, 1), "an estimate from the largest input, of 46 bytes"
    assert told[-1] == ("read", 60, 60, 20)
    assert [steps.chapters[n].counts.read for n in (0, 1)] == [1, 2]
    again, told_again = preparation(*inputs)
    again.read()
    assert told_again[-1] == ("read", 60, 60, 20), "what an earlier run has read counts"


def test_an_input_of_which_a_part_failed_is_not_done(tmp_path, preparation, monkeypatch):
    class Unlucky(OneProcess):
        workers = 2

        def map(self, function, calls, *, gpus=0, heartbeat=None):
            for number, call in enumerate(calls):
                yield (call[0].source.key, PrepareError("the server is gone")) if number == 0 else function(*call)

    path = tmp_path / "a.smi"
    path.write_text("".join(f"{'C' * (n % 90 + 1)} m{n}\n" for n in range(4000)))
    steps, _ = preparation(path, pool=Unlucky())
    assert steps.parts_of(steps.chapters[0], 1) > 1
    with pytest.raises(PrepareError, match="the server is gone"):
        steps.read()
    assert not steps.chapters[0].is_done
    chunks, counts = preparation(path)[0].read()
    assert (counts.read, all(chunk.exists() for chunk in chunks)) == (4000, True)
