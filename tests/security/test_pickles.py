"""Malicious pickles and tags wherever a file is read: each would leave a trace if it ran, and none does.

Those in the place of a model's weights are in tests/embed/test_pretrained.py, those in a checkpoint in
tests/train/test_checkpoint.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pickle
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmsa_dist.config.load import ConfigError, load_config, read_yaml
from mmsa_dist.data.loader import BlockReader
from mmsa_dist.embed import Embedder, ModelFolderError, export_embeddings, read_embeddings
from mmsa_dist.embed.parquet import ExportError, read_part
from mmsa_dist.report.record import read_record
from mmsa_shards.block import decode_block
from mmsa_shards.errors import PrepareError
from mmsa_shards.folder import Folder
from mmsa_shards.manifest import Manifest
from mmsa_shards.options import PrepareOptions
from mmsa_shards.read import read_records
from mmsa_shards.shard import ShardError, read_block
from mmsa_shards.verify import verify_folder
from tests.fixtures.embedders import random_embedder


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.fixture
def trace(tmp_path: Path):
    """Where malice would leave its trace; at the end there must be none."""
    path = tmp_path / "trace"
    yield path
    assert not path.exists()


@pytest.fixture
def malice(trace: Path) -> bytes:
    payload = pickle.dumps(Malice(trace))
    pickle.loads(payload)  # noqa: S301  to see that it does work
    trace.rmdir()
    return payload


def pt_file(trace: Path, path: Path) -> None:
    torch.save({"weights": Malice(trace)}, path)
    torch.load(path, weights_only=False)  # to see that it does work
    trace.rmdir()


@pytest.mark.parametrize("name", ["model.pt", "pytorch_model.bin", "reference.pt", "model.pkl"])
def test_a_pt_file_beside_a_model_is_not_looked_at(trace, tmp_path, name):
    folder = tmp_path / "model"
    random_embedder().save_pretrained(folder)
    pt_file(trace, folder / name)
    digest = Embedder.from_pretrained(folder).digest
    assert digest == random_embedder().digest
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="lacks"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize("name", ["weights.pt", "drugs.pkl", "drugs.pkl.gz", "drugs.npy", "drugs.npz", "drugs.tar"])
def test_files_that_could_hold_pickles_are_no_inputs(malice, trace, tmp_path, name, options):
    (tmp_path / name).write_bytes(malice)
    with pytest.raises(PrepareError, match="of no kind that can be read"):
        list(read_records(str(tmp_path / name), options))


@pytest.mark.parametrize("kind", ["smi", "csv", "sdf", "mol", "parquet", "smi.gz", "csv.gz"])
def test_a_pickle_under_the_name_of_an_input_is_text_or_refused(malice, trace, tmp_path, kind, options):
    path = tmp_path / f"drugs.{kind}"
    path.write_bytes(malice)
    with contextlib.suppress(PrepareError):  # both are well: what matters is the trace
        list(read_records(str(path), options))


def test_a_pickle_in_the_tar_of_a_shard_is_named_and_never_read(malice, trace, tiny_shards):
    """`webdataset` itself would unpickle a member of this name when it decodes."""
    path = tiny_shards / "train-00000.tar"
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("train-00000-00000.pkl")
        info.size = len(malice)
        tar.addfile(info, io.BytesIO(malice))
    (fault,) = verify_folder(tiny_shards).faults
    assert "does not match its size and SHA-256" in fault
    reader = BlockReader(str(tiny_shards), "train")
    assert [len(reader.read(number)) for number in range(len(reader))] == [4] * 11


def in_place_of_a_block(shards: Path, content: bytes) -> Manifest:
    """Puts `content` where block 0 of the first shard lies, and has the manifest agree with it."""
    manifest = Manifest.load(shards)
    first = manifest.shards[0]
    with (shards / first.name).open("r+b") as file:
        file.seek(first.blocks[0].offset)
        file.write(content)
    entry = dataclasses.replace(first.blocks[0], size=len(content), crc32=zlib.crc32(content))
    shard = dataclasses.replace(first, blocks=(entry, *first.blocks[1:]))
    changed = dataclasses.replace(manifest, shards=(shard, *manifest.shards[1:]))
    changed.save(shards)
    return changed


def test_a_pickle_in_the_place_of_a_block_is_no_block(malice, trace, tiny_shards):
    manifest = in_place_of_a_block(tiny_shards, malice)
    with pytest.raises(ShardError, match="not a block, which is an Arrow IPC stream"):
        read_block(tiny_shards, manifest.shards[0], 0)


def object_array(malice: bytes) -> bytes:
    """An Arrow stream whose column says of itself that it is a pickled Python type, as old pyarrow wrote them."""
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": malice}
    schema = pa.schema([pa.field("id", pa.string(), metadata=metadata)])
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_batch(pa.record_batch([pa.array(["a"])], schema=schema))
    return sink.getvalue()


def test_arrow_with_a_pickled_type_is_no_block(malice, trace):
    with pytest.raises(ValueError, match="a block of schema version none"):
        decode_block(object_array(malice))


def test_parquet_with_a_pickled_type_gives_its_texts(malice, trace, tmp_path, options):
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": malice}
    schema = pa.schema([pa.field("smiles", pa.string(), metadata=metadata), pa.field("id", pa.string())])
    pq.write_table(pa.table({"smiles": ["CCO"], "id": ["a"]}, schema=schema), tmp_path / "in.parquet")
    (record,) = read_records(str(tmp_path / "in.parquet"), options)
    assert (record.id, record.structure.text) == ("a", "CCO")


@pytest.fixture
def vectors(tmp_path) -> Path:
    """A finished export of one part."""
    (tmp_path / "in.smi").write_text("CCO ethanol\n")
    export_embeddings(random_embedder(), tmp_path / "in.smi", tmp_path / "embeddings")
    assert read_embeddings(tmp_path / "embeddings").ids == ["ethanol"]
    return tmp_path / "embeddings"


def test_an_object_array_in_the_place_of_a_part_is_refused(trace, vectors):
    content = io.BytesIO()
    np.save(content, np.array([Malice(trace)], object), allow_pickle=True)
    np.load(io.BytesIO(content.getvalue()), allow_pickle=True)  # to see that it does work
    trace.rmdir()
    (vectors / "part-00000.parquet").write_bytes(content.getvalue())
    with pytest.raises(ValueError, match="Parquet magic bytes not found in footer"):
        read_embeddings(vectors)
    with pytest.raises(ExportError, match=r"part-00000\.parquet is not a part of an embedding export"):
        read_part(Folder(vectors), 0)
    assert "Parquet magic bytes" in read_record(vectors.parent).faults["embeddings"], "`mmsa report` says so"


def test_a_part_with_a_pickled_type_gives_its_rows(malice, trace, vectors):
    table = pq.read_table(vectors / "part-00000.parquet")
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": malice}
    fields = [field.with_metadata(metadata) for field in table.schema]
    changed = table.cast(pa.schema(fields, metadata=table.schema.metadata))
    pq.write_table(changed, vectors / "part-00000.parquet")
    assert pq.read_schema(vectors / "part-00000.parquet").field("embedding").metadata == metadata
    assert read_embeddings(vectors).ids == ["ethanol"]


TAGS = [
    '!!python/object/apply:os.mkdir ["{trace}"]',
    '!!python/object/new:os.mkdir ["{trace}"]',
    "!!python/name:os.mkdir",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
def test_tags_in_yaml_are_refused(trace, tmp_path, tag):
    text = tag.format(trace=trace)
    (tmp_path / "config.yaml").write_text(f"run:\n  dir: {text}\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_yaml(tmp_path / "config.yaml")  # as `mmsa ablate` reads its arms
    with pytest.raises(ConfigError):
        load_config(None, [f"run.dir={text}"])
    assert "configuration" in read_record(tmp_path).faults, "`mmsa report` says so"


def test_a_run_folder_of_pickles_is_all_faults(malice, tmp_path):
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "evaluation/results.json", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(malice + b"\n")
    assert set(read_record(tmp_path).faults) == {"configuration", "environment", "metrics", "evaluation", "model"}


@pytest.fixture
def options() -> PrepareOptions:
    return load_config().prepare
