"The workbench for every family of the table: what it asks for, what it shows, what it measures, what it refuses."

from dataclasses import replace

import pytest
import torch
from small import MEAN, NAMES, material, small_cut

from vdmini.budget import recorded
from vdmini.core import BadInput
from vdmini.cost import cost
from vdmini.families import FAMILIES, clip_size
from vdmini.preview import Cancelled, preview
from vdmini.surgery import Plan, make_student
from vdmini.sweep import sweep
from vdmini.teachers import load_teacher, random_teacher
from vdmini.widgets import Workbench

pytestmark = pytest.mark.slow  # each family is swept and weighed
TINY = [name for name in FAMILIES if name.startswith("tiny-")]
PICTURES = {"frames", "clips"}  # fields of a request that have a size
each_tiny = pytest.mark.parametrize("name", TINY)


@pytest.fixture(scope="module")
def teacher():
    "A function: a family's teacher, always the same one, that takes one step where it takes any."
    made = {}

    def of(name):
        if name not in made:
            found = load_teacher(name) if FAMILIES[name].bundled else random_teacher(name)
            made[name] = found.sampled(steps=1) if "steps" in found.settings() else found
        return made[name]

    return of


def footage(family, n=2):
    return material(family, n, motion=(3, 1))


@pytest.fixture(scope="module")
def tables(teacher):
    "A function: importance of a family's stages, and the cost of all its blocks."
    made = {}

    def of(name):
        if name not in made:
            t = teacher(name)
            weighed = recorded("cost") if t.family.bundled else cost(t.network, t.inputs(), repeats=1, warmup=0)
            made[name] = sweep(t, footage(t.family), "stage", MEAN, progress=False), weighed
        return made[name]

    return of


@pytest.fixture(scope="module")
def fresh(teacher, tables, tmp_path_factory):
    "A function: a new workbench of a family, with its first clips."
    folder = tmp_path_factory.mktemp("plans")

    def of(name, **more):
        more = dict(material=footage(FAMILIES[name])) | more
        made = Workbench(teacher(name), *tables(name), plans=folder, detector=MEAN, **more)
        made.background.wait()
        return made

    return of


@pytest.fixture(scope="module")
def bench(fresh):
    "A function: the workbench of a family, always the same one, with nothing dropped."
    made = {}

    def of(name):
        it = made[name] = made.get(name) or fresh(name)
        it.history.set(Plan.dropping(name))
        it.background.wait()
        return it

    return of


def shown(bench) -> dict:
    return bench.clips.player._every


@each_tiny
def test_the_clips_are_those_of_teacher_and_student(name, bench):
    it = bench(name)
    request, seed, settings = it.clips.start.asked()
    whole = it.teacher.answer(request, seed, **settings)
    torch.testing.assert_close(shown(it)["whole model"], whole)
    assert torch.equal(shown(it)["this plan"], shown(it)["whole model"])

    plan = small_cut(name)
    it.history.set(plan)
    it.background.wait()
    student = replace(it.teacher, network=make_student(it.teacher.network, plan))
    torch.testing.assert_close(shown(it)["this plan"], student.answer(request, seed, **settings))
    assert not torch.equal(shown(it)["this plan"], shown(it)["whole model"])
    torch.testing.assert_close(shown(it)["whole model"], whole)
    assert it.clips.player.message == ""


@each_tiny
def test_a_plan_is_measured_as_the_sweep_measured(name, bench, tables):
    it = bench(name)
    it.measure(it.plan)
    it.background.wait()
    own = tables(name)[0].query("block == 'none' and metric == 'mean_distance'").value.iloc[0]
    assert it.figures.figure.data[2].y[0] == pytest.approx(own, rel=1e-3)
    assert ", measured <b>" in it.finder.said.value


@each_tiny
def test_the_controls_are_those_of_the_family(name, bench, teacher):
    start, family, own = bench(name).clips.start, FAMILIES[name], teacher(name).settings()
    assert tuple(start.parts) == family.sampler.takes
    numbers = [b.description for b in start.children if b not in start.parts.values()]
    sizes = [] if PICTURES & {*family.sampler.takes} else ["frames", "height", "width"]
    assert numbers == ["seed", *(k.replace("_", " ") for k in own), *sizes]
    assert start.asked()[2] == dict(size=clip_size(family)) | own


@each_tiny
def test_progress_ends_where_the_work_does_and_a_halt_leaves_no_trace(name, teacher):
    t, request, told = teacher(name), footage(FAMILIES[name], 1).request, []
    two = {k: 2 for k in t.settings() if k == "steps"}
    before = preview(t, None, request, 0, told.append, **two)[0]
    assert told == sorted(told) and told[-1] == 1 > told[-2]

    def halt(share):
        if share > 0.6:
            raise Cancelled

    with pytest.raises(Cancelled):
        preview(t, small_cut(name), request, 0, halt, **two)
    assert torch.equal(preview(t, None, request, 0, **two)[0], before)


