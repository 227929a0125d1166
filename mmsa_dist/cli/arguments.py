"""Arguments shared by several commands."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Optional

import typer

from mmsa_dist.config.load import is_used, sections_of

SETTINGS = "[section.key=value]..."

# typer evaluates annotations at run time and does not support `X | None` in every form needed here.
ConfigFile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--config", "-c", help="YAML file with changes to the defaults; `mmsa config` shows all keys."),
]
ModelFolder = Annotated[
    str, typer.Option("--model", "-m", help="Folder of an exported model (<run.dir>/model), or a hub id.")
]

_SETTING = re.compile(r"[a-z_]+(\.[a-z_0-9]+)+=", re.ASCII)


def split_settings(words: list[str] | None) -> tuple[list[str], list[str]]:
    """Separates settings ``section.key=value`` from other arguments; returns (others, settings).

    Raises:
        ValueError: an argument is a setting without its section.
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
    """Rejects settings that have no effect.

    Args:
        settings: valid settings.
        used: keys that `command` uses, or sections whose keys it uses.
        command: name of the command.
        why: explanation for users of other settings.

    Raises:
        ValueError: `command` does not use one of `settings`.
    """
    unused = [word for word in settings if not is_used(word.partition("=")[0], used)]
    if unused:
        raise ValueError(f"{command} does not use {', '.join(unused)}: {why}. It uses {', '.join(used)}")


def refuse_empty(option: str, value: str | None, what: str = "a folder") -> None:
    """Rejects an option with an empty value, as an unset shell variable gives.

    Raises:
        ValueError: `value` is empty.
    """
    if value is not None and not value.strip():
        raise ValueError(f"{option} is empty: name {what}, or leave {option} out where it may be")


def only_settings(words: list[str] | None, example: str = "train.steps=1000") -> list[str]:
    """Returns the arguments of a command that takes only settings.

    Raises:
        ValueError: an argument is not a setting; the message shows `example`.
    """
    strangers, settings = split_settings(words)
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the form section.key=value, such as {example}")
    return settings
