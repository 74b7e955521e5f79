"What tests on the small random families share: clips of noise, a detector of mean colours, a plan that every family takes."

import torch

from vdmini.detectors import Detector
from vdmini.families import Family, clip_size
from vdmini.material import Material
from vdmini.plan import Plan

NAMES = ["a fox runs", "a crow flies", "rain", "snow"]
CUT = {"D": "D.1.R.1 D.1.A.1 U.2.R.1 U.2.A.1", "Mid": "Mid.A.0 Up.3.R.1", "DS": "DS.03 SS.39", "B": "B.07 B.29"}  # by first stage


def _mean(clips):
    return dict(clip=clips.mean((1, 3, 4)), frame=clips.mean((3, 4)))


MEAN = Detector("mean", "mean_distance", "distance of mean colours", 3, 2, _mean)


def material(family: Family, n: int = 3, motion: tuple[int, int] = (0, 0)) -> Material:
    "Clips of noise in eight bits, with captions."
    f, h, w = clip_size(family)
    clips = torch.randint(256, (n, f, 3, h, w), generator=torch.Generator().manual_seed(0)) / 255
    return Material(clips, torch.tensor([motion] * n), None, captions=NAMES[:n])


def small_cut(name: str) -> Plan:
    "A family without a few of its blocks."
    return Plan.dropping(name, *CUT[Plan.dropping(name).keep[0].split(".")[0]].split())
