"""A tracker gets what the log gets; one that fails is let go with one line, and the run goes on."""

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vdmini.core import BadInput
from vdmini.recipe import TrainConfig
from vdmini.runs import read_log
from vdmini.surgery import Plan
from vdmini.teachers import load_teacher
from vdmini.trackers import Tracker
from vdmini.train import train


def scalars(folder, name) -> list[tuple[int, float]]:
    return [(e.step, e.value) for e in EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(name)]


def test_a_run_in_tensorboard_that_later_cannot_be_reached(tmp_path, capsys, monkeypatch):
    "The tracker is no part of what makes a run: it goes on with one that is not installed, and then without any."
    plan = Plan.dropping("tiny-svd", "D.0.R.1", "D.0.A.1", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3.R.1", "U.3.A.1")
    config, teacher = TrainConfig.paper("tiny-svd", steps=3, batch=1, clips=2, mca=0.0, save_every=1), load_teacher("tiny-svd")

    def interrupts(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, teacher, plan, tmp_path, callback=interrupts, progress=False, tracker="tensorboard")
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2]
    monkeypatch.setattr(TensorBoardTracker, "log", lambda *_, **__: 1 / 0)
    assert train(config, teacher, plan, tmp_path, progress=False, tracker="tensorboard") == tmp_path / "student"
    said = capsys.readouterr().err.splitlines()
    assert said == ["tensorboard takes no more numbers (ZeroDivisionError: division by zero); training goes on"]
    assert [row["step"] for row in read_log(tmp_path / "log.jsonl")] == [1, 2, 3]


def test_steps_that_a_run_repeats_stand_there_once(tmp_path):
    for done, upto in ((0, 4), (2, 5)):  # killed after step 4, its checkpoint is of step 2
        tracker = Tracker("tensorboard", tmp_path, {}, done)
        for step in range(done + 1, upto + 1):
            tracker(dict(step=step, loss=float(10 * done + step)))
        tracker.close()
    assert scalars(tmp_path, "loss") == [(1, 1), (2, 2), (3, 23), (4, 24), (5, 25)]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
def test_a_tracker_that_cannot_start_says_so_once(name, tmp_path, capsys):
    "W&B is not installed here; where TensorBoard would write there is a file."
    (tmp_path / "tensorboard").touch()
    tracker = Tracker(name, tmp_path, dict(config=dict(lr=1.0)))
    for step in (1, 2):
        tracker(dict(step=step, loss=1.0))
    tracker.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith(f"{name} takes no more numbers (") and said[0].endswith("training goes on")


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no tracker 'tensorbord'; nearest: tensorboard"):
        train(
            TrainConfig.paper("tiny-svd"),
            load_teacher("tiny-svd"),
            Plan.paper("tiny-svd"),
            tmp_path / "run",
            tracker="tensorbord",
        )
    assert not (tmp_path / "run").exists()
