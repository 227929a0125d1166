"""Signs of a collapse are said in words, once."""

from __future__ import annotations

import math

import pytest

from mmsa_dist.train.health import Health


@pytest.mark.parametrize(
    ("scalars", "words"),
    [
        ({"memory/anchor_entropy": 0.1}, "anchors collapse"),
        ({"memory/g_norm": 1e-5}, "embeddings vanish"),
        ({"memory/g_cosine": 0.99}, "become alike"),
        ({"valid/retrieval_at_1": 0.004, "valid/chance": 0.004}, "no better than chance"),
    ],
)
def test_each_sign_says_what_to_change(scalars: dict[str, float], words: str) -> None:
    (said,) = Health(quiet_steps=10).look(11, scalars)
    assert words in said
    assert "step 11" in said
    assert any(verb in said for verb in ("lower", "raise"))


def test_a_healthy_run_and_meters_that_were_not_taken_say_nothing() -> None:
    healthy = {
        "memory/anchor_entropy": 0.9,
        "memory/g_norm": 1.0,
        "memory/g_cosine": 0.3,
        "valid/retrieval_at_1": 0.5,
        "valid/chance": 0.004,
    }
    assert Health(quiet_steps=0).look(1, healthy) == []
    assert Health(quiet_steps=0).look(1, {}) == []
    assert Health(quiet_steps=0).look(1, {"memory/g_cosine": math.nan}) == []


def test_an_untrained_model_is_given_time() -> None:
    assert Health(quiet_steps=10).look(10, {"memory/g_cosine": 0.99}) == []


def test_a_sign_is_said_once_until_it_was_right_in_between() -> None:
    health = Health(quiet_steps=0)
    bad, good = {"memory/g_cosine": 0.99}, {"memory/g_cosine": 0.2}
    assert [len(health.look(step, scalars)) for step, scalars in enumerate([bad, bad, good, bad], 1)] == [1, 0, 0, 1]
