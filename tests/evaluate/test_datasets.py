"""Labelled files from the hub: fetched once, kept, and what is said where there is no network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mmsa_dist.evaluate import TASKS, TaskError, load_task
from mmsa_dist.evaluate.datasets import find_file

#: As scikit-fingerprints lays BBBP out: other names for the columns, and no rows that do not parse.
FILES = {"/datasets/scikit-fingerprints/MoleculeNet_BBBP/resolve/main/bbbp.csv": b"SMILES,label\nCCO,1\nCCC,0\n"}


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """A server on loopback laid out as the hub; gives its address and the log of what was asked."""
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            log.append(f"{self.command} {self.path}")
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("X-Repo-Commit", "1" * 40)
            self.send_header("ETag", f'"{hashlib.sha1(content or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            if content is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if self.command == "GET" and content is not None:
                self.wfile.write(content)

        do_GET = do_HEAD = answer

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load(name: str, cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Loads a task in a process of its own, for the client of the hub reads its settings when it is imported."""
    code = f"from mmsa_dist.evaluate import load_task as f; d = f({name!r}); print(*d.smiles, d.labels[:, 0].tolist())"
    # Nothing of the environment that points elsewhere: no proxy, no token, no cache of the user's.
    clean = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_file_is_fetched_once_and_then_read_without_network(tmp_path):
    with hub(FILES) as (address, log):
        first = load("bbbp", tmp_path, HF_ENDPOINT=address)
        assert first.stdout == "CCO CCC [1.0, 0.0]\n", first.stderr
        assert sum(line.startswith("GET") for line in log) == 1
        asked = len(log)
        again = load("bbbp", tmp_path, HF_ENDPOINT=address)
        assert again.stdout == first.stdout
        assert len(log) == asked
    offline = load("bbbp", tmp_path, HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout, offline.stderr


def test_what_cannot_be_fetched_is_said_with_the_mend(tmp_path):
    with hub({}) as (address, _):
        missing = load("toxcast", tmp_path, HF_ENDPOINT=address)
    refused = load("toxcast", tmp_path, HF_ENDPOINT=address)  # the server is gone
    offline = load("toxcast", tmp_path, HF_HUB_OFFLINE="1")
    for done in (missing, refused, offline):
        said = done.stderr.splitlines()[-1]
        assert "task 'toxcast' could not be downloaded" in said
        assert "toxcast.csv of scikit-fingerprints/MoleculeNet_ToxCast" in said
        assert "download toxcast.csv[.gz] or toxcast_data.csv[.gz] elsewhere and give its folder with --data" in said
    assert "404" in missing.stderr
    assert "Connection refused" in refused.stderr.splitlines()[-1]
    assert "Retrying" not in refused.stderr
    assert "unset the `HF_HUB_OFFLINE` environment variable" in offline.stderr.splitlines()[-1]


def test_a_folder_is_asked_first_and_nothing_is_downloaded_in_its_place(tmp_path):
    (tmp_path / "SAMPL.csv").write_text("iupac,smiles,expt,calc\nmethane,C,2.0,2.4\n")
    assert find_file(TASKS["freesolv"], tmp_path).name == "SAMPL.csv"
    assert load_task("freesolv", tmp_path).labels.tolist() == [[2.0]]
    assert find_file(TASKS["freesolv"]).name == "freesolv.csv"
    with pytest.raises(TaskError, match=r"not found in .*: put it there, or omit --data to download it"):
        load_task("muv", tmp_path)


def test_every_named_task_can_be_fetched():
    repositories = {name: task.hub for name, task in TASKS.items()}
    assert len(set(repositories.values())) == 11
    for name, repository in repositories.items():
        assert repository is not None
        assert repository.lower() == f"scikit-fingerprints/moleculenet_{name}"
