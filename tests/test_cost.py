"The cost table: what adds up, what agrees with PyTorch's own books, and what the command refuses."

import re
import time
from copy import deepcopy
from functools import partial

import pandas as pd
import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker

from vdmini.blocks import blocks, module_of
from vdmini.core import BadInput, load_table
from vdmini.cost import PEAK_CPU, cost, latency, summands, vdmini_cost
from vdmini.count import LiveBytes, highest, parts, segments
from vdmini.families import FAMILIES, latent_size, network_inputs, skeleton
from vdmini.surgery import Plan, make_student

TINY = FAMILIES["tiny-svd"]


@pytest.fixture(scope="module")
def tiny():
    "The bundled model's network with random weights."
    torch.manual_seed(0)
    return TINY.network_class(**TINY.config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def inputs():
    return network_inputs(TINY)


@pytest.fixture(scope="module")
def table(tiny, inputs):
    return cost(tiny, inputs, repeats=3, warmup=1)


@pytest.fixture(scope="module")
def svd():
    "SVD at the paper's size, counted, and the CPU seconds that it took."
    start = time.process_time()
    return cost(skeleton("svd"), network_inputs(FAMILIES["svd"]), count_only=True), time.process_time() - start


def total(table):
    return table.set_index("block").loc["total"]


def test_rows(table):
    assert list(table.columns[:6]) == ["block", "level", "params", "flops", "latency_ms", "peak_bytes"]
    named = table[~table.block.str.endswith("rest")]
    assert named.level.value_counts().to_dict() == dict(sub=76, layer=38, stage=9, total=1)
    assert table.block.is_unique and not table.isna().any(axis=None)


@pytest.mark.parametrize("column", ["params", "flops", "attention_flops", "latency_ms"])
def test_children_sum_to_their_parent(table, column):
    for _, row in table.iterrows():
        below = summands(table, row.block)
        if not len(below):
            continue
        got = below[column].sum()
        assert got == (pytest.approx(row[column]) if column == "latency_ms" else row[column]), row.block


def test_params_are_the_networks(tiny, table):
    assert total(table).params == sum(p.numel() for p in tiny.parameters())
    for name in ("D.0", "M", "U.2.A.0", "D.1.R.0.RB-S"):
        b = next(b for level in ("stage", "layer", "sub") for b in blocks(tiny, level) if b.name == name)
        assert table.set_index("block").params[name] == sum(p.numel() for p in module_of(tiny, b).parameters())


def test_a_shared_parameter_counts_once(inputs):
    network = TINY.network_class(**TINY.config)
    network.conv_out.bias = network.conv_out.bias
    a, b = (network.down_blocks[0].resnets[i].spatial_res_block.conv2 for i in (0, 1))
    b.weight = a.weight
    assert total(cost(network, inputs, count_only=True)).params == sum(p.numel() for p in network.parameters())


def test_no_peak_above_the_whole(table):
    assert (table.peak_bytes <= total(table).peak_bytes).all() and (table.peak_bytes >= 0).all()
    for name in table.block:
        below = summands(table, name)
        assert below.peak_bytes.le(table.set_index("block").peak_bytes[name]).all()


def test_peak_agrees_with_torchs_tracker(tiny, inputs, table):
    tiny = deepcopy(tiny).requires_grad_(True)  # the tracker insists
    tracker = MemTracker()
    tracker.track_external(tiny, *inputs.values())
    with tracker, torch.no_grad():
        tiny(**inputs)
    peaks = table.set_index("block").peak_bytes
    for b in blocks(tiny, "sub") + blocks(tiny, "layer") + blocks(tiny, "stage"):
        stats = tracker.memory_tracking[module_of(tiny, b)]
        before = next(v for k, v in stats.snapshots.items() if k.name == "PRE_FW")[0]
        ((device, at_entry),) = [(d, s["Total"]) for d, s in before.items() if d.type == "cpu"]
        assert peaks[b.name] == pytest.approx(stats.local_peak[device] - at_entry, rel=0.01), b.name


def test_counting_twice_gives_the_same(tiny, inputs, table):
    again = cost(tiny, inputs, count_only=True)
    assert again.latency_ms.isna().all()
    pd.testing.assert_frame_equal(again.drop(columns="latency_ms"), table.drop(columns="latency_ms"))
    pd.testing.assert_frame_equal(again, cost(skeleton("tiny-svd"), inputs, count_only=True))


def test_a_fake_forward_has_the_peaks_of_a_real_one(tiny, inputs, table):
    tree = parts(tiny)
    with LiveBytes() as live:
        real = highest(segments(tiny, tree, partial(tiny, **inputs), live.reading))
    assert all(real[row.block] == row.peak_bytes for row in table.itertuples())
    assert table.attrs["peak"] == PEAK_CPU


def test_a_clock_that_runs_behind(tiny, inputs, monkeypatch):
    "A GPU's readings are events: no difference may be taken before all is done, and each forward must find the device idle."
    events, waits = [], []

    class Event:
        def __init__(self):
            self.time, self.over = time.perf_counter(), False
            events.append(self)

    def wait():
        waits.append(len(events))
        for event in events:
            event.over = True

    def difference(a, b):
        assert a.over and b.over
        return 1000 * (b.time - a.time)

    monkeypatch.setattr("vdmini.cost._clock", lambda device: (Event, difference, wait))
    tree = parts(tiny, "stage")
    own, whole = latency(tiny, tree, inputs, repeats=3, warmup=1)
    assert set(own) == {p.own for p in tree} and min(own.values()) > 0 and whole > 0
    hooked = 2 * sum(bool(p.paths) for p in tree)
    assert waits == [n for i in range(4) for n in (i * (hooked + 2) + hooked, (i + 1) * (hooked + 2))]


def test_measuring_leaves_nothing_behind(tiny, inputs):
    class Stop(Exception):
        pass

    def broken():
        raise Stop

    with pytest.raises(Stop):
        segments(tiny, parts(tiny), partial(tiny, **inputs), broken)
    cost(tiny, inputs, level="stage", repeats=1, warmup=0)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())
    assert not any(p.is_meta for p in tiny.parameters())


