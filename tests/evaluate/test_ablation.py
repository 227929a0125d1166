"""Arms of an ablation: what they differ in, and what is refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mmsa_dist.config.load import ConfigError
from mmsa_dist.evaluate import ablation
from mmsa_dist.evaluate.ablation import budget, pretrain_arms, read_arms

SHIPPED = Path(__file__).resolve().parents[2] / "launch" / "ablation.yaml"


def written(folder: Path, text: str) -> Path:
    (folder / "arms.yaml").write_text(text)
    return folder / "arms.yaml"


def test_the_arms_that_are_shipped_build_on_each_other(tmp_path):
    arms = read_arms(SHIPPED, tmp_path, None, ["data.shards=shards", "train.steps=1000", "train.warmup_steps=10"])
    configs = [arm.config for arm in arms]
    assert [arm.name for arm in arms] == [
        "2D+3D", "+ image", "+ reconstruction", "+ memory", "+ hypergraph of the batch",
        "+ hypergraph of all molecules", "+ substructures",
    ]  # fmt: skip
    assert [config.model.encoders for config in configs] == [("gin", "comenet"), *[("gin", "comenet", "resnet")] * 6]
    assert [config.loss.reconstruct > 0 for config in configs] == [False, False, True, True, True, True, True]
    assert [config.loss.memory > 0 for config in configs] == [False, False, False, True, True, True, True]
    assert [config.loss.fingerprint > 0 for config in configs] == [*[False] * 6, True]
    assert [config.model.structure.neighbours for config in configs] == [*["none"] * 4, "batch", "global", "global"]
    assert [config.embed.view for config in configs] == [*["unified"] * 3, *["structure"] * 4]
    assert len({config.run.dir for config in configs}) == 7
    assert budget(arms) == {"shards": "shards", "steps": 1000, "batch_size": 512, "seed": 0}


def test_arms_that_do_not_build_on_each_other(tmp_path):
    file = written(tmp_path, "cumulative: false\narms: {a: {loss.memory: 0.0}, b: {loss.temperature: 0.2}}")
    a, b = read_arms(file, tmp_path, None, [])
    assert (a.config.loss.memory, b.config.loss.memory) == (0, 0.5)
    assert (a.config.loss.temperature, b.config.loss.temperature) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arms: {a: {}}", "is not a file of arms like launch/ablation.yaml: cumulative is missing"),
        ("cumulative: true\narms: {}", "is not a file of arms like launch/ablation.yaml: arms={}: "),
        ("cumulative: [", "is not valid YAML"),
        (
            "cumulative: true\narms: {a: {loss.memmory: 1.0}}",
            "arm 'a': unknown key loss.memmory; did you mean 'memory'",
        ),
        ("cumulative: true\narms: {+ a: {}, a: {}}", "the arm 'a' needs a unique name"),
        ("cumulative: true\narms: {a: {}, a: {}}", "found duplicate key a"),
        ("cumulative: true\narms: {No pre-training: {}}", "other than no-pre-training, jobs, splits"),
        ("cumulative: true\narms: {a: {finetune.lr: 0.1}}", "arm 'a': finetune.lr is not a setting of an arm"),
        ("cumulative: true\narms: {a: {run.dir: x}}", "arm 'a': run.dir is not a setting of an arm"),
        (
            "cumulative: true\narms: {a: {train.stop_after: 5}}",
            "arm 'a': train.stop_after=5 would stop before there is a",
        ),
        ("cumulative: true\narms: {++: {}}", "needs a unique name of letters and digits"),
    ],
)
def test_what_cannot_be_used_is_said(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        read_arms(written(tmp_path, text), tmp_path, None, [])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_arms(tmp_path / "no.yaml", tmp_path, None, [])


def test_values_and_folders_are_taken_as_they_are_meant(tmp_path):
    file = written(tmp_path, "cumulative: true\narms: {a: {train.lr: 1e-4}, b: {}}")
    arms = read_arms(file, tmp_path / "try #1: two", None, [])
    assert arms[0].config.train.lr == 1e-4
    assert [arm.folder.root for arm in arms] == [tmp_path / "try #1: two" / name for name in "ab"]


def test_arms_must_be_given_the_same(tmp_path):
    file = written(tmp_path, "cumulative: true\narms: {a: {}, b: {train.steps: 5, train.warmup_steps: 1}}")
    with pytest.raises(ValueError, match=r"the arm 'b' has .*'steps': 5.* give all arms the same"):
        budget(read_arms(file, tmp_path, None, ["data.shards=s"]))
    same = written(tmp_path, "cumulative: true\narms: {a: {}}")
    with pytest.raises(ValueError, match=r"set data\.shards=FOLDER"):
        budget(read_arms(same, tmp_path, None, []))


def pretend(monkeypatch, status=0):
    """Replaces the process that pre-trains by one that ends at once; returns the commands it was given."""
    commands = []

    def run(command, env):
        commands.append(command)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(ablation.subprocess, "run", run)
    return commands


def test_an_arm_that_was_stopped_is_not_taken_for_a_trained_one(tmp_path, monkeypatch):
    arms = read_arms(written(tmp_path, "cumulative: true\narms: {a: {}, b: {}}"), tmp_path / "out", None, [])
    commands = pretend(monkeypatch)
    with pytest.raises(ValueError, match="pre-training of 'a' was stopped before its last step; repeat the command"):
        pretrain_arms(arms, 1, print)
    assert len(commands) == 1, "b did not start"


def test_what_does_not_change_the_model_may_change_when_the_command_is_repeated(tmp_path, monkeypatch):
    file = written(tmp_path, "cumulative: true\narms: {a: {}}")
    monkeypatch.chdir(tmp_path)
    commands = pretend(monkeypatch, status=9)

    def start(out, *settings):
        with pytest.raises(ValueError, match=r"ended with status 9|holds an arm") as raised:
            pretrain_arms(read_arms(file, out, None, ["data.shards=s", *settings]), 1, print)
        return str(raised.value)

    assert "status 9" in start(tmp_path / "out")
    same = ("data.workers=7", "train.log_every=3", "embed.batch_size=5", "finetune.epochs=2", "train.valid_every=9")
    assert "status 9" in start(Path("out"), *same, f"data.shards={tmp_path}/s")
    assert len(commands) == 2
    assert start(Path("out"), "train.lr=0.5", "data.shards=t", "embed.view=unified") == (
        f"out/a holds an arm 'a' with data.shards='{tmp_path}/s', now '{tmp_path}/t', embed.view='structure', now "
        "'unified', train.lr=0.001, now 0.5; choose another --out, or remove it"
    )
    assert len(commands) == 2, "nothing was started"
