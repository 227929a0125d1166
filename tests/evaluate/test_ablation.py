"""Arms of an ablation: what they differ in, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsa_dist.config.load import ConfigError
from mmsa_dist.evaluate.ablation import budget, read_arms

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