def test_coarser_levels_have_the_same_rows(tiny, inputs, table):
    stages = cost(tiny, inputs, level="stage", count_only=True)
    fine = table[table.level.isin(["stage", "total"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(stages.drop(columns="latency_ms"), fine.drop(columns="latency_ms"))


def test_svd_at_full_size(svd):
    table, seconds = svd
    assert seconds < 60
    assert total(table).params == 1_524_623_082
    assert total(table).flops == pytest.approx(36.10e12, rel=0.005)
    for name in table.block:
        below = summands(table, name)
        row = table.set_index("block").loc[name]
        if len(below):
            assert (below.params.sum(), below.flops.sum()) == (row.params, row.flops)


def test_the_papers_student_at_full_size():
    student = make_student(skeleton("svd"), Plan.paper("svd"))
    table = cost(student, network_inputs(FAMILIES["svd"]), level="stage", count_only=True)
    assert total(table).params == 939_884_186
    assert total(table).flops == pytest.approx(25.70e12, rel=0.005)
    assert not set(table.block) & {"D.3", "M", "U.0"}


def test_bad_numbers(tiny, inputs):
    with pytest.raises(BadInput, match="repeats"):
        cost(tiny, inputs, repeats=0)
    with pytest.raises(BadInput, match="nearest: layer"):
        cost(tiny, inputs, level="layers")
    with pytest.raises(BadInput, match="count_only"):
        cost(skeleton("tiny-svd"), inputs)


def test_command_writes_table_and_facts(tmp_path, capsys):
    vdmini_cost("tiny-svd", count_only=True, plan="vdmini", level="stage", out=str(tmp_path))
    table, facts = load_table(tmp_path / "cost.parquet")
    assert total(table).params > 0 and facts["plan"] == "vdmini" and "D.3" in facts["dropped"]
    assert {"model", "family", "inputs", "dtype", "device", "repeats", "protocol", "versions"} <= set(facts)
    said = capsys.readouterr().out
    assert "total" in said and "whole forward" not in said  # nothing was timed


def test_command_prints_the_time_that_it_saves(tmp_path, capsys):
    vdmini_cost("tiny-svd", level="stage", repeats=2, out=str(tmp_path))
    _, facts = load_table(tmp_path / "cost.parquet")
    assert f"{facts['whole_ms']:.1f} ms (2 timed)" in capsys.readouterr().out.splitlines()[-1]


def test_a_clip_of_another_size_runs(tiny):
    size = latent_size(TINY, frames=3, height=64, width=96)
    assert size == (3, 4, 16, 24)
    with torch.no_grad():
        assert tiny(**network_inputs(TINY, latent=size)).sample.shape == (1, *size)


@pytest.mark.parametrize("height, width", [(1, 8), (9, 8), (12, 13), (8, 0)])
def test_the_size_that_a_refusal_names_is_taken(height, width):
    with pytest.raises(BadInput, match="does not fit tiny-svd") as e:
        network_inputs(TINY, latent=(8, 4, height, width))
    near = tuple(map(int, re.search(r"nearest: \((.*)\)", str(e.value))[1].split(",")))
    assert network_inputs(TINY, latent=near)["sample"].shape == (1, 8, 8, *near[2:])
    assert all(abs(n - s) <= 8 for n, s in zip(near[2:], (height, width)))


def test_command_weighs_a_clip_of_another_size(tmp_path):
    vdmini_cost("tiny-svd", count_only=True, level="stage", frames=3, width=64, out=str(tmp_path))
    table, facts = load_table(tmp_path / "cost.parquet")
    assert (facts["frames"], facts["height"], facts["width"]) == (3, 32, 64)
    assert facts["inputs"]["sample"] == [1, 3, 8, 8, 16]
    own = cost(skeleton("tiny-svd"), network_inputs(TINY), level="stage", count_only=True)
    assert total(table).params == total(own).params
    assert total(table).flops / total(own).flops == pytest.approx(3 * 8 * 16 / (8 * 8 * 8), rel=0.01)


def refuse(message, capsys, *args, **options):
    "Run the command; expect one line on stderr that holds `message`, and exit code 2."
    with pytest.raises(SystemExit) as e:
        vdmini_cost(*args, count_only=True, **options)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count("\n") == 1 and message in err


@pytest.mark.parametrize(
    "model, options, message",
    [
        ("tiny-sdv", {}, "nearest: tiny-svd"),
        ("tiny-svd", dict(level="layr"), "nearest: layer"),
        ("tiny-svd", dict(device="abacus"), "abacus"),
        ("tiny-svd", dict(dtype="float31"), "nearest: float32"),
        ("tiny-svd", dict(plan="nowhere.json"), "nowhere.json"),
        ("tiny-svd", dict(frames=0), "nearest: 1 frames of 32×32"),
        ("tiny-svd", dict(height=-5), "nearest: 8 frames of 32×32"),
        ("svd", dict(height=500, width=1000), "nearest: 14 frames of 512×1024"),
    ],
)
def test_command_refuses(model, options, message, tmp_path, capsys):
    refuse(message, capsys, model, out=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()


def test_command_cannot_write(tmp_path, capsys):
    (tmp_path / "file").write_text("not a folder")
    refuse("cannot write", capsys, "tiny-svd", out=str(tmp_path / "file" / "sub"))
    assert [f.name for f in tmp_path.iterdir()] == ["file"]
