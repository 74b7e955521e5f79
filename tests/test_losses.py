"""The losses against finite differences, the pairing against real forwards, the judge's sign on separable data."""

import random
from dataclasses import replace

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck

from vdmini.blocks import blocks
from vdmini.core import BadInput
from vdmini.families import FAMILIES, network_inputs
from vdmini.judge import ENTRIES, MCA, Encoder, Heads
from vdmini.losses import ICD, Features, pairs
from vdmini.surgery import Plan, VDMiniUNet, make_student
from vdmini.tasks import SFV
from vdmini.teacher import Teacher
from vdmini.teachers import load_teacher


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("tiny-svd")


def double(*size: int, seed: int = 0) -> torch.Tensor:
    "Standard normal numbers that want a gradient."
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=g, dtype=torch.float64).requires_grad_()


@pytest.fixture(scope="module")
def small():
    "A random two-stage teacher in double precision, one clip of two frames, its condition."
    torch.manual_seed(0)
    config = dict(
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        **dict(block_out_channels=(32, 32), num_attention_heads=(2, 2), cross_attention_dim=8, layers_per_block=1),
        **dict(addition_time_embed_dim=8, projection_class_embeddings_input_dim=24, num_frames=2),
    )
    network = UNetSpatioTemporalConditionModel(**config).double().eval().requires_grad_(False)
    family = replace(FAMILIES["svd"], name="small", config=config, latent=(2, 4, 4, 4), tokens=(1, 8))
    condition = dict(
        image=double(1, 2, 4, 4, 4, seed=1).detach(),
        encoder_hidden_states=double(1, 1, 8, seed=2).detach(),
        added_time_ids=torch.ones(1, 3, dtype=torch.float64),
    )
    return Teacher(family, network, None, "random weights"), condition


def seen_by(small, x, seed: int = 3, entry: str = "noise"):
    teacher, condition = small
    return Encoder(teacher, entry)(
        x, torch.tensor([0.5], dtype=torch.float64), double(1, 2, 4, 4, 4, seed=seed).detach(), condition
    )


def heads_of(small, **options):
    torch.manual_seed(1)
    return Heads.of(small[0], width=8, **options).double()


# --- pairing


def shapes(network, paths, inputs):
    with torch.no_grad(), Features(network, paths) as seen:
        network(**inputs)
    return {name: tuple(f.shape) for name, f in seen.items()}


def check_pairs(student, teacher_network, plan, inputs):
    found = pairs(student, teacher_network)
    assert pairs(plan, teacher_network) == found
    ours = shapes(student, {n: p for n, (p, _) in found.items()}, inputs)
    theirs = shapes(teacher_network, {n: p for n, (_, p) in found.items()}, inputs)
    assert ours == theirs
    stages = {b.path: b.name for b in blocks(student, "stage")}
    assert all(stages[path] == name for name, (path, _) in found.items())
    return found


def fitting_plans(n: int) -> list[tuple[str, ...]]:
    "Drops that `cut` accepts: the innermost stages down to a random depth, random pairs with partners, random halves."
    rng, plans = random.Random(0), []
    skips = ["D.0.{}.0", "D.0.{}.1", "D.1.{}.0", "D.1.{}.1", "D.2.{}.0", "D.2.{}.1"]
    partners = ["U.3.{}.2", "U.3.{}.1", "U.2.{}.2", "U.2.{}.1", "U.1.{}.2", "U.1.{}.1"]
    core = [(), ("M",), ("D.3", "M", "U.0"), ("D.2", "D.3", "M", "U.0", "U.1"), ("D.1", "D.2", "D.3", "M", "U.0", "U.1", "U.2")]
    halves = [b.name for b in blocks(load_teacher("tiny-svd").network, "sub")]
    while len(plans) < n:
        chosen = [i for i in range(6) if rng.random() < 0.3]
        pairs_gone = [t.format(k) for i in chosen for t in (skips[i], partners[i]) for k in "RA"]
        plans.append((*rng.choice(core), *pairs_gone, *rng.sample(halves, rng.randrange(5))))
    return plans


