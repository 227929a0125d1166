"""The exported model: a folder of four files with everything that inference needs, without pickle.

    config.json             format, schema version, digests, architecture, inference defaults, facts of the training
    model.safetensors       parameters and buffers
    reference.safetensors   rows of the embedding bank that serve as neighbours; absent if there are none
    README.md               model card

R reference rows, C width of the code.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor

from mmsa_dist import __version__
from mmsa_dist.config.schema import Config, Model
from mmsa_dist.embed.card import model_card
from mmsa_dist.model import MMSAModel
from mmsa_dist.runtime.files import flush
from mmsa_dist.structure.sources import NeighbourSource
from mmsa_shards.options import Standardization
from mmsa_shards.schema import SCHEMA_VERSION

FORMAT = 5
"""Version of the folder layout, of the architecture options in it and of what they mean."""

_OF_A_MODEL = {"format", "schema_version"}
"""Keys by which the configuration of a model is known, in every format."""

CONFIG, WEIGHTS, REFERENCE, CARD = "config.json", "model.safetensors", "reference.safetensors", "README.md"


class ModelFolderError(ValueError):
    """A folder cannot be used as a model; the message says which, why and what to do."""


class Inference(BaseModel):
    """What inference needs besides the weights; part of ``config.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: Model
    """Architecture: the section ``model`` of the configuration."""
    view: str
    """Default view."""
    picture_size: int = Field(ge=32)
    """Side length of the pictures in pixels."""
    standardization: Standardization
    """The standardization of the training shards."""
    conformer_seed: int
    conformer_timeout_s: float = Field(gt=0)

    @classmethod
    def of(cls, config: Config) -> Inference:
        """Returns the part of a run's configuration that is exported with its model."""
        return cls(
            model=config.model,
            view=config.embed.view,
            picture_size=config.data.picture_size,
            standardization=Standardization.from_options(config.prepare),
            conformer_seed=config.prepare.seed,
            conformer_timeout_s=config.prepare.conformer_timeout_s,
        )


