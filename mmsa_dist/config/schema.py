"""The types of the configuration and the relations between its keys.

Defaults, units and meanings are in ``default.yaml`` only; no field here has a default. Only pydantic is imported, so
that a wrong key is refused before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from mmsa_shards.options import PrepareOptions

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Run(Section):
    """The run folder and its seed."""

    dir: Annotated[str, Field(min_length=1)]
    seed: Count


class Data(Section):
    """Reading shards into batches."""

    shards: str
    batch_size: Positive
    lanes: Positive
    window_blocks: Positive
    workers: Count
    picture_size: Annotated[int, Field(ge=32, le=1024)]
    augment: bool

    @model_validator(mode="after")
    def _lanes_divide_the_batch(self) -> Data:
        if self.batch_size % self.lanes:
            raise ValueError(
                f"data.batch_size={self.batch_size} must be a multiple of data.lanes={self.lanes}, because every "
                "lane contributes the same number of molecules to a batch; change one of the two"
            )
        return self


class EncoderOptions(Section):
    """Options of an encoder of this package; those of other encoders are under ``model.custom``."""


class Gin(EncoderOptions):
    """Options of the 2D encoder."""

    layers: Positive
    width: Positive
    dropout: Share
    norm: Literal["batch", "layer"]
    pool: Literal["mean", "mean_max"]
    atoms: Literal["hu", "ogb"]


class Comenet(EncoderOptions):
    """Options of the 3D encoder."""

    layers: Positive
    hidden: Positive
    middle: Positive
    radial: Positive
    spherical: Positive
    cutoff: Above0


class Resnet(EncoderOptions):
    """Options of the image encoder."""

    layers: Literal[18, 34]
    channels: Positive
    norm: Literal["batch", "group"]


class Structure(Section):
    """Hypergraph over molecules and memory anchors."""

    neighbours: Literal["global", "batch", "none"]
    k: Positive
    hyperedges: Literal["batch", "own"]
    width: Positive
    anchors: Positive
    similarity: Literal["cosine", "dot"]
    temperature: Above0
    normalization: Literal["random_walk", "symmetric"]
    bandwidth: NonNegative
    refresh_every: Positive
    refresh_lag: Count
    index: Literal["auto", "flat", "ivf", "ivfpq"]
    recall_sample: Positive
    recall_target: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _a_refresh_ends_before_the_next(self) -> Structure:
        if self.refresh_lag >= self.refresh_every:
            raise ValueError(
                f"model.structure.refresh_lag={self.refresh_lag} must be less than "
                f"model.structure.refresh_every={self.refresh_every}; change one of the two"
            )
        return self


class Model(Section):
    """Encoders, common space and structure."""

    encoders: Annotated[tuple[str, ...], Field(min_length=1)]
    gin: Gin
    comenet: Comenet
    resnet: Resnet
    custom: dict[str, dict[str, Any]]
    projection: Positive
    code: Positive
    structure: Structure

    @model_validator(mode="after")
    def _encoders_are_distinct(self) -> Model:
        if len(set(self.encoders)) != len(self.encoders):
            raise ValueError(f"model.encoders={list(self.encoders)} names an encoder twice; name each once")
        return self

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the model's vectors: structure-aware, unified, and the code of each encoder."""
        return ("structure", "unified", *self.encoders)

    def view_width(self, view: str) -> int:
        """Returns the width of the vectors of `view`."""
        return self.structure.width if view == "structure" else self.code

    def encoder_options(self, name: str) -> dict[str, Any]:
        """Returns the keyword arguments of the encoder `name`."""
        section = getattr(self, name, None)
        return section.model_dump() if isinstance(section, EncoderOptions) else dict(self.custom.get(name, {}))


class Loss(Section):
    """Weights and options of the losses."""

    contrast: NonNegative
    reconstruct: NonNegative
    memory: NonNegative
    atom: NonNegative
    fingerprint: NonNegative
    descriptor: NonNegative
    temperature: Above0
    mask_rate: Annotated[float, Field(gt=0, lt=1)]
    fingerprint_bits: Positive


