"""Students held against their teacher, by command; packed students that do not fit."""

import json
import subprocess
import sys

import pytest
import torch

from vdmini.core import BadInput, load_table, samples
from vdmini.evaluate import as_printed, evaluate, latencies, published, recovered
from vdmini.material import world_material
from vdmini.packed import bundled_student, unpack
from vdmini.surgery import Plan, make_student
from vdmini.teachers import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


def test_the_tuned_student_wins_back_what_cutting_cost(teacher):
    untuned = make_student(teacher.network, Plan.paper("tiny-svd"))
    table = evaluate(teacher, {"untuned": untuned, "tuned": bundled_student()}, world_material(40, 3), repeats=0)
    assert recovered(table, "untuned", "tuned") > 0.8
    drift = table[table.metric == "motion_drift"].set_index("model").value
    assert drift["teacher"] == 0 < drift["tuned"] < 0.3 < drift["untuned"]
    theirs = as_printed(table).loc["VDMini-I2V"]
    assert (theirs.fvd, theirs.latency_ms, theirs.params) == (198.13, 345, 940.9e6) and "A100" in theirs.measured


@pytest.mark.slow
def test_command_on_a_saved_student(teacher, tmp_path):
    make_student(teacher.network, Plan.paper("tiny-svd")).save_pretrained(tmp_path / "run" / "student")
    call = "from vdmini.evaluate import vdmini_evaluate as f; import sys; f(sys.argv[1], sys.argv[2], videos=36, out=sys.argv[3])"
    done = subprocess.run(
        [sys.executable, "-c", call, "tiny-svd", str(tmp_path / "run"), str(tmp_path / "o")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "0.0% of what cutting cost in tiny_fvd is won back" in done.stdout
    table, facts = load_table(tmp_path / "o" / "evaluation.parquet")
    assert set(table.model) == {"teacher", "cut, not tuned", "student"} and facts["detector"] == "tiny"


def test_refusals(teacher, tmp_path):
    with pytest.raises(BadInput, match="20 clips are too few"):
        evaluate(teacher, {}, world_material(20))
    with pytest.raises(BadInput, match="nearest: table2_i2v"):
        published("table2")
    with pytest.raises(BadInput, match="no model in this table 'tuned'"):
        recovered(evaluate(teacher, {"cut": teacher.network}, world_material(33), repeats=0), "cut", "tuned")


def test_packed_student_that_does_not_fit(teacher, tmp_path):
    for name in ("config.json", "change.safetensors"):
        (tmp_path / name).write_bytes(samples("tiny-vdmini", name).read_bytes())
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(facts | dict(family="svd")))
    with pytest.raises(BadInput, match="a student of svd, not of tiny-svd"):
        unpack(tmp_path, teacher.network)
    (tmp_path / "config.json").write_text(json.dumps(facts | dict(dropped=["M"])))
    with pytest.raises(BadInput, match="does not fit its teacher"):
        unpack(tmp_path, teacher.network)
    (tmp_path / "change.safetensors").write_bytes(b"cut off")
    with pytest.raises(BadInput, match="is no packed student"):
        unpack(tmp_path, teacher.network)


def test_networks_are_timed_in_turns():
    calls = []

    class Counted(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self):
            calls.append(self.name)

    assert set(latencies({n: Counted(n) for n in "ab"}, {}, repeats=2, warmup=1)) == {"a", "b"}
    assert calls == list("ababab")