@dataclass(frozen=True, eq=False)
class PretrainedModel:
    """A trained model with everything that inference needs; not modified after construction."""

    model: MMSAModel
    """In inference mode."""
    inference: Inference
    reference_RC: Tensor | None = None
    """(R, C) unified embeddings among which neighbours are searched; None = molecules have no neighbours."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    """Last value of each metric of the training, for the model card."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the training (data, losses, steps), for the model card."""
    license: str | None = None
    """Of the weights, for the model card; None if not stated."""
    _neighbours: dict[torch.device, NeighbourSource] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        code = self.inference.model.code
        if self.reference_RC is not None and (self.reference_RC.ndim != 2 or self.reference_RC.shape[1] != code):
            raise ValueError(
                f"reference rows of shape {tuple(self.reference_RC.shape)} do not fit model.code={code}; "
                "pass rows of unified embeddings, (R, code)"
            )
        self.model.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, object]) -> PretrainedModel:
        return self  # so that scikit-learn's clone() shares the weights

    def __repr__(self) -> str:
        return f"PretrainedModel({self.digest[:12]})"

    def model_on(self, device: torch.device) -> MMSAModel:
        """Returns the model, moved to `device` only if needed: visiting every module takes a millisecond."""
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return self.model

    def neighbours(self, device: torch.device) -> NeighbourSource:
        """Returns the neighbour source for molecules on `device`, built once per device."""
        if device not in self._neighbours:
            rows = None if self.reference_RC is None else self.reference_RC.to(device)
            self._neighbours[device] = self.model.reference(rows)
        return self._neighbours[device]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over weights, reference rows and `inference`: equal digests give equal vectors."""
        return _identity(self.inference, _hashes(self._files()))

    def _files(self) -> dict[str, bytes]:
        state = {name: t.detach().cpu().contiguous().clone() for name, t in self.model.state_dict().items()}
        files = {WEIGHTS: safetensors.torch.save(state)}
        if self.reference_RC is not None:
            files[REFERENCE] = safetensors.torch.save({"unified": self.reference_RC.detach().cpu().contiguous()})
        return files

    def save(self, folder: str | os.PathLike[str], *, license: str | None = None) -> Path:
        """Writes the model to `folder` atomically; replaces an older model there.

        Args:
            folder: of the model; a link is followed.
            license: of the weights, for the model card: a hub identifier such as ``apache-2.0``, or another name; None
                keeps the licence that the model was loaded with. Not part of the digest.

        Raises:
            ModelFolderError: `folder` exists and is not a model, holds more than one, or is the working folder.
            ValueError: `license` is empty.
        """
        folder = Path(folder).resolve()  # renaming would replace a link, not what it names
        if license is not None and not license.strip():
            raise ValueError("license is empty; pass a name such as 'apache-2.0', or leave it out")
        refuse_other_content(folder)
        files = self._files()
        about = {
            "format": FORMAT,
            "mmsa_dist": __version__,
            "schema_version": SCHEMA_VERSION,
            "digest": self.digest,
            "files": _hashes(files),
            "inference": self.inference.model_dump(mode="json"),
            "reference_molecules": 0 if self.reference_RC is None else len(self.reference_RC),
            "metrics": {
                name: value if value is not None and math.isfinite(value) else None
                for name, value in self.metrics.items()
            },
            "training": dict(self.training),
            "license": self.license if license is None else license,
        }
        files[CONFIG] = (json.dumps(about, indent=2, allow_nan=False) + "\n").encode()
        parameters = sum(p.numel() for p in self.model.parameters())
        files[CARD] = model_card(about, self.inference.model, parameters=parameters).encode()
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            for name, content in files.items():
                (temporary / name).write_bytes(content)
                flush(temporary / name)
            flush(temporary)
            _put_in_place(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush(folder.parent)
        return folder

    @classmethod
    def load(cls, folder_or_hub_id: str | os.PathLike[str]) -> PretrainedModel:
        """Reads and verifies a folder that `save` wrote.

        Args:
            folder_or_hub_id: a local folder, or ``organisation/name`` on the Hugging Face hub.

        Raises:
            ModelFolderError: not a model, or a damaged one, or one with another schema or format.
        """
        folder = _resolve(folder_or_hub_id)
        about = _read_config(folder)
        inference = _read_inference(folder, about)
        contents = {name: _read_verified(folder, name, sha256) for name, sha256 in about["files"].items()}
        model = _build(folder, inference)
        try:
            model.load_state_dict(safetensors.torch.load(contents[WEIGHTS]))
            reference = safetensors.torch.load(contents[REFERENCE])["unified"] if REFERENCE in contents else None
        except (RuntimeError, KeyError, SafetensorError) as error:
            raise ModelFolderError(
                f"{folder}: the weights do not fit the architecture in {CONFIG} ({_first_line(error)}); "
                "export the model again"
            ) from error
        return cls(model, inference, reference, about["metrics"], about["training"], about.get("license"))


def refuse_other_content(folder: Path) -> None:
    """Refuses a folder that `PretrainedModel.save` would take other content from by replacing it.

    Raises:
        ModelFolderError: `folder` exists and is not a model, holds more than one, or is the working folder.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is a file, so it is not a model folder; choose another name or remove it")
    names = sorted(path.name for path in folder.iterdir())
    if names and not _is_config_of_a_model(folder / CONFIG):
        raise ModelFolderError(
            f"{folder} is not a model folder: it holds {_some(names)}, and no {CONFIG} of an mmsa-dist model; choose "
            "another folder or remove it"
        )
    if others := [name for name in names if name not in (CONFIG, WEIGHTS, REFERENCE, CARD)]:
        raise ModelFolderError(
            f"{folder} holds more than a model ({_some(others)}), which writing a model there would delete; choose "
            "another folder or move that elsewhere"
        )
    if folder.samefile("."):  # it is replaced as a whole, so the process would be left in a deleted folder
        raise ModelFolderError(f"{folder} is the working folder, which cannot be replaced; name a folder in it")