@each_tiny
def test_the_papers_plan_is_on_offer_where_there_is_one(name, bench):
    it, there = bench(name), bool(FAMILIES[name].paper_drop)
    button = it.buttons["Paper's plan"]
    assert (button.disabled, "paper" in it.figures.table.value) == (not there, there)
    assert button.tooltip


@pytest.mark.parametrize("name", ["tiny-svd-vae", "tiny-wan-t2v"])
def test_without_material(name, fresh):
    it = fresh(name, material=None)
    spoken = "prompts" in FAMILIES[name].sampler.takes
    assert ("whole model" in shown(it)) == spoken
    assert ("name a folder of videos, or upload a file" in it.clips.player.message) == (not spoken)
    it.history.set(small_cut(name))
    it.background.wait()
    assert ("whole model" in shown(it)) == spoken
    it.finder.check.click()
    assert "material=folder_material(teacher, DIR)" in it.finder.said.value


def test_what_cannot_be_made_is_one_line_and_the_next_change_works(bench):
    it = bench("tiny-hunyuan-video")
    start, before = it.clips.start, shown(it)["this plan"]
    boxes = start.settings | start.sizes | dict(prompt=start.parts["prompts"].text)
    lines = {
        ("steps", 0): "steps 0; expected a whole number, at least 1",
        ("height", 30): "nearest: 9 frames of 32×48 pixels",
        ("frames", 8): "1 + a multiple of 4 frames",
        ("prompt", "  "): "the prompt is empty",
    }
    for (box, wrong), line in lines.items():
        right, boxes[box].value = boxes[box].value, wrong
        it.background.wait()
        assert line in it.clips.player.message and "\n" not in it.clips.player.message
        assert torch.equal(shown(it)["this plan"], before)
        boxes[box].value = right
        it.background.wait()
        assert it.clips.player.message == ""
    boxes["steps"].value = 2
    it.background.wait()
    assert not torch.equal(shown(it)["this plan"], before)
    boxes["steps"].value = 1


def test_a_caption_fills_the_prompt(bench):
    it = bench("tiny-wan-t2v")
    part, before = it.clips.start.parts["prompts"], shown(it)["whole model"]
    assert part.text.value == "a fox runs"
    part.captions.value = NAMES[1]
    it.background.wait()
    assert part.text.value == NAMES[1] and not torch.equal(shown(it)["whole model"], before)


def test_tables_that_do_not_reach(bench, tables, teacher, tmp_path):
    stages = bench("tiny-wan-t2v")
    stages.finder.find.click()
    assert "sweep with level layer" in stages.finder.said.value
    stages.history.set(Plan.dropping("tiny-wan-t2v", "B.03"))
    assert "no estimate" in stages.finder.said.value

    t = teacher("tiny-cogvideox-2b")
    counted = cost(t.network, t.inputs(), count_only=True)
    it = Workbench(t, tables("tiny-cogvideox-2b")[0], counted, plans=tmp_path)
    assert "latency" not in it.figures.table.value and "GFLOPs" in it.figures.figure.layout.xaxis.title.text
    assert "latency_ms" not in [v for _, v in it.measure_shown.options]
    with pytest.raises(BadInput, match="a cost table of .* parameters; tiny-cogvideox-2b has"):
        Workbench(t, tables("tiny-cogvideox-2b")[0], tables("tiny-wan-t2v")[1])


def test_a_metric_that_nothing_here_measures(bench, monkeypatch):
    it = bench("tiny-wan-t2v")
    monkeypatch.setattr(it, "detector", None)
    it.finder.check.click()
    assert "nothing here measures mean_distance" in it.finder.said.value


def test_other_clips_than_the_sweeps_are_said(fresh):
    real = footage(FAMILIES["tiny-svd-vae"])
    more = replace(real, clips=torch.cat([real.clips] * 2), motion=torch.cat([real.motion] * 2), captions=None)
    it = fresh("tiny-svd-vae", material=more)
    it.measure(it.plan)
    it.background.wait()
    assert "with 4 clips; the sweep had 2" in it.finder.said.value


def test_students_stand_beside_the_plan(fresh, teacher):
    network = make_student(teacher("tiny-cogvideox-2b").network, small_cut("tiny-cogvideox-2b"))
    it = fresh("tiny-cogvideox-2b", students={"tuned": network})
    assert [*shown(it)] == ["whole model", "this plan", "tuned"]
    assert not torch.equal(shown(it)["tuned"], shown(it)["whole model"])
