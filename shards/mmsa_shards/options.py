"""Options of a preparation, and the subsets of them that determine how a molecule is processed.

The defaults and the reasons for them are in ``default.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

#: Whether InChIKeys are computed. A molecule without one is refused (`needed`) or kept without one (`wanted`).
Keys = Literal["needed", "wanted", "none"]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of a preparation; every field is a key ``prepare.<name>`` of the configuration."""

    # For pydantic, when this class is a section of the configuration: unknown keys are errors.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    workers: int
    """Number of Ray workers; 0 uses every core that Ray has."""
    shards: int
    """Number of training shards; 0 derives it from the number of molecules and `molecules_per_shard`."""
    molecules_per_shard: int
    molecules_per_block: int
    compression: Literal["zstd", "lz4", "none"]
    val_fraction: float
    """Fraction of the molecules for validation, chosen by InChIKey, in [0, 1)."""
    seed: int
    conformers: Literal["etkdg", "given", "none"]
    """`etkdg` embeds where the input has no 3D, `given` only uses 3D of the input, `none` drops it."""
    conformers_per_molecule: int
    conformer_timeout_s: float
    conformer_backend: Literal["rdkit", "nvmolkit"]
    """Embedding by RDKit on the CPU, or by nvMolKit on a GPU with RDKit for molecules that nvMolKit fails on."""
    mmff_iterations: int
    """Steps of MMFF94 minimization after embedding; 0 leaves the ETKDG geometry."""
    descriptors: bool
    """Whether blocks store RDKit's descriptors, which `loss.descriptor` requires."""
    max_atoms: int
    """Molecules with more heavy atoms are rejected with a reason."""
    groups: Literal["standardize", "keep"]
    """`standardize` disconnects metals, normalizes functional groups, and moves charges to the strongest acids."""
    salts: Literal["strip", "keep"]
    """`strip` keeps the largest fragment of a record, `keep` keeps all of them."""
    charges: Literal["neutralize", "keep"]
    tautomers: Literal["keep", "canonical"]
    isotopes: Literal["keep", "remove"]
    smiles_column: str
    """Column of CSV and Parquet inputs; if empty, the usual names are tried."""
    id_column: str
    exclude: tuple[str, ...]
    """Files, folders or patterns of molecules to exclude, matched by the first block of the InChIKey."""
    allow_truncated: bool
    """Accept an input that ends in mid-record or mid-gzip; it is still listed in the ledger."""
    work_dir: str
    """Folder for intermediate files, visible to all nodes; empty means ``.work`` in the output folder."""

    def __post_init__(self) -> None:
        rules = {
            "workers": (self.workers >= 0, "0 or more"),
            "shards": (self.shards >= 0, "0 or more"),
            "molecules_per_shard": (self.molecules_per_shard >= 1, "1 or more"),
            "molecules_per_block": (self.molecules_per_block >= 1, "1 or more"),
            "val_fraction": (0 <= self.val_fraction < 1, "in [0, 1)"),
            "conformers_per_molecule": (self.conformers_per_molecule >= 1, "1 or more"),
            "conformer_timeout_s": (self.conformer_timeout_s > 0, "above 0"),
            "mmff_iterations": (self.mmff_iterations >= 0, "0 or more"),
            "max_atoms": (1 <= self.max_atoms <= 65535, "in 1..65535 (atom numbers are stored as uint16)"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise ValueError(f"prepare.{name}={getattr(self, name)!r} must be {rule}")


@dataclass(frozen=True, kw_only=True)
class Standardization:
    """Options that determine the standardized parent of a molecule; fields as in `PrepareOptions`.

    Models store them, so that molecules to be embedded are standardized as the shards were.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    max_atoms: int
    groups: Literal["standardize", "keep"]
    salts: Literal["strip", "keep"]
    charges: Literal["neutralize", "keep"]
    tautomers: Literal["keep", "canonical"]
    isotopes: Literal["keep", "remove"]

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Standardization:
        """Returns those options of a preparation that standardization uses."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def as_drawn(self) -> Standardization:
        """Returns a copy that skips every step: a molecule is its own parent."""
        return replace(self, groups="keep", salts="keep", charges="keep", tautomers="keep", isotopes="keep")


@dataclass(frozen=True, kw_only=True)
class Conformers:
    """Options for the conformers of molecules."""

    mode: Literal["etkdg", "given", "none"]
    """See `PrepareOptions.conformers`."""
    count: int
    """Conformers per molecule."""
    seed: int
    timeout_s: float
    """CPU seconds after which a molecule is left without conformers."""
    backend: Literal["rdkit", "nvmolkit"] = "rdkit"
    """See `PrepareOptions.conformer_backend`."""
    mmff_iterations: int = 0
    """Steps of MMFF94 minimization after embedding."""

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Conformers:
        """Returns those options of a preparation that concern conformers."""
        return cls(
            mode=options.conformers,
            count=options.conformers_per_molecule,
            seed=options.seed,
            timeout_s=options.conformer_timeout_s,
            backend=options.conformer_backend,
            mmff_iterations=options.mmff_iterations,
        )


NO_CONFORMERS = Conformers(mode="none", count=0, seed=0, timeout_s=0.0)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns are computed besides those of atoms and bonds."""

    conformers: Conformers = NO_CONFORMERS
    depiction: bool = True
    """Whether a 2D layout is computed, which takes longer than all other columns together except conformers.
    Without it `xy` is empty, no picture can be drawn, and no molecule is refused for its layout."""
    descriptors: bool = False
    """Whether RDKit's descriptors are computed; otherwise `descriptors` is empty."""

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Columns:
        """Returns the columns that a preparation computes."""
        return cls(conformers=Conformers.from_options(options), descriptors=options.descriptors)


@dataclass(frozen=True, kw_only=True)
class SmilesOptions:
    """Options of `mmsa_shards.from_smiles.smiles_to_block`.

    Raises:
        ValueError: conformers are to be embedded without InChIKeys, from which their seeds are derived.
    """

    standardization: Standardization | None
    """As in a preparation. None uses the SMILES, which must parse, as given, and computes no InChIKeys."""
    keys: Keys = "needed"
    """Without conformers, InChIKeys take a third of the time."""
    columns: Columns = Columns()

    def __post_init__(self) -> None:
        if self.columns.conformers.mode == "etkdg" and self.keys == "none":
            raise ValueError(
                "conformers='etkdg' draws its seeds from InChIKeys: keys='none' would give other conformers"
            )