def _is_config_of_a_model(file: Path) -> bool:
    """Returns whether `file` is the configuration of a model of any format."""
    try:
        about = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(about, dict) and about.keys() >= _OF_A_MODEL


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _identity(inference: Inference, hashes: Mapping[str, str]) -> str:
    about = {"inference": inference.model_dump(mode="json"), "files": dict(sorted(hashes.items()))}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _hashes(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Renames `temporary` to `folder`, moving an existing one aside: a non-empty folder cannot be replaced."""
    if not folder.exists():
        temporary.replace(folder)
        return
    former = folder.with_name(f".{folder.name}.{os.getpid()}.former")
    folder.replace(former)
    try:
        temporary.replace(folder)
    except BaseException:
        former.replace(folder)
        raise
    shutil.rmtree(former)


def _resolve(folder_or_hub_id: str | os.PathLike[str]) -> Path:
    folder = Path(folder_or_hub_id)
    if folder.exists():
        return folder
    name = os.fspath(folder_or_hub_id)
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ModelFolderError(f"model folder {name} does not exist; `mmsa pretrain` writes one to <run.dir>/model")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS, REFERENCE, CARD]))
    except (HTTPError, HFValidationError, OSError) as error:
        raise ModelFolderError(
            f"{name} is neither a folder here nor a model that could be fetched from the Hugging Face hub "
            f"({_first_line(error)})"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise ModelFolderError(
            f"{folder} is not a model: it lacks {CONFIG} or {WEIGHTS}; give the folder that `mmsa pretrain` "
            "exports, <run.dir>/model"
        )
    try:
        about = json.loads((folder / CONFIG).read_text())
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{folder / CONFIG} is not JSON ({error}); export the model again") from error
    if not isinstance(about, dict) or not about.keys() >= _OF_A_MODEL:
        raise ModelFolderError(f"{folder / CONFIG} is not the configuration of an mmsa-dist model")
    if about["format"] != FORMAT:
        raise ModelFolderError(
            f"{folder} has model format {about['format']!r}, written by mmsa-dist {about.get('mmsa_dist')}; "
            f"mmsa-dist {__version__} reads format {FORMAT}: {_other_version(about)}"
        )
    if about["schema_version"] != SCHEMA_VERSION:
        raise ModelFolderError(
            f"{folder} was trained on block schema {about['schema_version']!r}; mmsa-dist {__version__} makes "
            f"schema {SCHEMA_VERSION}: {_other_version(about)}"
        )
    for section in ("inference", "files", "metrics", "training"):
        if not isinstance(about.get(section), dict):
            raise ModelFolderError(f"{folder / CONFIG} lacks the section {section!r}; export the model again")
    if not isinstance(about.get("license", ""), str | None):
        raise ModelFolderError(f"{folder / CONFIG}: license={about['license']!r} is no name; write one in quotes")
    return about


def _other_version(about: Mapping[str, Any]) -> str:
    """Returns advice for a folder that this build of mmsa-dist cannot read."""
    if about.get("mmsa_dist") == __version__:
        return f"another build of {__version__} wrote it; install that one, or export the model again with this one"
    return f"install the version that wrote it ({about.get('mmsa_dist')})"


def _read_inference(folder: Path, about: dict[str, Any]) -> Inference:
    try:
        inference = Inference.model_validate_json(json.dumps(about["inference"]))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in ("inference", *problem["loc"]))
        raise ModelFolderError(
            f"{folder / CONFIG}: {key} is not usable ({problem['msg']}); it was written by mmsa-dist "
            f"{about.get('mmsa_dist')}, this is {__version__}"
        ) from error
    if about.get("digest") != _identity(inference, about["files"]):
        raise ModelFolderError(f"{folder / CONFIG} was changed after the export; export the model again")
    return inference


def _read_verified(folder: Path, name: str, sha256: str) -> bytes:
    if name not in (WEIGHTS, REFERENCE):
        raise ModelFolderError(f"{folder / CONFIG} names {name!r}, which is no file of a model")
    try:
        content = (folder / name).read_bytes()
    except OSError as error:
        raise ModelFolderError(f"{folder / name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ModelFolderError(f"{folder / name} is damaged: its SHA-256 differs from {CONFIG}; copy it again")
    return content


def _build(folder: Path, inference: Inference) -> MMSAModel:
    state = torch.get_rng_state()  # loading a model must not change the caller's random state
    try:
        return MMSAModel(inference.model)
    except ValueError as error:
        raise ModelFolderError(
            f"{folder}: {error}; import the module that registers the encoder before loading the model"
        ) from error
    finally:
        torch.set_rng_state(state)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
