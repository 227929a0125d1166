"""How results were made: what a stranger has to know to make them again."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.runtime.run_folder import environment

if TYPE_CHECKING:
    from mmsa_dist.embed.pretrained import PretrainedModel
    from mmsa_dist.evaluate.protocols import Protocol

_DIGITS = 12
"""Of a digest, where a person reads it."""


def judged(
    protocol: Protocol, models: Mapping[str, PretrainedModel], config: Config, checkpoint: str | None = None
) -> dict[str, Any]:
    """What is judged, and how, for ``results.json``.

    Args:
        protocol: what is done with the models.
        models: by name, as `mmsa_dist.evaluate.protocols.methods_of` takes them.
        config: likewise.
        checkpoint: where the one model came from, as it was given.
    """
    settings = _settings(protocol, config, bare=not models)
    published = _settings(protocol, load_config(), bare=not models)
    return {
        "protocol": protocol,
        "checkpoint": checkpoint,
        "models": {name: model.digest for name, model in models.items()},
        "settings": settings,
        "settings_of_the_protocol": {key: value for key, value in published.items() if settings[key] != value},
    }


def surroundings() -> dict[str, Any]:
    """Libraries, command line, git state, machine and device of this process."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    device = {"gpu": gpu, "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    return environment() | {"device": device}


def in_words(about: Mapping[str, Any], tasks: Mapping[str, str]) -> list[str]:
    """What stands under a table: protocol, split, seeds and digests.

    Args:
        about: as `judged` has it, with ``split`` and ``seeds``; what is not there is not said.
        tasks: digests of the data, by name.
    """
    how = [f"{key} {about[key]}" for key in ("protocol", "split") if key in about]
    if "seeds" in about:
        how.append(f"seeds {', '.join(map(str, about['seeds']))}")
    given = f" ({about['checkpoint']})" if about.get("checkpoint") else ""
    models = [f"{name} {digest[:_DIGITS]}{given}" for name, digest in about.get("models", {}).items()]
    data = [f"{name} {digest[:_DIGITS]}" for name, digest in tasks.items()]
    digests = [f"{what} {', '.join(of)}" for what, of in (("models", models), ("data", data)) if of]
    return [words for words in ("; ".join(how), "; ".join(digests)) if how and words]


def departures(about: Mapping[str, Any]) -> list[str]:
    """A sentence on the settings that are not the protocol's own, where there are any."""
    own = about.get("settings_of_the_protocol", {})
    others = [f"{key}={about['settings'][key]} and not {value}" for key, value in own.items()]
    return [f"not the protocol's own settings: {', '.join(others)}"] if others else []


def _settings(protocol: Protocol, config: Config, *, bare: bool) -> dict[str, Any]:
    """The settings that the results depend on, by key; `bare` = no model brings its architecture."""
    sections: dict[str, BaseModel] = {"finetune": config.finetune} if protocol == "finetune" else {}
    if bare:
        sections |= {"model.gin": config.model.gin} if protocol == "finetune" else {"model": config.model}
    found = {key: value for name, section in sections.items() for key, value in _flat(name, section)}
    if protocol == "probe":
        embed = config.embed
        found |= {"embed.view": embed.view, "embed.conformers": embed.conformers, "embed.batch_size": embed.batch_size}
        found["run.seed"] = config.run.seed  # of the weights without pre-training
    return found


def _flat(name: str, section: BaseModel) -> Iterator[tuple[str, Any]]:
    for key, value in section.model_dump(mode="json").items():
        part = getattr(section, key)
        if isinstance(part, BaseModel):
            yield from _flat(f"{name}.{key}", part)
        else:
            yield f"{name}.{key}", value


def _processor() -> str:
    """The name of the processor, where the machine tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
