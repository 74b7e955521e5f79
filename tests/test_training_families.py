"""One loop for every family that has a task: trained, saved, loaded, gone on with; and what does not fit together."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from vdmini.blocks import blocks, modules_at
from vdmini.clips import write_clip
from vdmini.consistency import ConsistencyDistillation
from vdmini.core import BadInput
from vdmini.corpus import Corpus, encoded
from vdmini.families import FAMILIES, clip_size
from vdmini.launch import Run, launch, sample_clips
from vdmini.material import folder_material
from vdmini.recipe import TrainConfig, draw
from vdmini.rewards import Reward
from vdmini.runs import read_log
from vdmini.surgery import Plan, make_student
from vdmini.sweep import weights_hash
from vdmini.t2v import T2VTurboUNet
from vdmini.teacher import Teacher
from vdmini.teachers import load_network, load_teacher, random_teacher
from vdmini.train import bench_of, losses, train, train_step, vdmini_encode, vdmini_train

SVD, T2V, DIT = NAMES = ("tiny-svd-clip", "tiny-t2v-turbo-v2", "tiny-hunyuan-video")


@cache
def teacher_of(name: str) -> Teacher:
    return random_teacher(name)


def write_noise(folder: Path, name: str, texts: list[str]) -> Path:
    "Clips that are longer than the family wants, with a caption where there is one."
    frames, h, w = clip_size(FAMILIES[name])
    for i, text in enumerate(texts):
        clip = torch.rand(frames + 1, 3, h, w, generator=torch.Generator().manual_seed(i))
        write_clip(clip, folder / f"{i}.mp4", scale=2)
        if text:
            (folder / f"{i}.txt").write_text(text)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Family → a folder of videos."
    home = tmp_path_factory.mktemp("data")
    return {n: write_noise(home / n, n, ["sun", "rain", "wind", "snow"]) for n in NAMES}


@pytest.fixture(scope="module")
def latents(data, tmp_path_factory):
    "Family → a file of encoded clips, made by the command."
    home = tmp_path_factory.mktemp("latents")
    for n in NAMES:
        vdmini_encode(f"random:{n}", data=str(data[n]), out=str(home / f"{n}.safetensors"))
    return {n: home / f"{n}.safetensors" for n in NAMES}


@pytest.fixture(scope="module")
def trained(latents, tmp_path_factory):
    "Family → a run's folder, made by the command from nothing but latents."
    home = tmp_path_factory.mktemp("runs")
    for n in NAMES:
        vdmini_train(f"random:{n}", latents=str(latents[n]), out=str(home / n), steps=3)
    return {n: home / n for n in NAMES}


def refused(capsys, command, *args, **options) -> str:
    with pytest.raises(SystemExit) as e:
        command(*args, **options)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vdmini_")]
    assert e.value.code == 2 and len(said) == 1
    return said[0]


# --- every family, from a folder of videos to a student that paints


@pytest.mark.parametrize("name", NAMES)
def test_every_term_is_there_and_every_part_learns(trained, name):
    rows = read_log(trained[name] / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(torch.tensor([*row.values()]).isfinite().all() for row in rows)
    assert {"task", "icd", "mca_gen", "mca_disc", "grad", "grad_d"} <= rows[-1].keys() and "mca_gen" not in rows[0]
    student = load_network(str(trained[name] / "student"))
    untrained = make_student(teacher_of(name).network, Plan.paper(name))
    before, after = untrained.state_dict(), student.state_dict()
    assert before.keys() == after.keys()
    changed = [k for k in before if not torch.equal(before[k], after[k])]
    assert len(changed) > 0.9 * len(before)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_random_weights_is_found_again_and_paints(trained, data, name):
    facts = json.loads((trained[name] / "run.json").read_text())
    assert (facts["model"], facts["source"], facts["base"]) == (name, f"random:{name}", None)
    teacher = teacher_of(name)
    made = sample_clips(Run(trained[name]), folder_material(teacher, data[name], 1), steps=1)
    assert [*made] == ["teacher", f"student, {name}"]
    for clips in made.values():
        assert tuple(clips.shape) == (1, *[clip_size(teacher.family)[0], 3, *clip_size(teacher.family)[1:]])
        assert clips.isfinite().all()
    assert not torch.equal(*made.values())


def test_a_network_alone_with_its_pipeline_as_base(data, tmp_path):
    "Both on disk, as people have them; the run says where, so that it can be looked at again."
    teacher = teacher_of(SVD)
    teacher.network.save_pretrained(tmp_path / "net")
    teacher.pipeline.save_pretrained(tmp_path / "pipe")
    net, base = str(tmp_path / "net"), str(tmp_path / "pipe")
    vdmini_train(net, data=str(data[SVD]), base=base, out=str(tmp_path / "run"), steps=1)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (facts["source"], facts["base"], facts["data"]) == (net, base, str(data[SVD]))
    material = folder_material(teacher, data[SVD], 1)
    whole, student = sample_clips(Run(tmp_path / "run"), material, steps=1).values()
    torch.testing.assert_close(whole, teacher.answer(material.request, steps=1), atol=1e-3, rtol=0)
    alone = load_teacher(str(tmp_path / "run" / "student"), base=base)
    torch.testing.assert_close(alone.answer(material.request, steps=1), student, atol=1e-3, rtol=0)
    assert (whole - student).abs().max() > 0.01


def test_going_on_gives_what_an_undisturbed_run_gives(trained, latents, tmp_path, capsys):
    "Interrupted after one step; then by command, from the same latents."

    class Left(Exception):
        pass

    def leave(row):
        if row["step"] == 2:
            raise Left

    config = TrainConfig.paper(T2V, steps=3)
    with pytest.raises(Left):
        train(config, teacher_of(T2V), Plan.paper(T2V), tmp_path, latents=latents[T2V], callback=leave, progress=False)
    vdmini_train(f"random:{T2V}", latents=str(latents[T2V]), out=str(tmp_path), steps=3)
    ours, theirs = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(o / "log.jsonl")] for o in (tmp_path, trained[T2V])
    )
    assert ours == theirs
    one, two = (load_network(str(o / "student")) for o in (tmp_path, trained[T2V]))
    assert weights_hash(one) == weights_hash(two)


@pytest.mark.slow
def test_launched_in_a_process_of_its_own(data, tmp_path):
    "By name and base, from videos; in parts of another size than the recipe's."
    teacher_of(SVD).network.save_pretrained(tmp_path / "net")
    teacher_of(SVD).pipeline.save_pretrained(tmp_path / "pipe")
    config = TrainConfig.paper(SVD, steps=2, size=(2, 64, 128))
    where = dict(data=str(data[SVD]), base=tmp_path / "pipe")
    run = launch(tmp_path / "net", Plan.paper(SVD), tmp_path / "run", config, **where)
    run.wait(120)
    assert run.status()["student"] and run.config == config, run.said(5)
    assert tuple(Corpus.load(tmp_path / "run" / "latents.safetensors").x_0.shape[1:]) == (2, 4, 8, 16)


# --- one step


def bench(name: str, corpus: Corpus, **changes):
    options = {k: changes.pop(k) for k in ("task", "rewards") if k in changes}
    config = TrainConfig.paper(name, **dict(mca_from=0) | changes)
    return bench_of(config, teacher_of(name), Plan.paper(name), **options), draw(config, corpus, 0)


@pytest.fixture(scope="module")
def corpora(latents):
    return {n: Corpus.load(latents[n]) for n in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_teacher_and_student_run_as_often_as_needed(corpora, name):
    "The teacher once for all terms; the student once, and once more where its own answer is the target."
    b, part = bench(name, corpora[name])
    calls = []
    ends = {SVD: "conv_out", T2V: "conv_out", DIT: "proj_out"}[name]
    hooks = [
        m.get_submodule(ends).register_forward_hook(lambda *_, who=who: calls.append(who))
        for who, m in (("teacher", b.teacher.network), ("student", b.net))
    ]
    losses(b, part, judged=True)
    for h in hooks:
        h.remove()
    assert calls == ["student", "teacher"] + ["student"] * (name == T2V)


@pytest.mark.parametrize("name", NAMES)
def test_in_parts_recomputed_and_in_half_precision(corpora, name):
    "Three other ways to the same gradient; the last one is only close."
    one, two = ([train_step(*bench(name, corpora[name], **c))] for c in (dict(), dict(accumulation=2, checkpointing=True)))
    assert two[0].keys() == one[0].keys()
    for k, v in one[0].items():
        assert two[0][k] == pytest.approx(v, rel=2e-3, abs=2e-5), k
    b, part = bench(name, corpora[name], precision="bf16")
    half = train_step(b, part)
    assert all(p.dtype == torch.float32 for p in [*b.net.parameters(), *b.heads.parameters()])
    for k in ("task", "icd", "mca_disc"):
        assert half[k] == pytest.approx(one[0][k], rel=0.1) and half[k] != one[0][k], k


@pytest.mark.parametrize("name", NAMES)
def test_layers_run_again_on_the_way_back_if_asked(corpora, name):
    def runs(on: bool) -> int:
        "How often the innermost module that a step reaches first is run."
        b, part = bench(name, corpora[name], checkpointing=on)
        layer = modules_at(b.net, blocks(b.net)[0].paths)[0]
        first = next(m for m in layer.modules() if not [*m.children()] and [*m.parameters()])
        calls = []
        hook = first.register_forward_hook(lambda *_: calls.append(1))
        train_step(b, part)
        hook.remove()
        return len(calls)

    assert runs(True) == runs(False) + 1
    assert runs(False) == 1 + (name == T2V)


def test_fewer_pairs_of_features(corpora):
    b, part = bench(DIT, corpora[DIT], icd_most=3)
    assert sum(k.startswith("icd/") for k in train_step(b, part)) == 3 == len(b.pairs)


def test_a_reward_pulls_the_student_and_follows_the_step(corpora):
    def brightness(clips, captions):
        assert captions == part.captions and len(clips) == len(captions) == 2
        return clips.mean((1, 2, 3, 4))

    def rewarded(weight: float, frames: int):
        return bench(T2V, corpora[T2V], icd=0.0, mca=0.0, lr=1e-3, rewards=(Reward(brightness, weight, frames),))

    b, part = rewarded(5.0, 3)
    rows = [train_step(b, part) for _ in range(3)]
    assert all(row["loss"] == pytest.approx(row["task"] + row["reward/0"], rel=1e-5) for row in rows)
    assert rows[2]["reward/0"] < rows[1]["reward/0"] < rows[0]["reward/0"] < 0
    one, two = (train_step(*rewarded(0.5, 1)) for _ in range(2))
    assert one == two  # which frame it looks at follows from the step


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_solver_network_takes_the_place_of_the_teachers_estimate(corpora, precision):
    base = T2VTurboUNet(**FAMILIES[T2V].config | dict(time_cond_proj_dim=None, motion_cond_proj_dim=None)).eval()
    task = ConsistencyDistillation(solver=base, empty=torch.zeros(1, *FAMILIES[T2V].tokens), motion=0.0)
    b, part = bench(T2V, corpora[T2V], task=task, icd=0.0, mca=0.0, precision=precision)
    terms, before = train_step(b, part), weights_hash(base)
    assert set(terms) == {"task", "loss", "lr", "grad"} and terms["grad"] > 0
    assert weights_hash(base) == before and all(p.grad is None for p in base.parameters())
    assert terms["task"] != train_step(*bench(T2V, corpora[T2V], icd=0.0, mca=0.0, precision=precision))["task"]


# --- what a file of latents says


def test_what_is_told_is_what_the_teacher_tells(corpora, data):
    for name in NAMES:
        teacher, corpus = teacher_of(name), corpora[name]
        material = folder_material(teacher, data[name])
        want = teacher.tell(material.request)
        assert corpus.captions == material.captions == ["sun", "rain", "wind", "snow"]
        assert corpus.told.keys() == want.keys()
        for k, v in want.items():
            torch.testing.assert_close(corpus.told[k], v, atol=1e-4, rtol=1e-4)
        with torch.no_grad():
            torch.testing.assert_close(corpus.x_0, teacher.encode(material.clips), atol=1e-4, rtol=1e-4)
    assert corpora[SVD].told["image"].ndim == 4


def test_another_size_of_clips(data, tmp_path, capsys):
    "Asked for by the flags; a run that wants another one refuses the file."
    out = str(tmp_path / "small.safetensors")
    vdmini_encode(f"random:{DIT}", data=str(data[DIT]), out=out, frames=5, height=16, width=32)
    assert tuple(Corpus.load(out).x_0.shape[1:]) == (2, 4, 2, 4)
    said = refused(capsys, vdmini_train, f"random:{DIT}", latents=out, out=str(tmp_path / "run"))
    assert "holds latents of (2, 4, 2, 4); this run of tiny-hunyuan-video is for (3, 4, 4, 6)" in said
    sizes = dict(frames=5, height=16, width=32)
    vdmini_train(f"random:{DIT}", latents=out, out=str(tmp_path / "run"), steps=1, **sizes)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["config"]["size"] == [5, 16, 32]
    said = refused(capsys, vdmini_train, f"random:{DIT}", latents=out, out=str(tmp_path / "no"), frames=6)
    assert "6 frames of 32×48 pixels do not fit tiny-hunyuan-video; nearest: 5 frames" in said


def test_files_that_do_not_fit(latents, corpora, tmp_path, capsys):
    run = dict(out=str(tmp_path / "run"))
    said = refused(capsys, vdmini_train, f"random:{SVD}", latents=str(latents[T2V]), **run)
    assert f"holds clips encoded for {T2V}, not for {SVD}" in said
    assert "run.json" not in [p.name for p in (tmp_path / "run").iterdir()]  # the folder is free for another try
    corpora[SVD].save(tmp_path / "cut.safetensors")
    short = replace(corpora[SVD], told={k: v[:2] for k, v in corpora[SVD].told.items()})
    short.save(tmp_path / "short.safetensors")
    assert "is damaged: {'x_0': 4, " in refused(
        capsys, vdmini_train, f"random:{SVD}", latents=str(tmp_path / "short.safetensors"), **run
    )
    whole = (tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-100])
    assert "cannot be read as encoded clips" in refused(
        capsys, vdmini_train, f"random:{SVD}", latents=str(tmp_path / "cut.safetensors"), **run
    )
    other = replace(teacher_of(SVD), vae=copy.deepcopy(teacher_of(SVD).vae))
    next(other.vae.parameters()).data += 1
    with pytest.raises(BadInput, match="was encoded with another VAE"):
        encoded(other, None, 4, latents[SVD])
    untold = replace(corpora[SVD], told={})
    untold.save(tmp_path / "untold.safetensors")
    with pytest.raises(BadInput, match=r"holds no tokens"):
        encoded(teacher_of(SVD), None, 4, tmp_path / "untold.safetensors")


# --- what does not fit together


def test_captions_missing(tmp_path, capsys):
    data = write_noise(tmp_path / "data", T2V, ["sun", ""])
    for command, out in ((vdmini_encode, "l.safetensors"), (vdmini_train, "run")):
        said = refused(capsys, command, f"random:{T2V}", data=str(data), out=str(tmp_path / out))
        assert "1 of 2 videos have no caption: 1.mp4; expected a .txt beside each" in said
    assert not (tmp_path / "l.safetensors").exists()
    assert "does not learn from the generated world" in refused(capsys, vdmini_train, f"random:{T2V}", out=str(tmp_path / "run"))


def test_plan_recipe_or_teacher_of_another_family(latents, corpora, tmp_path, capsys):
    Plan.paper(SVD).save(tmp_path / "plan.json")
    given = dict(latents=str(latents[T2V]), out=str(tmp_path / "run"))
    said = refused(capsys, vdmini_train, f"random:{T2V}", plan=str(tmp_path / "plan.json"), **given)
    assert f"a plan for {SVD}, but the model is of the family {T2V}" in said
    (tmp_path / "recipe.json").write_text(json.dumps(dict(family=DIT, lr=1e-3)))
    said = refused(capsys, vdmini_train, f"random:{T2V}", config=str(tmp_path / "recipe.json"), **given)
    assert f"a recipe for {DIT}, but the model is of the family {T2V}" in said
    assert "no task to train tiny-wan-t2v for; there is one for: svd, " in refused(
        capsys, vdmini_train, "random:tiny-wan-t2v", **given
    )
    assert "no task to train svd-vae for" in refused(capsys, vdmini_encode, "svd-vae", out=str(tmp_path / "l"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(BadInput, match=f"a student of the family {SVD}, but a teacher of the family {T2V}"):
        b, _ = bench(SVD, corpora[SVD])
        replace(b, teacher=teacher_of(T2V))
    student = make_student(teacher_of(DIT).network, Plan.paper(DIT))
    with pytest.raises(BadInput, match="is cut itself; a teacher is whole"):
        cut = replace(teacher_of(DIT), network=student)
        train(TrainConfig.paper(DIT), cut, Plan.paper(DIT), tmp_path / "run", latents=latents[DIT], progress=False)


def test_rewards_and_entries_that_cannot_be(latents, corpora, tmp_path):
    plan, reward = Plan.paper(T2V), (Reward(lambda clips, captions: clips.mean((1, 2, 3, 4)), 1.0),)
    config = TrainConfig.paper(T2V, steps=1)
    replace(corpora[T2V], captions=["sun", "", "", ""]).save(tmp_path / "l.safetensors")
    with pytest.raises(BadInput, match="not every clip has one"):
        train(config, teacher_of(T2V), plan, tmp_path / "run", latents=tmp_path / "l.safetensors", rewards=reward)
    alone = replace(teacher_of(T2V), vae=None)
    with pytest.raises(BadInput, match="came without its VAE"):
        train(config, alone, plan, tmp_path / "run", latents=latents[T2V], rewards=reward)
    with pytest.raises(BadInput, match="came without its VAE"):
        train(config, alone, plan, tmp_path / "run", data="data")
    with pytest.raises(BadInput, match="entry 'image', but tiny-t2v-turbo-v2 is shown no first frame"):
        train(replace(config, entry="image"), teacher_of(T2V), plan, tmp_path / "run", latents=latents[T2V])
