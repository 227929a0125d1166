"""The picture of results shows what the table says."""

from __future__ import annotations

import math

import pytest
from matplotlib import image

from mmsa_dist.evaluate import Results
from mmsa_dist.evaluate.plot import drawn, plot_results
from tests.evaluate.test_results import score


def test_there_is_a_picture_where_anything_is_defined(tmp_path):
    results = Results(tuple(score(t, f, 0.5 + 0.1 * s, s) for t in "abcd" for f in "xy" for s in (0, 1)))
    plot_results(results, tmp_path / "results.png")
    pixels = image.imread(tmp_path / "results.png")[..., :3]
    assert pixels.shape[1] > 1000
    assert 0.005 < (pixels.min(axis=2) < 0.9).mean() < 0.5, "there is something, and it is not a black sheet"
    plot_results(Results((score("a", "x", math.nan),)), tmp_path / "results.png")
    assert not (tmp_path / "results.png").exists(), "nothing is left of what stood there"


def test_every_seed_the_mean_and_the_spread_are_drawn():
    results = Results((
        *(score("a", "x", value, seed) for seed, value in enumerate((0.6, 0.7, 0.8))), score("a", "y", 0.75),
        *(score("r", "x", value, seed, metric="rmse") for seed, value in enumerate((1.0, 2.0))),
        *(score("r", "y", value, seed, metric="rmse") for seed, value in enumerate((1.5, math.nan))),
    ))  # fmt: skip
    figure = drawn(results)
    panels = {axis.get_title("left"): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["a", "r"]

    def rows(task: str) -> list[dict[str, object]]:
        """What stands in each row of a panel: dots, the line of the spread and the bar of the mean."""
        axis = panels[task]
        lines, dots = [line.get_xydata() for line in axis.lines], [dot.get_offsets() for dot in axis.collections]
        return [
            {
                "dots": dots[row][:, 0].tolist(),
                "spread": lines[2 * row][:, 0].tolist(),
                "at": lines[2 * row][:, 1].tolist(),
                "mean": lines[2 * row + 1][:, 0].tolist(),
                "said": axis.texts[row].get_text(),
            }
            for row in range(len(dots))
        ]

    assert rows("a") == [
        {
            "dots": pytest.approx([60, 70, 80]),
            "spread": pytest.approx([60, 80]),
            "at": [0, 0],
            "mean": pytest.approx([70, 70]),
            "said": "70.0",
        },
        {
            "dots": pytest.approx([75]),
            "spread": pytest.approx([75, 75]),
            "at": [1, 1],
            "mean": pytest.approx([75, 75]),
            "said": "75.0",
        },
    ]
    spread = math.sqrt(0.5)
    x, y = rows("r")
    assert (x["spread"], x["dots"], x["said"]) == (
        pytest.approx([1.5 - spread, 1.5 + spread]),
        pytest.approx([1, 2]),
        "1.500",
    )
    assert (y["spread"], y["dots"], y["said"]) == (pytest.approx([1.5, 1.5]), pytest.approx([1.5]), "1.500")


def test_what_the_marks_are_and_what_is_not_defined_is_said():
    results = Results(
        (
            *(score(task, "x", value, seed) for task in "ab" for seed, value in enumerate((0.6, 0.8))),
            *(score(task, "y", 0.5) for task in "ab"),
            score("c", "x", math.nan), score("c", "y", math.nan),
        ),
        about={"protocol": "probe"},
    )  # fmt: skip
    figure = drawn(results)
    words = figure.get_suptitle()
    assert words.startswith("protocol probe · random split · 2 seeds\n")
    assert "dot: a seed · bar and figure: mean over seeds · line: ± one standard deviation" in words
    panels = {axis.get_title("left"): axis for axis in figure.axes if axis.get_visible()}
    assert list(panels) == ["a", "b", "c", "mean of 2"]
    assert [text.get_text() for text in panels["c"].texts] == ["not defined", "not defined"]
    assert list(panels["c"].get_xticks()) == []
    mean = panels["mean of 2"]
    assert [text.get_text() for text in mean.texts] == ["70.0", "50.0"]
    assert mean.collections[0].get_offsets()[:, 0].tolist() == pytest.approx([60, 80])
