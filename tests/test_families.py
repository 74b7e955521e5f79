"Every family through the same functions: counts at full size, a bypass that leaves no trace, students, one clear line."

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from vdmini.blockmap import places
from vdmini.blocks import blocks, levels_of, prunable
from vdmini.budget import Budget, find_plan
from vdmini.core import BadInput, load_table
from vdmini.cost import cost, summands, vdmini_cost
from vdmini.export import vdmini_prune
from vdmini.families import FAMILIES, clip_size, family_of, network_inputs, skeleton
from vdmini.plan import Plan, ablated
from vdmini.plots import execution_order
from vdmini.surgery import dropped_from, make_student, network_class
from vdmini.teachers import load_network, random_teacher

BIN = Path(sys.executable).parent
FULL = {  # parameters
    "svd": 1_524_623_082,
    "t2v-turbo-v2": 1_413_653_060,
    "svd-vae": 63_579_183,
    "hunyuan-video": 12_821_012_544,
    "wan-t2v": 1_418_996_800,
    "cogvideox-2b": 1_693_783_872,
}
STUDENTS = {"svd": 939_884_186, "t2v-turbo-v2": 817_019_780, "hunyuan-video": 8_403_260_480}
CLIPS = {  # frames, height, width
    "svd": (14, 576, 1024),
    "t2v-turbo-v2": (16, 320, 512),
    "svd-vae": (14, 576, 1024),
    "hunyuan-video": (129, 720, 1280),
    "wan-t2v": (81, 480, 832),
    "cogvideox-2b": (49, 480, 720),
}
TINY = [name for name in FAMILIES if name.startswith("tiny-")]
LEFT_OUT = {
    "tiny-svd": "D.1.R.1 D.1.A.1 U.2.R.1 U.2.A.1 M",
    "tiny-svd-clip": "D.1.R.1 D.1.A.1 U.2.R.1 U.2.A.1 M",
    "tiny-t2v-turbo-v2": "D.0.R.0 D.0.A.0 D.0.R.1.RB-S U.3.R.2 U.3.A.2 M U.1.R.0.RB-T",
    "tiny-svd-vae": "Mid.A.0 Mid.R.1 Up.1.R.2.RB-T Up.2.R.0 Up.3.R.1",
    "tiny-hunyuan-video": "DS.03 DS.04 SS.00 SS.39",
    "tiny-wan-t2v": "B.00 B.07 B.29",
    "tiny-cogvideox-2b": "B.00 B.07 B.29",
}

UNETS = [name for name in TINY if FAMILIES[name].layout.skips]
HALVES = "D.0.A.0 D.1.R.0 D.2.R.1.RB-S D.3.R.0.RB-T M.A.0 M.R.1.RB-S U.0.R.1.RB-S U.1.A.2.AB-S U.2.R.0 U.3.A.1.AB-T"

each_tiny = pytest.mark.parametrize("name", TINY)
each_unet = pytest.mark.parametrize("name", UNETS)


def count(network):
    return sum(p.numel() for p in prunable(network).parameters())


def output(network, family):
    with torch.no_grad():
        out = prunable(network)(**network_inputs(family))
    return getattr(out, "sample", out)


def awake(network):
    "A network in which every block does something: weights that begin at zero, as those of temporal convolutions, do not."
    for p in network.parameters():
        if p.ndim > 1 and not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return network


@pytest.fixture(scope="module")
def tiny():
    "A function: the random network of a family, always the same one."
    made = {}

    def network(name):
        torch.manual_seed(0)
        family = FAMILIES[name]
        if name not in made:
            made[name] = awake(family.network_class(**family.config)).eval().requires_grad_(False)
        return made[name]

    return network


@pytest.fixture
def folder(tiny, tmp_path):
    "A function: a folder with the random network of a family."

    def saved(name):
        tiny(name).save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


