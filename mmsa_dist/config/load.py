"""From YAML files and ``section.key=value`` words to one checked `Config`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from mmsa_dist.config.schema import Config
from mmsa_shards.options import PrepareOptions

DEFAULT_FILE = Path(__file__).with_name("default.yaml")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names key, value, rule and mend."""


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merges ``default.yaml``, `file` and `overrides`, in this order, into a checked configuration.

    Args:
        file: a YAML file that holds only what differs from the defaults; None for the defaults alone.
        overrides: words ``section.key=value``; the value is read as YAML.

    Raises:
        ConfigError: an unreadable file, an unknown key, a wrong type or a broken relation.
    """
    layers = [_read(DEFAULT_FILE)]
    if file is not None:
        layers.append(_read(Path(file)))
    for word in overrides:
        if "=" not in word or not word.split("=", 1)[0]:
            raise ConfigError(f"{word!r} is not of the form section.key=value, such as train.steps=1000")
    try:
        layers.append(OmegaConf.from_dotlist(list(overrides)))
        merged = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"the configuration cannot be merged: {_first_line(error)}") from error
    try:
        return Config.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def to_yaml(config: Config) -> str:
    """The whole resolved configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_yaml(file: Path) -> Any:
    """The mapping in a YAML file, read as configuration files are: ``1e-4`` is a number, and no key comes twice.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    return OmegaConf.to_container(_read(file), resolve=True)


def _read(file: Path) -> DictConfig:
    try:
        tree = OmegaConf.load(file)
    except OSError as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration file {file} is not valid YAML: {_first_line(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"configuration file {file} must hold sections (run:, data:, ...), not a list or a value")
    return tree


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return " ".join(str(error).split("\n")[:2]).strip()


def explain(error: ValidationError, root: type[BaseModel] = Config) -> str:
    """What is wrong with a mapping that was to be a `root`, a line for each key."""
    lines: list[str] = []
    rules: dict[str, list[str]] = {}
    for problem in error.errors():
        location = _without_branches(problem["loc"], root)
        key = ".".join(str(part) for part in location)
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            known = _keys_beside(location, root)
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            mend = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
            lines.append(f"unknown key {key}; {mend}")
        elif problem["type"] == "value_error":
            lines.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] in {"list_type", "tuple_type"}:
            lines.append(f"{key}={problem['input']!r}: it takes a list; write '{key}=[{problem['input']}]'")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:  # of a union each branch has its own
            rules.setdefault(f"{key}={problem['input']!r}", []).append(problem["msg"][0].lower() + problem["msg"][1:])
    return "\n".join(lines + [f"{what}: {', or '.join(broken)}" for what, broken in rules.items()])


def _without_branches(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[int | str, ...]:
    """`location` up to a field that is a union: what pydantic calls its branches is nothing that a user wrote."""
    section: Any = root
    for number, part in enumerate(location, 1):
        section = _part_of(section, part)
        if get_origin(section) in {Union, UnionType}:
            return location[:number]
    return location


def sections_of(key: str) -> list[str]:
    """The sections of the configuration that have a setting of this name."""
    return [section for section in Config.model_fields if key in _keys_beside((section, key), Config)]


def _keys_beside(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Names that are known in the section that holds the last part of `location`."""
    section: Any = root
    for part in location[:-1]:
        section = _part_of(section, part)
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    if section is PrepareOptions:
        return [name for name in PrepareOptions.__dataclass_fields__ if not name.startswith("_")]
    return []


def _part_of(section: Any, name: int | str) -> Any:
    """The type of a field of a section; None where there is no such field."""
    field = getattr(section, "model_fields", {}).get(name)
    return field.annotation if field else None
