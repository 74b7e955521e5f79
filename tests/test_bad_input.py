"""Bad input: one clear line, exit code 2, nothing half-written."""

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vdmini.core import BadInput, samples, write_whole
from vdmini.demo import vdmini_generate
from vdmini.evaluate import vdmini_evaluate
from vdmini.material import world_material
from vdmini.surgery import Plan, ablated, make_student
from vdmini.sweep import sweep, vdmini_sweep
from vdmini.teacher import Teacher
from vdmini.teachers import load_teacher

BIN = Path(sys.executable).parent


def refused(*args: str) -> str:
    "Run a console script that must refuse; return its one line."
    done = subprocess.run([str(BIN / args[0]), *args[1:]], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith(args[0])]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


def test_unknown_model(tmp_path):
    assert "nearest: tiny-svd" in refused("vdmini_sweep", "tinysvd", "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_unknown_block(teacher):
    before = {k: v.clone() for k, v in teacher.network.state_dict().items()}
    with pytest.raises(BadInput, match=r"no block 'D\.0\.R\.9'; nearest: D\.0\.R\.[01]"):
        with ablated(teacher.network, "D.0.R.9"):
            pass
    assert all(torch.equal(v, before[k]) for k, v in teacher.network.state_dict().items())


def test_plan_for_another_family(tmp_path, teacher):
    Plan.paper("svd").save(tmp_path / "plan.json")
    assert "a plan for svd" in refused(
        "vdmini_prune", "tiny-svd", "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "s")
    )
    assert not (tmp_path / "s").exists()
    with pytest.raises(BadInput, match="a plan for svd"):
        make_student(teacher.network, Plan.paper("svd"))


def test_plan_with_unknown_blocks_or_none_at_all(tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(dict(family="tiny-svd", keep=["D.7"])))
    assert "no block of tiny-svd 'D.7'" in refused(
        "vdmini_prune", "tiny-svd", "--plan", str(tmp_path / "p.json"), "--out", str(tmp_path / "s")
    )
    (tmp_path / "p.json").write_text("{")
    assert "is no plan" in refused("vdmini_prune", "tiny-svd", "--plan", str(tmp_path / "p.json"), "--out", str(tmp_path / "s"))


def test_truncated_weights(tmp_path):
    folder = tmp_path / "unet"
    shutil.copytree(samples("tiny-svd", "unet"), folder)
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    assert "cannot be read" in refused("vdmini_generate", str(folder), "--out", str(tmp_path / "c.gif"))
    assert not (tmp_path / "c.gif").exists()


def test_too_few_clips(tmp_path, teacher):
    with pytest.raises(BadInput, match="20 clips are too few .* need 33"):
        sweep(teacher, world_material(20), "stage", progress=False)
    assert "too few" in refused("vdmini_sweep", "tiny-svd", "--videos", "20", "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name,args", [("vdmini_sweep", ["tiny-svd"]), ("vdmini_demo", []), ("vdmini_prune", ["tiny-svd"])])
def test_output_that_cannot_be_written(tmp_path, name, args):
    (tmp_path / "file").write_text("in the way")
    assert "cannot write" in refused(name, *args, "--out", str(tmp_path / "file" / "out"))
    assert (tmp_path / "file").read_text() == "in the way"


def test_data_without_clips(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "note.mp4").write_text("no film")
    refused("vdmini_sweep", "tiny-svd", "--data", str(tmp_path / "d"), "--out", str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    "run, args, message",
    [
        (vdmini_generate, dict(scale=-2), "scale -2; expected at least 1"),
        (vdmini_generate, dict(seed=2**63), "expected 0 to 4294967295"),
        (vdmini_generate, dict(seed=-1), "expected 0 to 4294967295"),
        (vdmini_generate, dict(image="{folder}"), "a folder; expected a file"),
        (vdmini_generate, dict(prompt="rain"), "tiny-svd takes no prompt; it takes frames and motion"),
        (vdmini_generate, dict(steps=3), "tiny-svd has no settings; steps came"),
        (vdmini_generate, dict(frames=0), "nearest: 1 frames of 32×32"),
        (vdmini_sweep, dict(videos=-1), "-1 clips; expected at least 1"),
        (vdmini_sweep, dict(level="layr"), "nearest: layer"),
        (vdmini_evaluate, dict(student="{folder}/none"), "there is no folder or file"),
    ],
)
def test_values_that_cannot_be(run, args, message, tmp_path, capsys):
    args = {k: v.format(folder=tmp_path) if isinstance(v, str) else v for k, v in args.items()}
    with pytest.raises(SystemExit) as e:
        run("tiny-svd", out=str(tmp_path / "made" / "for.gif"), **args)
    said = capsys.readouterr().err.splitlines()[-1]
    assert e.value.code == 2 and said.startswith(f"{run.__name__}: ") and message in said
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")])
def test_where_memory_ends(error, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(Teacher, "answer", full)
    with pytest.raises(SystemExit) as e:
        vdmini_generate("tiny-svd", out=str(tmp_path / "c.gif"))
    said = capsys.readouterr().err
    assert e.value.code == 1 and said.count("\n") == 1 and "out of memory" in said and "fewer frames" in said


def test_a_full_disk(tmp_path):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(BadInput, match="cannot write .*t.parquet: No space left on device"):
        with write_whole(tmp_path / "t.parquet") as path:
            path.write_text("half")
            full(path)
    assert not [*tmp_path.iterdir()]


def test_clips_are_not_made_for_nothing(tmp_path, monkeypatch, capsys):
    "Where a clip cannot be written is known before it is generated."
    monkeypatch.setattr(Teacher, "answer", None)
    (tmp_path / "taken.gif").mkdir()
    for out, message in ("clip.avi", "nearest: .gif"), ("taken.gif", "it is a folder"):
        with pytest.raises(SystemExit):
            vdmini_generate("tiny-svd", out=str(tmp_path / out))
        assert message in capsys.readouterr().err


def test_wrong_direction_and_frames(tmp_path, teacher):
    assert "nearest" in refused("vdmini_generate", "tiny-svd", "--direction", "NNE", "--out", str(tmp_path / "c.gif"))
    with pytest.raises(BadInput, match="8×8 pixels do not fit tiny-svd; nearest: 8 frames of 32×32"):
        teacher.generate(torch.rand(1, 3, 8, 8), torch.zeros(1, 2, dtype=torch.long))
