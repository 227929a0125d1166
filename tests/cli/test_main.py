"""What `mmsa` makes of an error: a sentence where a person can mend it, a traceback where we must."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch

from mmsa_dist import __version__
from mmsa_dist.embed import PretrainedModel
from mmsa_dist.embed.parquet import vectors_of
from mmsa_shards.folder import Folder
from mmsa_shards.shard import ShardError

main = importlib.import_module("mmsa_dist.cli.main")  # the package's attribute of that name is the function


def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Callable[[], object]) -> str:
    """What is printed where a command does `work`, after the exit status."""
    monkeypatch.setattr(main, "app", lambda arguments: work())
    with pytest.raises(SystemExit) as end:
        main.main("search")
    return f"{end.value.code} {capsys.readouterr().err}"


def test_what_our_packages_raise_is_a_sentence(monkeypatch, capsys):
    for work, words in (
        (lambda: PretrainedModel.load("/nowhere"), "2 mmsa: model folder /nowhere does not exist; `mmsa pretrain` "),
        (lambda: Folder("nope://x"), "2 mmsa: cannot reach nope://x (Protocol not known: nope): name a path, or one "),
    ):
        lines = said(monkeypatch, capsys, work)
        assert lines.startswith(words)
        assert lines.count("\n") == 1


def test_what_a_loader_process_raises_is_a_sentence(monkeypatch, capsys):
    loader = torch.utils.data.DataLoader(Damaged(), num_workers=1)
    assert said(monkeypatch, capsys, lambda: next(iter(loader))).startswith("2 mmsa: Caught ShardError in DataLoader")


class Damaged(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, number: int) -> int:
        raise ShardError("train-00000.tar is damaged")


def test_what_the_system_refuses_is_a_sentence_that_names_the_way_to_its_place(monkeypatch, capsys, tmp_path):
    lines = said(monkeypatch, capsys, (tmp_path / "x").read_bytes)
    assert lines == f"2 mmsa: [Errno 2] No such file or directory: '{tmp_path}/x' (MMSA_DEBUG=1 shows where)\n"


@pytest.mark.parametrize(
    "work",
    [
        lambda: torch.distributions.Normal(torch.tensor(0.0), torch.tensor(-1.0), validate_args=True),
        lambda: np.concatenate([np.zeros(2), np.zeros((2, 2))]),
        lambda: vectors_of(pa.table({"embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}), 4),
        lambda: {}["key"],
    ],
    ids=["torch's ValueError", "numpy's", "a compiled function's below a line of ours", "another error"],
)
def test_a_bug_comes_with_its_traceback(monkeypatch, capsys, work):
    lines = said(monkeypatch, capsys, work).splitlines()
    assert lines[0] == "1 Traceback (most recent call last):"
    assert lines[-1] == f"mmsa: this is a bug of mmsa-dist {__version__}: please report it with the lines above"


def test_with_mmsa_debug_every_error_is_raised(monkeypatch):
    monkeypatch.setenv("MMSA_DEBUG", "1")
    monkeypatch.setattr(main, "app", lambda arguments: PretrainedModel.load("/nowhere"))
    with pytest.raises(ValueError, match="does not exist"):
        main.main("search")


def test_help_and_version(monkeypatch, capsys):
    for word, words in (("--version", f"mmsa-dist {__version__}\n"), ("--help", "MMSA_DEBUG=1")):
        monkeypatch.setattr("sys.argv", ["mmsa", word])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert not end.value.code
        assert words in capsys.readouterr().out
