"""Loads YAML files and ``section.key=value`` overrides into one validated `Config`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
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
    """An invalid configuration; the message names key, value, rule and remedy."""


def load_config(file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merges ``default.yaml``, `file` and `overrides`, in this order, into a validated configuration.

    Args:
        file: a YAML file that holds only what differs from the defaults; None for the defaults alone.
        overrides: strings ``section.key=value``; the value is parsed as YAML.

    Raises:
        ConfigError: an unreadable file, an unknown key, a wrong type or a violated relation.
    """
    layers = [_read(DEFAULT_FILE)]
    if file is not None:
        layers.append(_read(Path(file)))
    for override in overrides:
        if "=" not in override or not override.split("=", 1)[0]:
            raise ConfigError(f"{override!r} is not of the form section.key=value, such as train.steps=1000")
    try:
        layers.append(OmegaConf.from_dotlist(list(overrides)))
        merged = OmegaConf.to_container(OmegaConf.merge(*layers), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"the configuration cannot be merged: {_summary(error)}") from error
    try:
        return Config.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def is_set(key: str, file: str | Path | None, overrides: Sequence[str]) -> bool:
    """Returns whether `file` or `overrides`, valid for `load_config`, set a key: otherwise it has its default."""
    layers = ([] if file is None else [_read(Path(file))]) + [OmegaConf.from_dotlist(list(overrides))]
    return OmegaConf.select(OmegaConf.merge(*layers), key) is not None


def to_yaml(config: Config) -> str:
    """Returns the whole configuration as YAML, which `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def read_yaml(file: Path) -> Any:
    """Reads the mapping in a YAML file by the rules of configurations: ``1e-4`` is a number, keys are unique.

    Raises:
        ConfigError: the file cannot be read or does not hold a mapping.
    """
    return OmegaConf.to_container(_read(file), resolve=True)


def _read(file: Path) -> DictConfig:
    try:
        tree = OmegaConf.load(file)
    except OSError as error:
        raise ConfigError(f"configuration file {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration file {file} is not valid YAML: {_summary(error)}") from error
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"configuration file {file} must hold sections (run:, data:, ...), not a list or a value")
    return tree


def _summary(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem}, line {error.problem_mark.line + 1}"
    return " ".join(str(error).split("\n")[:2]).strip()


def is_used(key: str, used: Collection[str]) -> bool:
    """Returns whether `used`, which holds keys and whole sections, covers a key."""
    return any(key == of or key.startswith(f"{of}.") for of in used)


def explain(error: ValidationError, root: type[BaseModel] = Config) -> str:
    """Describes why a mapping is not a valid `root`, one line per key."""
    lines: list[str] = []
    rules: dict[str, list[str]] = {}
    for problem in error.errors():
        location = _without_branches(problem["loc"], root)
        key = ".".join(str(part) for part in location)
        if problem["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
            known = _known_keys(location, root)
            close = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key {key}; {hint}")
        elif problem["type"] == "value_error":
            lines.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] in {"list_type", "tuple_type"}:
            inside = "" if problem["input"] is None else problem["input"]
            lines.append(f"{key}={problem['input']!r}: it takes a list; write '{key}=[{inside}]'")
        elif problem["type"] == "missing":
            lines.append(f"{key} is missing")
        else:  # each branch of a union reports its own
            rules.setdefault(f"{key}={problem['input']!r}", []).append(problem["msg"][0].lower() + problem["msg"][1:])
    return "\n".join(lines + [f"{what}: {', or '.join(broken)}" for what, broken in rules.items()])


def _without_branches(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[int | str, ...]:
    """Cuts `location` after a union field, because users do not know pydantic's names of its branches."""
    section: Any = root
    for number, part in enumerate(location, 1):
        section = _field_type(section, part)
        if get_origin(section) in {Union, UnionType}:
            return location[:number]
    return location


def sections_of(key: str) -> list[str]:
    """Returns the sections of the configuration that have a key of this name."""
    return [section for section in Config.model_fields if key in _known_keys((section, key), Config)]


def _known_keys(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    """Returns the keys of the section that holds the last part of `location`."""
    section: Any = root
    for part in location[:-1]:
        section = _field_type(section, part)
    if isinstance(section, type) and issubclass(section, BaseModel):
        return list(section.model_fields)
    if section is PrepareOptions:
        return [name for name in PrepareOptions.__dataclass_fields__ if not name.startswith("_")]
    return []


def _field_type(section: Any, name: int | str) -> Any:
    """Returns the type of a field of a section; None if there is no such field."""
    field = getattr(section, "model_fields", {}).get(name)
    return field.annotation if field else None
