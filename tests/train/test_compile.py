"""`train.compile` changes no loss beyond rounding and no name, compiles once for all sizes, and resumes exactly."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from mmsa_dist.config.load import load_config
from mmsa_dist.data.loader import BlockReader, Loader
from mmsa_dist.model import MMSAModel
from mmsa_dist.train.compiling import compile_encoders
from mmsa_dist.train.loop import loader_options
from mmsa_dist.train.validate import validate
from tests.fixtures.pretraining import MINI, SMALL, different, losses, pretrain


def test_a_compiled_encoder_is_the_same_encoder_for_all_sizes_of_batches(tiny_shards: Path) -> None:
    words = [
        "model.encoders=[gin]",
        "train.lr_scale={}",
        "model.gin.layers=1",
        "model.gin.dropout=0",  # ours for CPUs is not for compilers
        "model.gin.pool=mean_max",
        "model.gin.atoms=ogb",
        "train.compile=[gin]",
    ]
    config = load_config(MINI, words)
    torch._dynamo.reset()
    counters.clear()
    reader = BlockReader(str(tiny_shards), "train")
    batches = list(islice(Loader(reader, loader_options(config)), 5))
    assert len({len(batch.atoms_A9) for batch in batches}) == 5
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = MMSAModel(config.model).train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        if compiled:
            compile_encoders(model, config, batches[0])
            torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
            assert counters["stats"]["unique_graphs"] == 1
        for batch in batches:
            model.zero_grad()
            vectors = model.encoder("gin")(batch)
            vectors.square().mean().backward()
            gradients = [p.grad.clone() for p in model.encoder("gin").parameters() if p.grad is not None]
            found.append((vectors.detach(), gradients))
    for plain, compiled in zip(found[:5], found[5:], strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1, "no size compiled anew"
    validate(model, BlockReader(str(tiny_shards), "val"), config, torch.device("cpu"))
    assert counters["stats"]["unique_graphs"] == 1, "validation compiles nothing"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(900)
def test_a_compiled_run_loses_the_same_and_resumes_exactly(
    make_tiny_shards: Callable[[Path], Path], tmp_path: Path
) -> None:
    shards = make_tiny_shards(tmp_path)
    plainly = (*SMALL, "model.gin.norm=layer", "model.gin.dropout=0")
    words = (*plainly, "train.compile=[gin,comenet]")
    runs = {
        "plain": [plainly],
        "compiled": [words],
        "resumed": [(*words, "train.stop_after=5"), (*words, "--resume")],
    }
    for name, legs in runs.items():
        for leg in legs:
            done = pretrain(tmp_path / name, shards, *leg)
            assert done.returncode == 0, done.stdout + done.stderr
    plain, compiled = (torch.tensor(losses(tmp_path / name)) for name in ("plain", "compiled"))
    # Later the choice of neighbours magnifies rounding.
    torch.testing.assert_close(compiled[:4], plain[:4], rtol=1e-4, atol=0)
    torch.testing.assert_close(compiled, plain, rtol=0.05, atol=0)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "compiled")
    assert different(tmp_path / "resumed", tmp_path / "compiled") == []
