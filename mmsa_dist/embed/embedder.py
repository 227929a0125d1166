"""SMILES in, vectors out: a scikit-learn transformer around a pre-trained model.

n input rows, B molecules in a batch, D width of the vectors.

Numerics: inference runs in float32 with batch norm in inference mode, neighbours from the model's own reference
rows, and TF32 and cuDNN autotuning off, so that no vector depends on the other molecules of its batch. What remains is
the summation order of matrix products, which libraries change with the height of the matrix. On CPU the difference is
zero from about four molecules on, and up to 2e-6 for a single one; smaller batches are therefore padded to eight with
copies of their molecules. Measured over batch sizes 1 to 256: 1e-7 in g, 1e-6 in u and the codes, whose elements lie
in (-1, 1).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from torch import Tensor

from mmsa_dist.config.schema import Config
from mmsa_dist.data.collate import block_to_batch
from mmsa_dist.embed.ahead import ahead
from mmsa_dist.embed.column import rows_of
from mmsa_dist.embed.device import computing_side_by_side, device_of, exact_float32
from mmsa_dist.embed.memory import fitting_batch_size, is_out_of_memory
from mmsa_dist.embed.outcome import NO_MODALITY, NOT_FINITE, EmbeddedMolecules, EmbeddingError, InvalidMolecule
from mmsa_dist.embed.pretrained import Inference, PretrainedModel
from mmsa_dist.embed.reading import is_one_piece, options_of, read_ahead, readers_for
from mmsa_dist.encoders import Modality, modalities_of
from mmsa_dist.model import MMSAModel

_FEWEST = 8  # molecules per forward pass: see the numerics above

T = TypeVar("T")
R = TypeVar("R")


class Embedder(TransformerMixin, BaseEstimator):
    """Turns molecules into vectors with a pre-trained model.

    Each input row gives one output row: an invalid molecule becomes a row of NaN and an entry of `report_`. A vector
    depends on its molecule only, not on the batch or the order. Missing modalities are masked, never zero-filled.

    Args:
        model: folder that `mmsa pretrain` exported, a Hugging Face hub id, or a loaded `PretrainedModel`.
        view: ``structure`` (structure-aware embedding g), ``unified`` (u), or the name of an encoder (its code);
            None takes the model's default.
        conformers: ``none`` omits 3D, the slow part of reading SMILES; ``given`` uses the conformers stored in shards
            and rejects SMILES; ``etkdg`` generates one per SMILES, as preparation does. Vectors with and without 3D
            differ: compare only vectors made with the same option.
        pictures: whether pictures are drawn; without them only the graph (and the conformers) are read.
        on_error: handling of rows without a vector. ``nan`` keeps them as rows of NaN, ``raise`` raises
            `EmbeddingError`, ``drop`` omits them: `kept_` lists the remaining rows. Dropped rows no longer match the
            index of a pandas column, so pass a list if `set_output` is set to pandas.
        batch_size: molecules per forward pass; affects at most the last bits of a vector. ``auto`` takes what fits the
            memory of a GPU, and 128 on a CPU.
        device: torch device; None selects a GPU if there is one.
        readers: processes that read SMILES while the model computes; 0 = one per core, with one core left for a GPU.
        standardize: whether SMILES are standardized to parents as in the model's shards; otherwise they are taken as
            given: for SMILES that are already standardized, or if salts and charges matter.
        inchikeys: whether `embed` computes InChIKeys of SMILES, a third of RDKit's work; `transform` computes none.

    Attributes:
        report_: rows of the last `transform` without a vector, as `InvalidMolecule`.
        kept_: (m,) int64, rows of the last `transform` with a vector, ascending.

    Example:
        >>> embedder = Embedder.from_pretrained("runs/quickstart/model")  # doctest: +SKIP
        >>> embedder.transform(["CCO", "c1ccccc1O"]).shape  # doctest: +SKIP
        (2, 256)
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | PretrainedModel,
        *,
        view: str | None = None,
        conformers: Literal["none", "given", "etkdg"] = "none",
        pictures: bool = True,
        on_error: Literal["nan", "raise", "drop"] = "nan",
        batch_size: int | Literal["auto"] = 128,
        device: str | torch.device | None = None,
        readers: int = 0,
        standardize: bool = True,
        inchikeys: bool = False,
    ) -> None:
        self.model = model
        self.view = view
        self.conformers = conformers
        self.pictures = pictures
        self.on_error = on_error
        self.batch_size = batch_size
        self.device = device
        self.readers = readers
        self.standardize = standardize
        self.inchikeys = inchikeys

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | os.PathLike[str], **options: Any) -> Self:
        """Loads a model immediately and returns an embedder with `options` (see the class).

        Raises:
            ModelFolderError: not a model, or a damaged one, or one with another schema or format.
        """
        return cls(PretrainedModel.load(folder_or_hub_id), **options)

    @classmethod
    def from_model(
        cls,
        model: MMSAModel,
        config: Config,
        reference_rows: Tensor | None,
        metrics: Mapping[str, float] | None = None,
        *,
        data: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Wraps a freshly trained model and puts it into inference mode.

        Args:
            model: the model.
            config: configuration of its run.
            reference_rows: (R, code) unified embeddings that serve as neighbours; None if there are none.
            metrics: last values of the run's metrics, for the model card.
            data: facts of the pre-training molecules (number, manifest digest), for the model card.
            options: see the class.
        """
        training = {
            "data": dict(data or {}),
            "loss": config.loss.model_dump(mode="json"),
            "train": config.train.model_dump(mode="json"),
            "seed": config.run.seed,
        }
        return cls(PretrainedModel(model, Inference.of(config), reference_rows, metrics or {}, training), **options)

    def save_pretrained(self, folder: str | os.PathLike[str], *, license: str | None = None) -> None:
        """Writes safetensors, configuration and model card to `folder` atomically.

        Args:
            folder: of the model; replaces an older model there. A link is followed.
            license: of the weights, for the card: a hub identifier such as ``apache-2.0``, or another name; None keeps
                the licence that the model was loaded with.

        Raises:
            ModelFolderError: `folder` exists and is not a model, holds more than one, or is the working folder.
            ValueError: `license` is empty.
        """
        self.pretrained.save(folder, license=license)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Publishes the files of `save_pretrained` on the Hugging Face hub; returns the URL of the commit.

        Args:
            repo_id: ``organisation/name``; created if it does not exist.
            options: `private`, `token`, `commit_message`, `create_pr` and `license` of `mmsa_dist.embed.hub.publish`.

        Raises:
            HubError: the hub refuses or does not respond.
        """
        from mmsa_dist.embed.hub import publish  # here, so that embedding does not need the hub client

        return publish(self.pretrained, repo_id, **options)

    @property
    def pretrained(self) -> PretrainedModel:
        """The loaded model."""
        if isinstance(self.model, PretrainedModel):
            return self.model
        if getattr(self, "_loaded_from", None) != self.model:
            self._loaded, self._loaded_from = PretrainedModel.load(self.model), self.model
        return self._loaded

    @property
    def digest(self) -> str:
        """Digest of the model: vectors are comparable only if it and the view are equal."""
        return self.pretrained.digest

    @property
    def view_(self) -> str:
        """The view whose vectors are returned.

        Raises:
            ValueError: the model has no such view, or the modality that it reads is off.
        """
        model = self.pretrained.inference.model
        view = self.view or self.pretrained.inference.view
        if view not in model.views:
            raise ValueError(f"view={view!r} is not a view of this model; it has {', '.join(model.views)}")
        reads = modalities_of([view] if view in model.encoders else [])
        if "coordinates" in reads and self.conformers == "none":
            raise ValueError(f"view={view!r} reads conformers; pass conformers='etkdg' (or 'given', for shards)")
        if "picture" in reads and not self.pictures:
            raise ValueError(f"view={view!r} reads pictures; pass pictures=True")
        return view

    @property
    def width_(self) -> int:
        """Length D of a vector."""
        return self.pretrained.inference.model.view_width(self.view_)

    @property
    def batch_size_(self) -> int:
        """Molecules per forward pass: `batch_size`, or fewer after memory ran out."""
        if self.batch_size != "auto":
            chosen = self.batch_size
        else:
            device = device_of(self.device)
            key = self.pretrained, self.view_, self.conformers, self.pictures, device
            if getattr(self, "_chosen_for", None) != key:
                self._chosen, self._chosen_for = fitting_batch_size(device, self._infer), key
            chosen = self._chosen
        return min(chosen, getattr(self, "_most", chosen))

    def fit(self, X: object = None, y: object = None) -> Self:
        """Validates the options and loads the model; learns nothing from `X`."""
        self._check()
        return self

    def transform(self, X: Iterable[object]) -> NDArray[np.float32]:
        """Embeds molecules.

        Args:
            X: n SMILES: a list, a numpy array, or a column of pandas, polars or Arrow; None, NaN, non-text and
                SMILES that do not parse are invalid.

        Returns:
            (n, D) float32 in input order; NaN in the rows listed in `report_`. (m, D), the rows of `kept_`, if
            `on_error` is ``drop``.

        Raises:
            EmbeddingError: a row has no vector, and `on_error` is ``raise``.
            TypeError: `X` is one string, not a column, unordered, or a table of several columns.
        """
        result = self._read_and_embed(X, keyed=False)
        self.report_ = result.invalid
        self.kept_ = np.delete(np.arange(len(result.vectors)), [bad.row for bad in result.invalid])
        if result.invalid and self.on_error == "raise":
            first = result.invalid[0]
            raise EmbeddingError(
                f"{len(result.invalid)} of {len(result.vectors)} rows have no vector, the first of them row "
                f"{first.row} ({first.smiles!r}): {first.message}; on_error='nan' lets the others pass"
            )
        return result.vectors[self.kept_] if self.on_error == "drop" else result.vectors

    def embed(self, molecules: Iterable[object], progress: Callable[[int], None] | None = None) -> EmbeddedMolecules:
        """Embeds molecules and also returns what each was standardized to (see `transform`).

        Args:
            molecules: as in `transform`, or `mmsa_shards.read.Structure`; coordinates of molfiles are ignored.
            progress: called after each batch with the number of rows done.
        """
        return self._read_and_embed(molecules, progress, keyed=self.inchikeys)

    def _read_and_embed(
        self, molecules: Iterable[object], progress: Callable[[int], None] | None = None, *, keyed: bool
    ) -> EmbeddedMolecules:
        self._check()
        refuse_given_conformers(self.conformers, "SMILES")
        rows = rows_of(molecules)
        vectors = np.full((len(rows), self.width_), np.nan, dtype=np.float32)
        smiles: list[str | None] = [None] * len(rows)
        inchikeys: list[str | None] = [None] * len(rows)
        invalid = []
        start = 0
        options = options_of(
            self.pretrained.inference,
            standardize=self.standardize,
            embed_3d=self.conformers == "etkdg" and self._reads("coordinates"),
            depiction=self._pictures,
            inchikeys=keyed,
        )
        device = device_of(self.device)
        with self._computing(device, len(rows)) as number:
            reads = read_ahead(rows, options, batch_size=self.batch_size_, readers=readers_for(self.readers, device))
            # A vector's last bits depend on its batch, so batches are cut per read chunk, for any number of threads.
            within = number if is_one_piece(len(rows)) else 1
            for read, (of_block, without) in _side_by_side(
                lambda read: (read, self._embed(read.block, within)), reads, number if within == 1 else 1
            ):
                vectors[start + read.rows] = of_block
                names = (read.block[column].to_pylist() for column in ("smiles", "inchikey"))
                for row, text, key in zip(read.rows, *names, strict=True):
                    smiles[start + row], inchikeys[start + row] = text, (key or None) if keyed else None
                refused = read.refused | {int(read.rows[i]): why for i, why in without.items()}
                invalid += [
                    InvalidMolecule(start + row, rows[start + row], *why) for row, why in sorted(refused.items())
                ]
                start += len(read.rows) + len(read.refused)
                if progress is not None:
                    progress(start)
        return EmbeddedMolecules(vectors, tuple(smiles), tuple(inchikeys), tuple(invalid))

    def embed_block(
        self, block: pa.RecordBatch, progress: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float32], dict[int, tuple[str, str]]]:
        """Embeds the n molecules of one block, at most `batch_size` at a time.

        If memory runs out, the batch size is halved from then on.

        Args:
            block: columns of `mmsa_shards.schema.BLOCK_SCHEMA`; its conformers are used unless `conformers` is
                ``none``.
            progress: called after each batch with the number of molecules done.

        Returns:
            (n, D) float32; and for every NaN row its reason and message, `NO_MODALITY` or `NOT_FINITE`.

        Raises:
            RuntimeError: memory does not suffice for a single molecule.
        """
        self._check()
        with self._computing(device_of(self.device), block.num_rows) as number:
            return self._embed(block, number, progress)

    def _embed(
        self, block: pa.RecordBatch, number: int, progress: Callable[[int], None] | None = None
    ) -> tuple[NDArray[np.float32], dict[int, tuple[str, str]]]:
        vectors = np.full((block.num_rows, self.width_), np.nan, dtype=np.float32)
        seen = np.zeros(block.num_rows, dtype=bool)
        start = 0
        while start < block.num_rows:
            size = self.batch_size_
            batches = (block.slice(at, size) for at in range(start, block.num_rows, size))
            try:
                for of_batch, seen_in_it in _side_by_side(self._infer, batches, number):
                    part = slice(start, start + len(of_batch))
                    vectors[part], seen[part] = of_batch, seen_in_it
                    start = part.stop
                    if progress is not None:
                        progress(start)
            except RuntimeError as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._most = min(size // 2, self.batch_size_)  # another thread may have set it lower
        broken = seen & ~np.isfinite(vectors).all(axis=1)
        vectors[~seen | broken] = np.nan
        without = dict.fromkeys(np.flatnonzero(~seen).tolist(), NO_MODALITY)
        return vectors, without | dict.fromkeys(np.flatnonzero(broken).tolist(), NOT_FINITE)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Returns the names of the D columns, such as ``mmsa_structure_0``."""
        return np.array([f"mmsa_{self.view_}_{i}" for i in range(self.width_)], dtype=object)

    def __sklearn_is_fitted__(self) -> bool:
        return True  # nothing to fit, so a pipeline that ends here can transform immediately

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.no_validation = True  # scikit-learn validates numeric input only
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, False
        tags.input_tags.string = tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _check(self) -> None:
        choices = {
            "conformers": (self.conformers, ("none", "given", "etkdg")),
            "on_error": (self.on_error, ("nan", "raise", "drop")),
        }
        for name, (value, allowed) in choices.items():
            if value not in allowed:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(allowed)}")
        if self.batch_size != "auto" and not (isinstance(self.batch_size, Integral) and self.batch_size >= 1):
            raise ValueError(f"batch_size={self.batch_size!r} must be a whole number of 1 or more, or 'auto'")
        if not (isinstance(self.readers, Integral) and self.readers >= 0):
            raise ValueError(f"readers={self.readers!r} must be a whole number of 0 or more")
        device_of(self.device)
        _ = self.view_

    def _computing(self, device: torch.device, rows: int) -> AbstractContextManager[int]:
        """Yields the number of parallel batches, after initializing what the threads share."""
        self.pretrained.model_on(device)
        self.pretrained.neighbours(device)
        # A batch of pictures takes gigabytes, and its convolutions already use all threads.
        most = 1 if self._pictures else -(-rows // self.batch_size_)
        return computing_side_by_side(device, most)

    @property
    def _pictures(self) -> bool:
        return self.pictures and self._reads("picture")

    def _reads(self, modality: Modality) -> bool:
        """Returns whether an encoder that the view needs reads `modality`."""
        encoders = self.pretrained.inference.model.encoders
        return modality in modalities_of([self.view_] if self.view_ in encoders else encoders)

    def _infer(self, block: pa.RecordBatch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        pretrained = self.pretrained
        rows = block.num_rows
        if rows < _FEWEST:
            block = block.take(pa.array(np.arange(_FEWEST) % rows))
        batch = block_to_batch(block, picture_size=pretrained.inference.picture_size if self._pictures else None)
        if self.conformers == "none":
            batch = batch.without_conformers()
        device = device_of(self.device)
        with torch.inference_mode(), exact_float32(device):
            vectors, seen = pretrained.model_on(device).embed(
                batch.to(device), self.view_, pretrained.neighbours(device)
            )
        return vectors[:rows].float().cpu().numpy(), seen[:rows].cpu().numpy()


def refuse_given_conformers(conformers: str, source: object) -> None:
    """Checks the option `conformers` for molecules that are not in shards.

    Raises:
        ValueError: it is ``given``, and `source`, which the message names, has no conformers that could be used.
    """
    if conformers == "given":
        raise ValueError(
            f"conformers='given' takes those of shards, not of {source}; prepare the molecules first (`mmsa prepare`) "
            "and embed the shards, or pass conformers='etkdg' (embed.conformers=etkdg)"
        )


def _side_by_side(function: Callable[[T], R], items: Iterable[T], number: int) -> Iterator[R]:
    """Yields ``function(item)`` in the order of `items`, computed by `number` threads if more than one."""
    return ahead(function, items, number) if number > 1 else map(function, items)