@pytest.mark.slow
@pytest.mark.parametrize("gone", fitting_plans(12), ids=range(12))
def test_pairs_have_equal_shapes_for_every_plan_that_can_be_cut(teacher, gone):
    plan = Plan.dropping("tiny-svd", *gone)
    check_pairs(make_student(teacher.network, plan), teacher.network, plan, network_inputs(teacher.family))


def test_pairs_before_the_downsampler_that_went(teacher):
    gone = ("D.2", "D.3", "M", "U.0", "U.1", "D.1.R.1", "D.1.A.1", "U.2.R.1", "U.2.A.1")
    plan = Plan.dropping("tiny-svd", *gone)
    found = check_pairs(make_student(teacher.network, plan), teacher.network, plan, network_inputs(teacher.family))
    assert found["D.1"] == ("down_blocks.1", "down_blocks.1.attentions.1")
    assert found["U.2"] == ("up_blocks.0", "up_blocks.2")
    assert list(found) == ["D.0", "D.1", "U.2", "U.3"]


def test_a_stage_with_nothing_left_has_no_partner(teacher):
    plan = Plan.dropping("tiny-svd", "M", "D.3.R.0", "D.3.R.1", "U.0.R.1", "U.0.R.2")
    found = check_pairs(make_student(teacher.network, plan), teacher.network, plan, network_inputs(teacher.family))
    assert list(found) == ["D.0", "D.1", "D.2", "U.0", "U.1", "U.2", "U.3"]
    assert found["D.2"] == ("down_blocks.2", "down_blocks.2")


def test_pairs_of_svd_at_full_size():
    plan, config = Plan.paper("svd"), FAMILIES["svd"].config
    with FakeTensorMode():
        student = VDMiniUNet(dropped=plan.dropped, family="svd", **config)
        whole = UNetSpatioTemporalConditionModel(**config)
        inputs = network_inputs(FAMILIES["svd"])
        found = check_pairs(student, whole, plan, inputs)
    assert found["D.2"] == ("down_blocks.2", "down_blocks.2.attentions.1")


def test_student_of_another_family_is_refused(teacher):
    with torch.device("meta"):
        student = VDMiniUNet(dropped=Plan.paper("svd").dropped, family="svd", **FAMILIES["svd"].config)
    with pytest.raises(BadInput, match="a student of the family svd, but a teacher of the family tiny-svd"):
        pairs(student, teacher.network)


def test_hooks_go_even_after_an_error(teacher):
    with pytest.raises(ZeroDivisionError):
        with Features(teacher.network, {"D.0": "down_blocks.0"}, stop=True):
            1 / 0
    assert not teacher.network.down_blocks[0]._forward_hooks


# --- gradients, against finite differences in float64


def test_icd_gradient():
    f_tea = {"D.0": double(2, 3, 4, seed=1), "U.3": double(5, seed=2)}

    def loss(a, b):
        return ICD()({"D.0": a, "U.3": b}, f_tea)[0]

    assert gradcheck(loss, (double(2, 3, 4, seed=3), double(5, seed=4)))
    loss(double(2, 3, 4), double(5)).backward()
    assert f_tea["D.0"].grad is None  # the teacher is a target, no party


def test_icd_takes_any_distance():
    a, b = {"D.0": double(4)}, {"D.0": double(4, seed=1)}
    total, terms = ICD(torch.nn.functional.l1_loss)(a, b)
    assert torch.equal(total, (a["D.0"] - b["D.0"]).abs().mean()) and terms == {"D.0": total}


def test_task_gradient():
    x_0 = double(2, 2, 4, 3, 3, seed=1).detach()
    assert gradcheck(lambda x: SFV()(x, x_0), double(2, 2, 4, 3, 3))


@pytest.mark.parametrize("entry", ENTRIES)
def test_mca_generator_gradient_reaches_the_clip_and_nothing_else(small, entry):
    heads, tokens = heads_of(small), small[1]["encoder_hidden_states"]
    mca, x = MCA(heads), double(1, 2, 4, 4, 4)
    assert gradcheck(lambda x: mca.gen(seen_by(small, x, entry=entry), tokens), x, fast_mode=True)
    mca.gen(seen_by(small, x, entry=entry), tokens).backward()
    assert x.grad.abs().sum() > 0
    assert all(p.grad is None and p.requires_grad for p in heads.parameters())
    assert all(p.grad is None for p in small[0].network.parameters())