class Train(Section):
    """Optimization, checkpoints and logging."""

    steps: Positive
    stop_after: Count
    save_every: Positive
    keep: Positive
    log_every: Positive
    valid_every: Positive
    valid_molecules: Positive
    valid_batch_size: Positive
    lr: Above0
    lr_scale: dict[str, Above0]
    weight_decay: NonNegative
    warmup_steps: Count
    clip: NonNegative
    accumulate: Positive
    precision: Literal["fp32", "bf16"]
    zero_stage: Literal[0, 1, 2, 3]
    activation_checkpointing: bool
    compile: tuple[str, ...]
    max_bad_steps: Positive
    lost_after_s: Annotated[float, Field(ge=1)]

    @model_validator(mode="after")
    def _schedule_fits(self) -> Train:
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"train.warmup_steps={self.warmup_steps} must be below train.steps={self.steps}; "
                "lower the warm-up or train longer"
            )
        if self.stop_after > self.steps:
            raise ValueError(f"train.stop_after={self.stop_after} exceeds train.steps={self.steps}; 0 runs to the end")
        return self


class Embed(Section):
    """Vectors for downstream use."""

    view: str
    conformers: Literal["none", "given", "etkdg"]
    pictures: bool
    batch_size: Positive | Literal["auto"]
    readers: Count
    standardize: bool
    inchikeys: bool
    reference_molecules: Count
    dtype: Literal["float16", "float32"]


class Finetune(Section):
    """Fine-tuning of the 2D encoder on a labelled task."""

    epochs: Positive
    batch_size: Annotated[int, Field(ge=2)]
    lr: Above0
    encoder_lr_scale: NonNegative
    weight_decay: NonNegative
    dropout: Share


class Config(Section):
    """The whole configuration of a run."""

    run: Run
    prepare: PrepareOptions
    data: Data
    model: Model
    loss: Loss
    train: Train
    embed: Embed
    finetune: Finetune

    @model_validator(mode="after")
    def _sections_fit(self) -> Config:
        micro = self.train.accumulate * self.data.lanes
        if self.data.batch_size % micro:
            raise ValueError(
                f"data.batch_size={self.data.batch_size} must be a multiple of train.accumulate × data.lanes = "
                f"{self.train.accumulate} × {self.data.lanes} = {micro}; change one of the three"
            )
        if self.train.zero_stage == 3 and self.train.activation_checkpointing and self.loss.atom > 0:
            raise ValueError(
                "train.activation_checkpointing at train.zero_stage=3 needs loss.atom=0, because DeepSpeed cannot "
                "run two backward passes through one module there; change one of the three"
            )
        self._compiled_encoders_fit()
        if self.embed.view not in self.model.views:
            raise ValueError(f"embed.view={self.embed.view!r} must be one of {', '.join(self.model.views)}")
        ours = {name for name, section in self.model if isinstance(section, EncoderOptions)}
        if strangers := set(self.train.lr_scale) - ours - set(self.model.encoders):
            raise ValueError(
                f"train.lr_scale names {sorted(strangers)}, which are not encoders; known: {list(self.model.encoders)}"
            )
        return self

    def _compiled_encoders_fit(self) -> None:
        compiled, train = list(self.train.compile), self.train
        if not compiled:
            return
        if missing := set(compiled) - set(self.model.encoders):
            raise ValueError(
                f"train.compile={compiled} names {sorted(missing)}, which are not among model.encoders="
                f"{list(self.model.encoders)}; leave them out"
            )
        if train.zero_stage == 3:
            raise ValueError(
                f"train.compile={compiled} needs train.zero_stage of 0 to 2, because at stage 3 DeepSpeed gathers "
                "parameters inside the compiled code; set train.compile=[] or another stage"
            )
        if train.activation_checkpointing:
            raise ValueError(
                f"train.compile={compiled} needs train.activation_checkpointing=false, because compiled code "
                "decides by itself what it recomputes; turn one of the two off"
            )

    @property
    def shards_dir(self) -> str:
        """Folder of the shards: `data.shards`, or ``<run.dir>/shards``."""
        return self.data.shards or f"{self.run.dir}/shards"
