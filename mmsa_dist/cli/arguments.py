"""Arguments that several commands share."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from mmsa_dist.config.load import sections_of

SETTINGS = "[section.key=value]..."

# typer reads annotations when the program runs, where `X | None` is not understood in every form it needs.
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", "-c", help="YAML file with what differs from the defaults; `mmsa config` shows all keys."),
]
ModelFolder = Annotated[
    str, typer.Option("--model", "-m", help="Folder of an exported model (<run.dir>/model), or a hub id.")
]

_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=", re.ASCII)


def split_settings(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Separates settings ``section.key=value`` from other words.

    Raises:
        ValueError: a word is meant as a setting, but without its section.
    """
    words = words or []
    for word in words:
        key, is_setting, _ = word.partition("=")
        sections = sections_of(key) if is_setting else []
        if sections:
            meant = " or ".join(f"{section}.{word}" for section in sections)
            raise ValueError(f"{word!r} lacks its section: did you mean {meant}?")
    return (
        [word for word in words if not _SETTING.match(word)],
        [word for word in words if _SETTING.match(word)],
    )


def refuse_unused(settings: Sequence[str], used: Sequence[str], command: str, why: str) -> None:
    """Refuses settings that would change nothing.

    Args:
        settings: known ones.
        used: keys that `command` uses, or sections whose keys it uses.
        command: its name.
        why: what a user of others may not know.

    Raises:
        ValueError: one of `settings` is not among `used`.
    """
    keys = [word.partition("=")[0] for word in settings]
    unused = [
        word
        for word, key in zip(settings, keys, strict=True)
        if not any(key == of or key.startswith(f"{of}.") for of in used)
    ]
    if unused:
        raise ValueError(f"{command} does not use {', '.join(unused)}: {why}. It uses {', '.join(used)}")


def refuse_empty(option: str, value: str | None) -> None:
    """Refuses an option whose value is there and empty, as a variable of the shell that is not set leaves it.

    Raises:
        ValueError: it is.
    """
    if value is not None and not value.strip():
        raise ValueError(f"{option} is empty: name a folder, or leave {option} out where it may be")


def only_settings(words: list[str] | None, example: str = "train.steps=1000") -> list[str]:
    """The words of a command that takes settings and nothing else.

    Raises:
        ValueError: another word is among them; the message shows `example`.
    """
    strangers, settings = split_settings(words)
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as {example}")
    return settings
