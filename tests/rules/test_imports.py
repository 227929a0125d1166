"""Which module may import which (docs/architecture.md), read from the code; every allowance is used."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Layers of mmsa_dist, the lowest first. A part imports from lower layers, and from its own folder.
FLOORS = (
    ("config", "runtime"),
    ("data", "encoders", "fusion", "structure", "losses"),
    ("model", "objective"),
    ("train", "embed"),
    ("evaluate", "report"),
    ("cli", "console", "__main__"),
)
#: Imports within a layer, as (importing part, imported part).
SIDEWAYS = {
    ("__main__", "cli"),
    ("encoders", "data"),
    ("losses", "encoders"),
    ("losses", "data"),
    ("objective", "model"),
    ("train", "embed"),
    ("report", "evaluate"),
    ("cli", "console"),
}
#: What any module of mmsa_dist may import of mmsa_shards, and what only single files may.
SHARDS_FOR_MMSA_DIST = {
    *("atomic", "schema", "options", "errors", "manifest", "changes", "shard", "verify", "read", "block"),
    *("from_smiles", "folder", "lock"),
}
STAGES_OF_FILES = {
    "mmsa_dist/evaluate/side_by_side.py": {"cluster"},
    "mmsa_dist/embed/side_by_side.py": {"cluster"},
    "mmsa_dist/cli/prepare.py": {"prepare", "repair", "workplace"},
    "mmsa_dist/cli/download.py": {"pubchem"},
}
#: Heavy packages and the files that import them; webdataset is for tests and benchmarks.
OWNERS = {
    "ray": {"shards/mmsa_shards/cluster.py"},
    "deepspeed": {"mmsa_dist/train/engine.py", "mmsa_dist/train/engine_files.py"},
    "faiss": {"mmsa_dist/structure/neighbours.py", "mmsa_dist/embed/vector_index.py"},
    "triton": {
        "kernels/mmsa_kernels/hyperedge_memory/attention_kernels.py",
        "kernels/mmsa_kernels/hyperedge_memory/gather_kernels.py",
        "kernels/mmsa_kernels/hyperedge_memory/launch.py",
        "kernels/mmsa_kernels/hyperedge_memory/pieces.py",
        "kernels/mmsa_kernels/hyperedge_memory/transpose_kernels.py",
    },
    "requests": {"shards/mmsa_shards/download_sources.py"},
    "tenacity": {"shards/mmsa_shards/download_patience.py"},
    "cv2": {"mmsa_dist/data/pictures.py"},
    "torch_geometric": {"mmsa_dist/encoders/comenet.py"},
    "webdataset": set(),
}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for room in ("mmsa_dist", "shards/mmsa_shards", "kernels/mmsa_kernels"):
        for file in sorted((ROOT / room).rglob("*.py")):
            yield str(file.relative_to(ROOT)), ast.parse(file.read_text())


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield f"{node.module}"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(part: str) -> int:
    found = [number for number, parts in enumerate(FLOORS) if part in parts]
    assert found, f"mmsa_dist.{part} is in no layer; add it to one in FLOORS"
    return found[0]


def importing_part(file: str) -> str:
    """The part of mmsa_dist that a file belongs to."""
    return Path(file).relative_to("mmsa_dist").parts[0].removesuffix(".py")


def imported_part(name: str) -> str:
    """``embed`` of ``mmsa_dist.embed.npy``; empty for the package itself."""
    return name.partition(".")[2].split(".")[0]


@pytest.mark.parametrize(("file", "tree"), [pytest.param(f, t, id=f) for f, t in sources()])
def test_imports_go_down(file: str, tree: ast.Module) -> None:
    for name in imports(tree):
        package, part = name.split(".")[0], imported_part(name)
        if file.startswith("shards/"):
            assert package not in {"mmsa_dist", "mmsa_kernels", "torch"}, f"{file} imports {name}"
        elif file.startswith("kernels/"):
            assert package not in {"mmsa_dist", "mmsa_shards"}, f"{file} imports {name}"
        elif package == "mmsa_shards" and part:
            allowed = SHARDS_FOR_MMSA_DIST | STAGES_OF_FILES.get(file, set())
            assert part in allowed, f"{file} imports {name}"
        elif package == "mmsa_dist" and part and part != "__version__":
            mine = importing_part(file)
            if mine == "__init__" or mine == part:
                continue
            below = floor(part) < floor(mine) or (mine, part) in SIDEWAYS
            assert below, f"{file} (layer {floor(mine)}) imports {name} (layer {floor(part)})"


def test_no_two_parts_of_a_layer_import_each_other() -> None:
    assert {(imported, importing) for importing, imported in SIDEWAYS} & SIDEWAYS == set()


def test_every_allowance_is_used() -> None:
    of_dist = [
        (file, name.split(".")[0], imported_part(name))
        for file, tree in sources()
        if file.startswith("mmsa_dist/")
        for name in imports(tree)
    ]
    used = {(importing_part(file), part) for file, package, part in of_dist if package == "mmsa_dist"}
    assert used >= SIDEWAYS
    parts = {importing_part(file) for file, _ in sources() if file.startswith("mmsa_dist/")}
    assert parts - {"__init__"} == {part for layer in FLOORS for part in layer}
    assert {part for _, package, part in of_dist if package == "mmsa_shards"} >= SHARDS_FOR_MMSA_DIST
    for owner, allowed in STAGES_OF_FILES.items():
        assert {part for file, package, part in of_dist if file == owner and package == "mmsa_shards"} >= allowed
        assert not allowed & SHARDS_FOR_MMSA_DIST, f"{owner} needs no leave for what all may import"


@pytest.mark.parametrize("package", OWNERS)
def test_heavy_packages_are_imported_by_their_owners_alone(package: str) -> None:
    users = {file for file, tree in sources() if any(name.split(".")[0] == package for name in imports(tree))}
    assert users == OWNERS[package]


def test_rooms_are_not_packages() -> None:
    assert not [room for room in ("kernels", "shards", "launch") if (ROOT / room / "__init__.py").exists()]


def test_launch_files_are_short() -> None:
    assert all(len(file.read_text().splitlines()) <= 40 for file in (ROOT / "launch").glob("*.py"))