@pytest.mark.parametrize("name", FULL)
def test_counts_at_full_size(name):
    network = skeleton(name)
    assert count(network) == FULL[name]
    assert clip_size(FAMILIES[name]) == CLIPS[name]
    if name in STUDENTS:
        assert count(make_student(network, Plan.paper(name))) == STUDENTS[name]


@pytest.mark.parametrize("scales", [dict(motion_cond_proj_dim=None), dict(motion_cond_proj_dim=None, time_cond_proj_dim=None)])
def test_networks_of_other_guidance_are_of_the_family(scales, tmp_path, capsys):
    "unet_no_mg.pt's, and VideoCrafter2's: counted, timed, cut, and read back like the one with both scales."
    name = "tiny-t2v-turbo-v2"
    torch.manual_seed(0)
    network = FAMILIES[name].network_class(**FAMILIES[name].config | scales).eval()
    family = family_of(network)
    assert (family.name, family.layout) == (name, FAMILIES[name].layout)
    network.save_pretrained(tmp_path / "net")
    vdmini_cost(str(tmp_path / "net"), level="stage", repeats=1)
    vdmini_cost(str(tmp_path / "net"), level="stage", count_only=True)
    vdmini_prune(str(tmp_path / "net"), out=str(tmp_path / "student"))
    student = load_network(tmp_path / "student")
    torch.testing.assert_close(output(student, family), output(make_student(network, Plan.paper(name)), family))
    teacher = random_teacher(name, network=network)
    if family.config["time_cond_proj_dim"]:
        assert teacher.generate(prompts=("rain",), steps=2).shape == (1, *clip_size(family)[:1], 3, *clip_size(family)[1:])
    else:
        with pytest.raises(BadInput, match="embedded guidance"):
            teacher.generate(prompts=("rain",), steps=2)


def test_frames_are_those_of_the_checkpoint(tmp_path, capsys):
    "img2vid-xt paints 25 frames, img2vid 14, with the same layers."
    with torch.device("meta"):
        longer = FAMILIES["svd"].network_class(**FAMILIES["svd"].config | dict(num_frames=25))
    assert (family_of(longer).name, clip_size(family_of(longer))) == ("svd", (25, 576, 1024))
    longer.save_config(tmp_path)
    vdmini_cost(str(tmp_path), level="stage", count_only=True, out=str(tmp_path / "out"))
    table, facts = load_table(tmp_path / "out" / "cost.parquet")
    assert facts["frames"] == 25 and table.params.iloc[-1] == FULL["svd"]


@each_tiny
def test_blocks_are_named_as_at_full_size(name):
    small, full = skeleton(name), skeleton(name.removeprefix("tiny-").removesuffix("-clip"))
    assert levels_of(small) == levels_of(full)
    for level in levels_of(small):
        assert [b.name for b in blocks(small, level)] == [b.name for b in blocks(full, level)]


