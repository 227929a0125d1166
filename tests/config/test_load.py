"""The configuration refuses what it does not know, in words that mend it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmsa_dist.config.load import DEFAULT_FILE, ConfigError, is_set, load_config, to_yaml

CONFIGS = Path(__file__).resolve().parents[2] / "launch" / "configs"


def test_the_defaults_are_whole() -> None:
    config = load_config()
    assert config.model.gin.layers == 5
    assert config.train.lr_scale == {"comenet": 0.1, "resnet": 0.1}
    assert config.shards_dir == "runs/default/shards"


def test_the_launch_folder_shows_the_one_default_file() -> None:
    assert (CONFIGS / "default.yaml").resolve() == DEFAULT_FILE.resolve()


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_file_loads(file: Path) -> None:
    load_config(file)


def test_every_key_of_the_default_file_is_explained() -> None:
    unexplained = [
        line
        for line in DEFAULT_FILE.read_text().splitlines()
        if line.startswith("  ") and ":" in line and "#" not in line and not line.rstrip().endswith(":")
    ]
    # The name says all of these.
    assert {line.split(":")[0].strip() for line in unexplained} <= {
        "conformers_per_molecule",
        "encoders",
        "gin",
        "resnet",
    }


def test_what_is_printed_reads_back_to_the_same(tmp_path: Path) -> None:
    config = load_config(None, ["train.steps=7", "train.warmup_steps=0", "prepare.exclude=[a.csv,b.csv]"])
    (tmp_path / "printed.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "printed.yaml") == config


def test_later_layers_win(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"train": {"steps": 5000}, "run": {"seed": 3}}))
    config = load_config(tmp_path / "mine.yaml", ["run.seed=4", "train.lr=1e-3"])
    assert (config.train.steps, config.run.seed, config.train.lr) == (5000, 4, 0.001)


def test_what_is_set_is_told_from_what_is_a_default(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("train: {steps: 5}\nembed:\n")
    layers = tmp_path / "mine.yaml", ["run.seed=4", "embed.pictures=false"]
    keys = ("train.steps", "run.seed", "embed.pictures", "embed.view", "train.lr", "data.lanes")
    assert [is_set(key, *layers) for key in keys] == [True, True, True, False, False, False]
    assert not is_set("train.steps", None, [])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.stepz=3", ["unknown key train.stepz", "did you mean 'steps'"]),
        ("prepare.conformer=none", ["unknown key prepare.conformer", "did you mean 'conformers'"]),
        ("colour.red=1", ["unknown key colour", "run, prepare, data"]),
        ("train.steps=abc", ["train.steps='abc'", "valid integer"]),
        ("train.steps=1.5", ["train.steps=1.5", "integer"]),
        ("train.zero_stage=5", ["train.zero_stage=5", "0, 1, 2 or 3"]),
        ("prepare.val_fraction=1.5", ["prepare.val_fraction=1.5", "[0, 1)"]),
        ("data.batch_size=100", ["data.batch_size=100", "data.lanes=64", "change one"]),
        ("train.accumulate=3", ["data.batch_size=512", "train.accumulate × data.lanes", "192"]),
        ("train.warmup_steps=100000", ["train.warmup_steps=100000", "train.steps=100000"]),
        ("model.structure.refresh_lag=200", ["refresh_lag=200", "less than model.structure.refresh_every=200"]),
        ("train.stop_after=100001", ["train.stop_after=100001", "train.steps"]),
        ("embed.view=smiles", ["embed.view='smiles'", "structure, unified, gin"]),
        ("prepare.exclude=x.smi", ["prepare.exclude='x.smi': it takes a list; write 'prepare.exclude=[x.smi]'"]),
        ("model.encoders=[gin,gin]", ["model.encoders", "twice"]),
        ("train.lr_scale.resnte=0.1", ["train.lr_scale", "resnte"]),
        ("train.steps", ["train.steps", "section.key=value"]),
        (
            "embed.batch_size=0",
            ["embed.batch_size=0: input should be greater than or equal to 1, or input should be 'auto'"],
        ),
        ("train.compile=[gni]", ["train.compile=['gni']", "model.encoders=['gin', 'comenet', 'resnet']", "leave"]),
        (
            "train.compile=[gin] train.zero_stage=3",
            ["train.compile=['gin']", "train.zero_stage of 0 to 2", "train.compile=[]"],
        ),
        (
            "train.compile=[gin] train.activation_checkpointing=true",
            ["train.compile=['gin']", "train.activation_checkpointing=false", "turn one of the two off"],
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(setting: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, setting.split())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "sections"), ("a: [", "not valid YAML"), ("!!python/object:os.system {}", "YAML")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_config(tmp_path / "bad.yaml")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        load_config("nowhere.yaml")


def test_nothing_heavy_is_imported_to_check_a_configuration() -> None:
    code = (
        "import sys; from mmsa_dist.config.load import load_config; load_config(); "
        "print([m for m in ('torch', 'rdkit', 'ray', 'deepspeed', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_env())
    assert done.stdout.strip() == "[]"


def _env() -> dict[str, str]:
    import os

    root = Path(__file__).resolve().parents[2]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(root / room) for room in (".", "kernels", "shards")),
    }


def test_every_view_has_its_width() -> None:
    model = load_config().model
    assert {view: model.view_width(view) for view in model.views} == {
        "structure": 256,
        "unified": 512,
        "gin": 512,
        "comenet": 512,
        "resnet": 512,
    }