@pytest.mark.parametrize("r1", [0.0, 2.0])
def test_mca_discriminator_gradient_reaches_the_heads_and_nothing_else(small, r1):
    heads, tokens = heads_of(small), small[1]["encoder_hidden_states"]
    mca, x = MCA(heads, r1), double(1, 2, 4, 4, 4)
    fake, real = seen_by(small, x), [seen_by(small, double(1, 2, 4, 4, 4, seed=s)) for s in (5, 6)]
    names, values = zip(*heads.named_parameters())

    def loss(*values):
        swapped = torch.func.functional_call
        return MCA(lambda f, e: swapped(heads, dict(zip(names, values)), (f, e)), r1).disc(fake, real, tokens)

    assert gradcheck(loss, tuple(v.detach().requires_grad_() for v in values), fast_mode=True)
    mca.disc(fake, real, tokens).backward()
    assert x.grad is None
    assert sum(p.grad.abs().sum() for p in heads.parameters()) > 0


def test_r1_is_half_the_squared_slope():
    "A linear judge of known slope."

    class Linear(torch.nn.Module):
        def forward(self, features, tokens):
            return [3.0 * features[0].flatten()]

    features, tokens = [double(2, 5, 1, 1)], torch.zeros(2, 1, 1)
    assert MCA(Linear()).penalty(features, tokens).item() == pytest.approx(0.5 * 9 / 5)  # per clip: 5 positions, each 3 / 5


# --- the judge


def test_encoder_sees_what_the_teacher_sees(teacher):
    inputs = network_inputs(teacher.family, 2)
    sigma, (x, image) = torch.tensor([0.3, 2.0]), inputs["sample"].chunk(2, 2)
    condition = dict(image=image) | {k: inputs[k] for k in ("encoder_hidden_states", "added_time_ids")}
    noise = torch.randn(x.shape)
    seen = Encoder(teacher)(x, sigma, noise, condition)
    for i, s in enumerate(sigma.tolist()):
        one = {k: v[i : i + 1] for k, v in condition.items()}
        paths = {str(j): f"down_blocks.{j}" for j in range(4)}
        with torch.no_grad(), Features(teacher.network, paths) as whole:
            teacher.denoise(x[i : i + 1] + s * noise[i : i + 1], s, **one)
        for a, b in zip(seen, whole.values(), strict=True):
            torch.testing.assert_close(a.unflatten(0, (2, -1))[i], b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("views", [("spatial",), ("temporal",), ("spatial", "temporal")], ids="+".join)
def test_sign_of_the_judge_on_separable_data(small, views):
    heads, tokens = heads_of(small, views=views), small[1]["encoder_hidden_states"]
    mca, optimiser = MCA(heads), torch.optim.Adam(heads.parameters(), 1e-2)

    def some(kind: int, seed: int) -> list[torch.Tensor]:
        "Features of real clips lie around +1, those of fakes around −1."
        return [kind + 0.5 * double(2, 32, n, n, seed=seed + n).detach() for n in (2, 2)]

    for i in range(40):
        optimiser.zero_grad()
        mca.disc(some(-1, i), [some(1, i + 1000)], tokens).backward()
        optimiser.step()
    with torch.no_grad():
        real, fake = (torch.cat(heads(some(kind, 9999), tokens)) for kind in (1, -1))
        assert (real > 0).all() and (fake < 0).all()
        assert mca.gen(some(1, 7), tokens) < 0 < mca.gen(some(-1, 7), tokens)


def test_views_see_single_frames_or_single_positions(small):
    "A spatial head never mixes frames, a temporal head never mixes positions."
    tokens, x = small[1]["encoder_hidden_states"], double(2, 32, 3, 3)  # two frames
    slope = {}
    for view in ("spatial", "temporal"):
        logits = heads_of(small, views=(view,))([x, x.detach()], tokens)[0]
        slope[view] = torch.autograd.grad(logits[0], x)[0].abs().sum(1) > 0  # f h w
    assert slope["spatial"][0].all() and not slope["spatial"][1].any()
    only = torch.zeros(2, 3, 3, dtype=torch.bool)
    only[:, 0, 0] = True
    assert torch.equal(slope["temporal"], only)