@each_tiny
def test_bypass_leaves_no_trace(name, tiny):
    network, family = tiny(name), FAMILIES[name]
    before, modules = output(network, family), [id(m) for m in network.modules()]
    found = [b.name for level in levels_of(network) for b in blocks(network, level)]
    for block in found[:: max(1, len(found) // 12)]:
        with ablated(network, block):
            without = output(network, family)
        assert without.shape == before.shape and not torch.equal(without, before), block
        assert [id(m) for m in network.modules()] == modules
    assert torch.equal(output(network, family), before)


@each_tiny
def test_student_computes_what_the_bypassed_teacher_computes(name, tiny):
    network, family = tiny(name), FAMILIES[name]
    alone = HALVES if family.layout.skips else LEFT_OUT[name]  # where a pair goes, a U-Net loses its skip, too
    plan = Plan.dropping(name, *alone.split())
    student = make_student(network, plan).requires_grad_(False)  # where weights want gradients, convolutions round otherwise
    with ablated(network, *plan.dropped):
        assert torch.equal(output(student, family), output(network, family))
    assert dropped_from(student) == plan.dropped
    assert [b.name for b in blocks(student)] == [b.name for b in blocks(network) if b.name not in plan.dropped]


@each_unet
@pytest.mark.parametrize("plan", ["U.2.R.1 U.2.A.1", "D.1.R.1 D.1.A.1 U.2.R.1.RB-S", "U.1"])
def test_skips_that_do_not_meet(name, plan, tiny):
    with pytest.raises(BadInput, match="the plan does not fit together: (U|[1-3] skip)"):
        make_student(tiny(name), Plan.dropping(name, *plan.split()))


@each_tiny
def test_plan_comes_back(name, tmp_path):
    plan = Plan.dropping(name, *LEFT_OUT[name].split(), how="a test")
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json", name) == plan
    assert Plan.dropping(name, *plan.dropped, how="a test") == plan
    with pytest.raises(BadInput, match="no block of"):
        Plan.dropping(name, "X.0")


@each_tiny
def test_prune_a_folder(name, folder, tiny, tmp_path, capsys):
    plan = Plan.dropping(name, *LEFT_OUT[name].split())
    plan.save(tmp_path / "plan.json")
    vdmini_prune(str(folder(name)), plan=str(tmp_path / "plan.json"), out=str(tmp_path / "student"))
    student = load_network(tmp_path / "student")
    ours = make_student(tiny(name), plan)
    assert f"{count(student) / 1e6:.6f} M parameters" in capsys.readouterr().out
    assert student.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(t, ours.state_dict()[k]) for k, t in student.state_dict().items())
    assert output(student, FAMILIES[name]).shape == output(ours, FAMILIES[name]).shape
    assert family_of(student).name == name and dropped_from(student) == plan.dropped
    assert [b.name for b in blocks(skeleton(tmp_path / "student"))] == [b.name for b in blocks(ours)]
    with pytest.raises(BadInput, match="cut already"):
        make_student(student, plan)


@pytest.mark.parametrize("name", [n for n in TINY if FAMILIES[n].layout.counted])
def test_diffusers_alone_reads_a_student(name, tiny, tmp_path):
    student = make_student(tiny(name), Plan.dropping(name, *LEFT_OUT[name].split()))
    student.save_pretrained(tmp_path / "s")
    code = f"""
import sys, diffusers
n = diffusers.{type(student).__name__}.from_pretrained({str(tmp_path / "s")!r})
assert not [m for m in sys.modules if m.startswith("vdmini")]
print(sum(p.numel() for p in n.parameters()))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert int(done.stdout) == count(student)
    assert "were passed to" not in done.stderr  # nothing in the configuration that diffusers does not expect


@each_tiny
def test_names_carry_the_order_of_execution(name):
    network = skeleton(name)
    for level in levels_of(network):
        names = [b.name for b in blocks(network, level)]
        assert sorted(names[::-1], key=execution_order) == names


@each_tiny
def test_every_block_has_its_place_on_the_map(name):
    network = skeleton(name)
    for level in levels_of(network):
        cells = places(network, level)
        assert {b.name for b in blocks(network, level)} <= cells.keys()
        boxes = list(cells.values())
        apart = [
            a.x + a.w <= b.x or b.x + b.w <= a.x or a.y + a.h <= b.y or b.y + b.h <= a.y
            for i, a in enumerate(boxes)
            for b in boxes[:i]
        ]
        assert all(apart)


@each_tiny
def test_a_budget_is_what_the_student_costs(name, tiny):
    network, family = tiny(name), FAMILIES[name]
    budget = Budget(name, cost(network, network_inputs(family), count_only=True))
    plan = Plan.dropping(name, *LEFT_OUT[name].split())
    assert budget(plan).params == pytest.approx(count(make_student(network, plan)))
    # what is asked for is what comes, and it can be cut
    names = [b.name for level in levels_of(network) for b in blocks(network, level)]
    table = pd.DataFrame(dict(block=["none", *names], metric="m", value=range(len(names) + 1)))
    found = find_plan(budget, table, "m", params=0.8 * budget.total.params)
    assert budget(found).params == pytest.approx(count(make_student(network, found)))
    assert budget(found).params <= 0.8 * budget.total.params


@each_tiny
def test_cost_adds_up(name, tiny):
    network = tiny(name)
    table = cost(network, network_inputs(FAMILIES[name]), repeats=1, warmup=0)
    columns = ["params", "flops", "attention_flops"]
    for row in table.itertuples():
        below = summands(table, row.block)
        if len(below):
            assert below[columns].sum().to_dict() == {c: getattr(row, c) for c in columns}, row.block
            assert below.latency_ms.sum() == pytest.approx(row.latency_ms), row.block
    total = table.set_index("block").loc["total"]
    assert total.params == count(network) and total.flops > 0 and (table.latency_ms >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL)
def test_counting_needs_no_weights(name, tmp_path):
    code = f"""
import resource
from vdmini.cost import vdmini_cost
vdmini_cost({name!r}, count_only=True, out={str(tmp_path)!r})
used = resource.getrusage(resource.RUSAGE_SELF)
print("used", used.ru_utime + used.ru_stime, used.ru_maxrss)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.splitlines()[-1].split()[1:])
    assert seconds < 20 and kilobytes < 2e6
    table, facts = load_table(tmp_path / "cost.parquet")
    assert table.set_index("block").params["total"] == FULL[name]
    assert (facts["family"], facts["frames"], facts["height"], facts["width"]) == (name, *CLIPS[name])


