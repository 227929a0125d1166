"""Options of a preparation, and the parts of them that decide what becomes of a molecule.

The defaults and the reasons for them are in ``default.yaml``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

#: Whether InChIKeys are made. A molecule for which InChI has none is refused (`needed`) or kept without one (`wanted`).
Keys = Literal["needed", "wanted", "none"]


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Options of one preparation; every field is a key ``prepare.<name>`` of the configuration."""

    # Read by pydantic where this class is a section of the configuration: unknown keys are errors.
    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid"}

    workers: int
    """Ray workers at a time; 0 takes every core that Ray has."""
    shards: int
    """Training shards; 0 chooses from the number of molecules and `molecules_per_shard`."""
    molecules_per_shard: int
    molecules_per_block: int
    compression: Literal["zstd", "lz4", "none"]
    val_fraction: float
    """Share of molecules that go to the validation shard, chosen by InChIKey, in [0, 1)."""
    seed: int
    conformers: Literal["etkdg", "given", "none"]
    """`etkdg` embeds where the input has no 3D, `given` only takes what is there, `none` drops it."""
    conformers_per_molecule: int
    conformer_timeout_s: float
    conformer_backend: Literal["rdkit", "nvmolkit"]
    """What embeds: RDKit on the CPU, or nvMolKit on a GPU with RDKit for what it leaves."""
    mmff_iterations: int
    """Steps of MMFF94 minimization after embedding; 0 leaves the ETKDG geometry."""
    descriptors: bool
    """Whether blocks keep RDKit's descriptors, which `loss.descriptor` asks for."""
    max_atoms: int
    """Molecules with more heavy atoms are rejected with a reason."""
    groups: Literal["standardize", "keep"]
    """`standardize` takes metals off, draws functional groups in one form, and puts charges on the strongest acids."""
    salts: Literal["strip", "keep"]
    """`strip` keeps the largest fragment of a record, `keep` all of them."""
    charges: Literal["neutralize", "keep"]
    tautomers: Literal["keep", "canonical"]
    isotopes: Literal["keep", "remove"]
    smiles_column: str
    """Column of CSV and Parquet inputs; empty looks for the usual names."""
    id_column: str
    exclude: tuple[str, ...]
    """Files of molecules that must not enter (matched by the first block of the InChIKey), folders or patterns."""
    allow_truncated: bool
    """Accept an input that ends in mid-record or mid-gzip; it is still named in the ledger."""
    work_dir: str
    """Folder of what is under way, seen by all nodes; empty takes ``.work`` in the output folder."""

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
    """What decides the standardized parent of a molecule; fields as in `PrepareOptions`.

    Models carry it along, so that they standardize what they embed as their shards were.
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
        """The part of the options of a preparation that standardization reads."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    def as_drawn(self) -> Standardization:
        """The same with every step left out: a molecule is its own parent."""
        return replace(self, groups="keep", salts="keep", charges="keep", tautomers="keep", isotopes="keep")


@dataclass(frozen=True, kw_only=True)
class Conformers:
    """How molecules get conformers."""

    mode: Literal["etkdg", "given", "none"]
    """As `PrepareOptions.conformers`."""
    count: int
    """Conformers per molecule."""
    seed: int
    timeout_s: float
    """CPU seconds after which a molecule is left without conformers."""
    backend: Literal["rdkit", "nvmolkit"] = "rdkit"
    """As `PrepareOptions.conformer_backend`."""
    mmff_iterations: int = 0
    """Steps of MMFF94 minimization after embedding."""

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Conformers:
        """Returns what the options of a preparation say about conformers."""
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
    """Which columns of molecules are made besides those of atoms and bonds."""

    conformers: Conformers = NO_CONFORMERS
    depiction: bool = True
    """Whether molecules are laid out in the plane, which takes longer than all other columns together without
    conformers. Without it `xy` is empty, no picture can be drawn, and no molecule is refused for its layout."""
    descriptors: bool = False
    """Whether RDKit's descriptors are computed; otherwise `descriptors` is empty."""

    @classmethod
    def from_options(cls, options: PrepareOptions) -> Columns:
        """Returns the columns that a preparation makes."""
        return cls(conformers=Conformers.from_options(options), descriptors=options.descriptors)


@dataclass(frozen=True, kw_only=True)
class SmilesOptions:
    """What `mmsa_shards.from_smiles.smiles_to_block` does with SMILES.

    Raises:
        ValueError: conformers are to be embedded without InChIKeys, from which their seeds are drawn.
    """

    standardization: Standardization | None
    """As in a preparation. None takes the SMILES, which must parse, as they are given, and makes no InChIKeys."""
    keys: Keys = "needed"
    """InChIKeys take a third of the time if there are no conformers."""
    columns: Columns = Columns()

    def __post_init__(self) -> None:
        if self.columns.conformers.mode == "etkdg" and self.keys == "none":
            raise ValueError(
                "conformers='etkdg' draws its seeds from InChIKeys: keys='none' would give other conformers"
            )
