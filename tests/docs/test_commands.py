"""Commands that the documentation tells to type, read by the parser and the loader of configurations that they meet.

Most of them need a cluster, a large model or a night, so they are not run: an option, a setting, a file of launch/ or
a target of the Makefile that has another name by now is found all the same. `test_examples.py` runs what can be run.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from mmsa_dist.cli.arguments import split_settings
from mmsa_dist.cli.main import app
from mmsa_dist.config.load import load_config
from tests.fixtures.examples import PAGES, ROOT, examples

CONFIGURATIONS = [*sorted((ROOT / "launch" / "configs").glob("*.yaml")), ROOT / "launch" / "ablation.yaml"]
OPERATORS = "|&;<>"


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell's text, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=OPERATORS)
        lexer.whitespace_split = True
        for is_operator, words in itertools.groupby(lexer, lambda word: set(word) <= set(OPERATORS)):
            if not is_operator:
                yield list(words)


def ours(command: list[str]) -> list[str] | None:
    """What follows `mmsa` in a command, whatever launches it; a script of launch/ is the command of its name."""
    for at, word in enumerate(command):
        if word == "mmsa":
            return command[at + 1 :]
        if script := re.fullmatch(r"launch/(\w+)\.py", word):
            return [script[1], *command[at + 1 :]]
    return None


def written() -> Iterator[tuple[str, list[str]]]:
    """Every command of a fence, and of the comments at the head of a configuration, with where it stands."""
    for page in PAGES:
        for example in examples(page):
            if example.language == "sh":
                yield from ((str(page.relative_to(ROOT)), command) for command in commands(example.text))
    for file in CONFIGURATIONS:
        indented = "\n".join(re.findall(r"^# {3,}(.*)$", file.read_text(), re.MULTILINE))
        for command in commands(indented):
            if command[0] in ("mmsa", "deepspeed"):
                yield str(file.relative_to(ROOT)), command


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that is named, as typer has it, and the words after its name."""
    found: Any = typer.main.get_command(app)
    while hasattr(found, "commands"):
        assert words, "names no command"
        assert words[0] in found.commands, f"there is no command {words[0]}"
        found, words = found.commands[words[0]], words[1:]
    return found, words


def check(words: list[str]) -> None:
    """Has the command line read what follows `mmsa`, up to where work would begin."""
    command, rest = command_of(words)
    given = command.make_context(command.name, list(rest)).params
    files, settings = split_settings(given.get("words"))
    load_config(given.get("config") or (files[0] if files and command.name == "config" else None), settings)


COMMANDS = [
    pytest.param(ours(words), id=f"{where}: {shlex.join(words)[:70]}") for where, words in written() if ours(words)
]


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_understood(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(words)


def test_the_commands_are_found():
    places = [where for where, words in written() if ours(words)]
    assert places.count("README.md") == 8
    assert places.count("docs/prepare.md") == 5
    assert places.count("docs/evaluation.md") == 5
    assert {"launch/configs/base.yaml", "launch/configs/graph2d.yaml", "launch/ablation.yaml"} <= set(places)


def test_files_and_targets_are_there():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for where, words in written():
        assert not [w for w in words if w.startswith("launch/") and not (ROOT / w).exists()], where
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w} <= set(targets), where


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_options_in_prose_are_there(page):
    for said in re.findall(r"`mmsa ([a-z][^`\n]*)`", page.read_text()):
        command, rest = command_of(said.split())
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= known, said


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mmsa prepair in.smi --out shards", "there is no command prepair"),
        ("mmsa prepare in.smi --output shards", "No such option"),
        ("zcat in.gz | mmsa evaluate --tasks bbbp", "Missing parameter: out"),
        ("mmsa evaluate --out o --protocol tune", "is not one of"),
        ("deepspeed --num_nodes 2 launch/pretrain.py --restart run.dir=x", "No such option"),
        ("mmsa pretrain --config launch/configs/base.yaml \\\n    train.step=3", "train.step"),
        ("mmsa config launch/configs/huge.yaml > resolved.yaml", "cannot be read"),
    ],
)
def test_another_name_is_found(text, reason, monkeypatch):
    monkeypatch.chdir(ROOT)
    (words,) = (found for command in commands(text) if (found := ours(command)))
    with pytest.raises(Exception, match=reason):  # typer's own are of a private module
        check(words)