def refuse(message, capsys, command, *args, **options):
    "Run a command; expect one line on stderr that holds `message`, and exit code 2."
    with pytest.raises(SystemExit) as e:
        command(*args, **options)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1 and message in err


def test_a_level_that_a_family_lacks(capsys, tmp_path):
    refuse("has no level 'sub'; it has: stage, layer", capsys, vdmini_cost, "hunyuan-video", level="sub", count_only=True)
    done = subprocess.run([BIN / "vdmini_blocks", "hunyuan-video", "--level", "sub"], capture_output=True, text=True)
    assert done.returncode == 2 and "it has: stage, layer" in done.stderr and done.stderr.count("\n") == 1


def test_sizes_that_do_not_fit(capsys, tmp_path):
    args = dict(count_only=True, level="stage", out=str(tmp_path / "o"))
    refuse("nearest: 65 frames of 720×1280", capsys, vdmini_cost, "hunyuan-video", frames=64, **args)
    refuse("nearest: 129 frames of 720×1280", capsys, vdmini_cost, "hunyuan-video", height=723, **args)
    refuse(
        "nearest: 25 frames of 576×1024 pixels (height × width, multiples of 64; at most 25",
        capsys,
        vdmini_cost,
        "svd",
        frames=49,
        **args,
    )
    refuse("nearest: 16 frames of 320×512", capsys, vdmini_cost, "t2v-turbo-v2", frames=32, **args)
    assert not (tmp_path / "o").exists()


def test_plan_of_another_family(capsys, folder, tmp_path):
    Plan.paper("hunyuan-video").save(tmp_path / "p.json")
    target = tmp_path / "s"
    model = str(folder("tiny-hunyuan-video"))
    refuse("a plan for hunyuan-video", capsys, vdmini_prune, model, plan=str(tmp_path / "p.json"), out=str(target))
    assert not target.exists()


def test_a_network_of_no_family(folder, tmp_path):
    family = FAMILIES["tiny-hunyuan-video"]
    for change in (dict(attention_head_dim=16, rope_axes_dim=(4, 4, 8)), dict(num_layers=21)):
        family.network_class(**family.config | change).save_pretrained(tmp_path / "other")
        with pytest.raises(BadInput, match="other sizes"):
            load_network(tmp_path / "other")
    with pytest.raises(BadInput, match="no network class 'UNet2DModel'"):
        network_class(dict(_class_name="UNet2DModel"))
