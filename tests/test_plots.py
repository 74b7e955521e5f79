"Plots take tables as they come, in any order, and refuse what they cannot draw with one clear line."

import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from vdmini.core import BadInput
from vdmini.labels import place_labels
from vdmini.pictures import plot_clips, plot_frames
from vdmini.plots import METRICS, plot_cost, plot_drift, plot_factors, plot_importance

STAGES = ["D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3"]


def importance(level="stage", suffix="", seed=0):
    "Random importance of every metric, in shuffled order."
    g = np.random.default_rng(seed)
    rows = [
        dict(block=b, level=level, metric=m, value=v, lo=v - 0.01, hi=v + 0.02, n=16, seed=0)
        for m in METRICS
        for b, v in [("none", 0.5), *zip([s + suffix for s in STAGES], g.random(9))]
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=seed)


def cost(latency=1.0):
    "Random cost of the stages; None where nothing was timed."
    g = np.random.default_rng(0)
    rows = [
        dict(block=b, level="stage", params=int(g.integers(1e6)), flops=1e9, latency_ms=latency, peak_bytes=1)
        for b in STAGES + ["rest"]
    ]
    return pd.DataFrame(rows + [dict(block="total", level="total", params=10, flops=1e10, latency_ms=latency * 10, peak_bytes=1)])


ON_TABLE = [plot_importance, plot_drift, plot_factors]


@pytest.mark.parametrize("plot", ON_TABLE)
@pytest.mark.parametrize("level,suffix", [("stage", ""), ("layer", ".R.0"), ("sub", ".R.0.RB-S")])
def test_every_level_is_drawn(plot, level, suffix):
    table = importance(level, suffix)
    before = table.copy()
    assert isinstance(plot(table, level=level), go.Figure)
    pd.testing.assert_frame_equal(table, before)  # a plot changes nothing


@pytest.mark.parametrize("plot", [*ON_TABLE, lambda t, level: plot_cost(cost(), level)])
def test_unknown_level_names_the_nearest(plot):
    with pytest.raises(BadInput, match="'stages'; nearest: stage"):
        plot(importance(), level="stages")


def test_unknown_metric_names_the_nearest():
    with pytest.raises(BadInput, match="'tiny_fdv'; nearest: tiny_fvd"):
        plot_importance(importance(), "stage", "tiny_fdv")
    only = importance().query("metric == 'tiny_fvd'")
    for plot in plot_drift, plot_factors:
        with pytest.raises(BadInput, match="nearest: tiny_fvd"):
            plot(only, "stage")


def test_two_seeds_are_not_drawn_as_one():
    table = pd.concat([importance(), importance(seed=1).assign(seed=1)])
    with pytest.raises(BadInput, match="choose one seed"):
        plot_importance(table, "stage")


def test_heatmap_shows_values_in_order_and_says_which_distance():
    table = importance("layer", ".R.0")
    heat = plot_importance(table, "layer").data[0]
    values = table[table.metric == "tiny_fvd"].set_index("block").value
    assert list(heat.y) == STAGES
    np.testing.assert_allclose(np.ravel(heat.z), [values[s + ".R.0"] for s in STAGES])
    assert heat.colorbar.title.text == "tiny-FVD (not comparable to I3D FVD)"
    assert "unpruned model: 0.5" in plot_importance(table, "layer").layout.title.subtitle.text


def test_log_colours_keep_the_numbers():
    heat = plot_importance(importance(), "stage", log=True).data[0]
    np.testing.assert_allclose([float(t) for t in np.ravel(heat.text)], 10 ** np.ravel(heat.z).astype(float), rtol=1e-2)


def test_cost_without_time_shows_flops_and_says_so():
    timed, counted = plot_cost(cost(), "stage"), plot_cost(cost(math.nan), "stage")
    assert timed.layout.yaxis.title.text == "latency, ms" and "not measured" not in timed.layout.title.subtitle.text
    assert counted.layout.yaxis.title.text == "GFLOPs" and "time not measured" in counted.layout.title.subtitle.text


def test_no_two_labels_overlap():
    points = np.random.default_rng(0).random((76, 2))
    corners = place_labels(points, ["D.0.R.0.RB-S"] * 76)
    boxes = [
        (x * 900 + (-90 if "left" in c else 0), y * 420 + (-18 if "bottom" in c else 0))
        for (x, y), c in zip(points, corners)
        if c
    ]
    apart = [abs(a[0] - b[0]) >= 84 or abs(a[1] - b[1]) >= 14 for i, a in enumerate(boxes) for b in boxes[:i]]
    assert len(boxes) > 10 and all(apart)


def test_frames_keep_every_pixel():
    import base64
    import io

    from PIL import Image

    clips = {n: torch.rand(2, 3, 3, 5, 7) for n in ("unpruned", "D.0", "M")}
    for fig, rows, columns in (plot_frames(clips, 1), 2, 3), (plot_clips(clips, 1), 3, 3):
        picture = np.array(Image.open(io.BytesIO(base64.b64decode(fig.data[0].source.split(",")[1]))))
        assert picture.shape == (rows * 7 - 2, columns * 9 - 2, 4)
        np.testing.assert_array_equal(picture[:5, :7, :3], (clips["unpruned"][1, 0] * 255).round().byte().permute(1, 2, 0))


@pytest.mark.parametrize(
    "clips,said",
    [
        ({}, "no clips"),
        (dict(a=torch.rand(3, 3, 4, 4)), "expected b f c h w"),
        (dict(a=torch.rand(1, 2, 3, 4, 4), b=torch.rand(1, 3, 3, 4, 4)), "different shapes"),
    ],
)
def test_clips_that_cannot_be_shown(clips, said):
    for plot in plot_frames, plot_clips:
        with pytest.raises(BadInput, match=said):
            plot(clips)
