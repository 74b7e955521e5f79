"""The tasks' formulas against numbers from elsewhere, their gradients, and one step of each on its tiny, random family."""

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from einops import rearrange
from torch import nn
from torch.autograd import gradcheck

from vdmini.blocks import blocks, prunable
from vdmini.consistency import ConsistencyDistillation, Fading
from vdmini.core import BadInput
from vdmini.families import FAMILIES, Family, network_inputs, skeleton
from vdmini.judge import MCA, Encoder, Heads, eyes, pictures, pooled
from vdmini.losses import ICD, Features, pairs
from vdmini.rewards import CLIPScore, Reward
from vdmini.surgery import Plan, ablated, cut, make_student
from vdmini.t2v import T2VTurboUNet, guidance_embedding
from vdmini.tasks import SFV, FlowMatching, task_of
from vdmini.teacher import Teacher
from vdmini.teachers import load_teacher

SD_NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
T2V, FAMILY_NAMES = "tiny-t2v-turbo-v2", ("tiny-svd", "tiny-t2v-turbo-v2", "tiny-hunyuan-video")


@cache
def network_of(name: str) -> nn.Module:
    "A family's network with random weights, frozen; none is zero, as some begin with: nothing would pass them."
    torch.manual_seed(0)
    network = FAMILIES[name].network_class(**FAMILIES[name].config).eval().requires_grad_(False)
    for p in network.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return network


@pytest.fixture(scope="module")
def teachers():
    return {name: Teacher(FAMILIES[name], network_of(name), None, "random weights") for name in FAMILY_NAMES}


def told(name: str, b: int, dtype=torch.float32) -> dict:
    "What a network is told besides clip and noise."
    family, g = FAMILIES[name], torch.Generator().manual_seed(7)
    (_, c, h, w), normal = family.latent, lambda *size: torch.randn(b, *size, generator=g, dtype=dtype)
    told = dict(encoder_hidden_states=normal(*family.tokens))
    if name == "tiny-svd":
        told |= dict(image=normal(c, h, w), added_time_ids=torch.ones(b, 3, dtype=dtype))
    if name == "tiny-hunyuan-video":
        mask = torch.ones(b, family.tokens[0], dtype=torch.long)
        mask[-1, 3:] = 0
        told |= dict(pooled_projections=normal(family.config["pooled_projection_dim"]), encoder_attention_mask=mask)
    return told


def clips(name: str, b: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    "Latents and noise are normal here."
    return torch.randn(b, *FAMILIES[name].latent, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Says(nn.Module):
    "A network that answers the same whatever it sees, in the place of T2V-Turbo-v2's."

    config = dict(time_cond_proj_dim=None, motion_cond_proj_dim=None)

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, t, return_dict, **told):
        return (rearrange(self.answer(x, t, **told), "b f c h w -> b c f h w"),)


# --- one step of each family: everything that the loop will do


def step(teacher: Teacher, student: nn.Module, task, most: int = None) -> dict[str, torch.Tensor]:
    "Eq. 6 with one forward of each network; the heads' loss, too."
    name, b = teacher.family.name, 2
    x_0, noise, noise_d = (clips(name, b, seed) for seed in range(3))
    given, g = told(name, b), torch.Generator().manual_seed(0)
    drawn, paths = task.draw(b, g), pairs(student, teacher.network, most)
    x_t = task.noisy(x_0, noise, drawn)
    with Features(student, {n: p for n, (p, _) in paths.items()}) as f_stu:
        x_stu = task.estimate(student, x_t, drawn, given)
    with torch.no_grad(), Features(teacher.network, {n: p for n, (_, p) in paths.items()}) as f_tea:
        x_tea = task.estimate(teacher.network, x_t, drawn, given)
    torch.manual_seed(0)
    mca, look, tokens = MCA(Heads.of(teacher, width=8)), Encoder(teacher), pooled(given)
    sigma_d = torch.tensor([0.07, 1.9])
    fake = look(x_stu, sigma_d, noise_d, given)
    real = [look(x, sigma_d, noise_d, given) for x in (x_tea, x_0)]
    disc = mca.disc(fake, real, tokens)
    terms = dict(
        task=task(x_stu, x_0=x_0, x_t=x_t, drawn=drawn, told=given, student=student, x_tea=x_tea),
        icd=ICD()(f_stu, f_tea)[0],
        mca=mca.gen(fake, tokens),
        disc=disc,
    )
    disc.backward(retain_graph=True)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in mca.heads.parameters())
    assert x_stu.shape == x_tea.shape == x_0.shape
    return terms


@pytest.fixture(scope="module")
def students(teachers):
    return {n: cut(copy.deepcopy(t.network), Plan.paper(n).dropped).requires_grad_(True) for n, t in teachers.items()}


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_one_step_gives_every_weight_of_the_student_a_gradient(teachers, students, name):
    teacher, student = teachers[name], students[name]
    task = task_of(teacher.family)
    terms = step(teacher, student, task)
    assert all(v.isfinite() and v.ndim == 0 for v in terms.values())
    for term in ("task", "icd", "mca"):
        student.zero_grad()
        terms[term].backward(retain_graph=True)
        grads = {n: p.grad for n, p in student.named_parameters()}
        assert all(g.isfinite().all() for g in grads.values() if g is not None), term
        without = {n for n, g in grads.items() if g is None or not g.abs().any()}
        if term == "icd":  # it reads features, and nothing after the last
            without = {n for n in without if not n.startswith(("conv_norm_out", "conv_out", "norm_out", "proj_out"))}
        # one token: attention to it does not depend on the query
        assert not {n for n in without if not (name == "tiny-svd" and "attn2" in n)}, term
    assert all(p.grad is None for p in teacher.network.parameters())
    student.zero_grad()


def test_task_of_a_family_and_which_have_none():
    assert isinstance(task_of(FAMILIES["svd"]), SFV) and isinstance(task_of(FAMILIES["tiny-hunyuan-video"]), FlowMatching)
    assert task_of(FAMILIES[T2V], steps=50).k == 20
    with pytest.raises(BadInput, match="no task to train wan-t2v for; there is one for: svd, tiny-svd"):
        task_of(FAMILIES["wan-t2v"])


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_draws_are_seeded_and_within_their_bounds(name):
    task = task_of(FAMILIES[name])
    one, again = (task.draw(4000, torch.Generator().manual_seed(5)) for _ in range(2))
    assert one.keys() == again.keys() == task.at(torch.ones(1)).keys()
    assert all(torch.equal(one[k], again[k]) and one[k].shape == (4000,) for k in one)
    bounds = dict(sigma=(2.2, 700.1), s=(0.001, 1.0), t=(4, 999), w=(5, 15), motion=(0, 0.05))
    for k, v in one.items():
        lo, hi = bounds[k]
        assert lo <= v.min() and v.max() <= hi + 1e-6
    if "t" in one:
        assert set(one["t"].tolist()) == {*range(4, 1000, 5)}
        assert torch.equal(one["motion"] > 0, one["t"] >= 500)


# --- SF-V


def test_sfv_estimates_what_its_teacher_denoises():
    teacher = load_teacher("tiny-svd")
    x_0, noise = clips("tiny-svd", 2), clips("tiny-svd", 2, 1)
    condition = teacher.condition(x_0[:, 0], torch.zeros(2, 2))
    drawn = SFV().draw(2, torch.Generator().manual_seed(0))
    x_t = x_0 + drawn["sigma"].view(-1, 1, 1, 1, 1) * noise
    assert torch.equal(SFV().noisy(x_0, noise, drawn), x_t)
    with torch.no_grad():
        want = teacher.denoise(x_t, drawn["sigma"], **condition)
        for image in (x_0[:, 0], condition["image"]):
            assert torch.equal(SFV().estimate(teacher.network, x_t, drawn, condition | dict(image=image)), want)


# --- consistency distillation


def test_fading_is_the_noise_of_stable_diffusion():
    kept = DDIMScheduler(**SD_NOISE).alphas_cumprod
    t = torch.arange(1000.0)
    α, σ = (v.flatten() for v in Fading().weights(t, torch.zeros(1000, 1, 1, 1, 1)))
    torch.testing.assert_close(α.float(), kept.sqrt(), atol=1e-5, rtol=0)
    torch.testing.assert_close(α**2 + σ**2, torch.ones_like(α))
    torch.testing.assert_close(Fading().timestep(σ.double() / α.double()), t.double(), atol=1e-3, rtol=0)


@pytest.fixture
def exact():
    "A clip and its noise in double precision, and what is drawn for them: the first, a middle and the last step."
    x_0, noise = clips(T2V, 3, dtype=torch.float64), clips(T2V, 3, 1, torch.float64)
    drawn = ConsistencyDistillation().draw(3, torch.Generator().manual_seed(0)) | dict(t=torch.tensor([4.0, 504.0, 999.0]))
    return x_0, noise, drawn


def test_scalings_at_the_boundary_and_beyond(exact):
    task, (x_0, noise, drawn) = ConsistencyDistillation(), exact
    t = torch.tensor([0.0, 1.0, 4.0, 999.0])
    c_skip, c_out = task.boundary(t, torch.zeros(4, 1, 1, 1, 1, dtype=torch.float64))
    for i, n in enumerate(t.tolist()):
        want = LCMScheduler().get_scalings_for_boundary_condition_discrete(n)
        assert (c_skip[i].item(), c_out[i].item()) == pytest.approx(want)
    still = drawn | dict(t=torch.zeros(3))
    assert torch.equal(task.estimate(Says(lambda x, t: noise * 1e3), x_0, still, {}), x_0)


def test_ddim_step_of_the_true_noise_lands_on_the_path(exact):
    task, (x_0, noise, drawn) = ConsistencyDistillation(), exact
    x_t = task.noisy(x_0, noise, drawn)
    seen_x, seen_noise = task.seen(x_t, task.estimate(Says(lambda x, t: noise), x_t, drawn, {}), drawn)
    torch.testing.assert_close(seen_noise, noise, atol=1e-8, rtol=0)
    for s in (drawn["t"] - 4, torch.tensor([0.0, 40.5, 994.0])):
        torch.testing.assert_close(task.solve(seen_x, seen_noise, s), task.noisy(x_0, noise, dict(t=s)), atol=1e-8, rtol=0)


def test_ddim_step_is_that_of_diffusers():
    ddim = DDIMScheduler(**SD_NOISE, clip_sample=False)
    ddim.set_timesteps(200)
    task, x_t, ε, t = ConsistencyDistillation(), clips(T2V, 1), clips(T2V, 1, 1), torch.tensor([504.0])
    α, σ = task.process.weights(t, x_t)
    want = ddim.step(ε, 504, x_t).prev_sample
    torch.testing.assert_close(task.solve((x_t - σ * ε) / α, ε, t - task.k), want, atol=1e-5, rtol=1e-5)


def test_a_consistent_student_has_no_loss_and_a_shifted_one_has_the_shift(exact):
    task, (x_0, noise, drawn) = ConsistencyDistillation(), exact
    drawn = drawn | dict(t=torch.tensor([504.0, 704.0, 999.0]))

    def knows(x, t):
        "The noise that is in x if x_0 is the clip."
        α, σ = task.process.weights(t, x_0)
        return (rearrange(x, "b c f h w -> b f c h w") - α * x_0) / σ

    x_t = task.noisy(x_0, noise, drawn)
    x_tea = task.estimate(Says(knows), x_t, drawn, {})
    rest = dict(x_t=x_t, drawn=drawn, told={}, student=Says(knows), x_tea=x_tea)
    assert task(x_tea, **rest) < 1e-10
    assert task(x_tea + 0.3, **rest).item() == pytest.approx((0.3**2 + 1e-6) ** 0.5 - 1e-3)


@pytest.mark.parametrize("scored", [False, True])
def test_solver_steps_under_guidance(exact, scored):
    x_0, noise, drawn = exact
    text, empty = torch.full((3, 5, 12), 2.0, dtype=torch.float64), torch.zeros(1, 5, 12, dtype=torch.float64)
    answer = lambda x, t, encoder_hidden_states: noise * encoder_hidden_states.mean((1, 2)).view(-1, 1, 1, 1, 1)
    task = ConsistencyDistillation(solver=Says(answer), empty=empty, motion=0.05 * scored)
    drawn = drawn | dict(motion=torch.tensor([0.0, 0.05, 0.05]) * scored)
    score = clips(T2V, 3, 9, torch.float64) if scored else None
    assert not task.wants_teacher and ConsistencyDistillation().wants_teacher
    x_t = task.noisy(x_0, noise, drawn)
    got_x, got_noise = task.guided(x_t, drawn, dict(encoder_hidden_states=text), score)
    for i, (t, w, λ) in enumerate(zip((4, 504, 999), drawn["w"].tolist(), drawn["motion"].tolist())):
        kept = DDIMScheduler(**SD_NOISE).alphas_cumprod[t].double()
        ε = (2 + 2 * w) * noise[i]
        torch.testing.assert_close(got_x[i], (x_t[i] - (1 - kept).sqrt() * ε) / kept.sqrt(), atol=1e-3, rtol=1e-4)
        ε = ε - λ * (1 - kept.sqrt()).sqrt() * score[i] if scored else ε
        torch.testing.assert_close(got_noise[i], ε, atol=1e-5, rtol=1e-5)


def test_what_the_solver_lacks_is_said(exact):
    x_0, noise, drawn = exact
    rest = dict(x_t=x_0, drawn=drawn, told=dict(encoder_hidden_states=torch.zeros(3, 5, 12)), student=None)
    net, empty = Says(lambda x, t, **_: noise), torch.zeros(1, 5, 12)
    for task, line in (
        (ConsistencyDistillation(), "needs the teacher's estimate, or a solver network; neither came"),
        (ConsistencyDistillation(solver=net), "expected its tokens as `empty`; came none"),
        (ConsistencyDistillation(solver=net, empty=empty), "motion=0.05, but the data has no motion scores"),
    ):
        with pytest.raises(BadInput, match=line):
            task(x_0, **rest)


def test_network_is_told_the_scales_that_it_takes(teachers):
    network, x, drawn = teachers[T2V].network, clips(T2V, 2), dict(t=torch.tensor([504.0, 4.0]))
    drawn |= dict(w=torch.tensor([5.0, 15.0]), motion=torch.tensor([0.05, 0.0]))
    given = told(T2V, 2)
    task = ConsistencyDistillation()
    with torch.no_grad():
        got = task.epsilon(Wrapped(network), x, drawn, given)
        scales = dict(timestep_cond=guidance_embedding([5.0, 15.0]), motion_cond=guidance_embedding([0.05, 0.0]))
        sample, t = rearrange(x, "b f c h w -> b c f h w"), torch.tensor([504, 4])
        want = network(sample=sample, timestep=t, **scales, **given).sample
        torch.testing.assert_close(got, rearrange(want, "b c f h w -> b f c h w"))
        without = T2VTurboUNet(**FAMILIES[T2V].config | dict(time_cond_proj_dim=None, motion_cond_proj_dim=None)).eval()
        want = without(sample=sample, timestep=t, **given).sample
        torch.testing.assert_close(task.epsilon(without, x, drawn, given), rearrange(want, "b c f h w -> b f c h w"))


class Wrapped(nn.Module):
    "A network as data-parallel training wraps it."

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


# --- gradients, against finite differences in float64


def small(*size: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*size, generator=g, dtype=torch.float64).requires_grad_()


def test_flow_matching_gradient_and_value():
    task, x_0, noise = FlowMatching(), small(2, 2, 3, 2, 2).detach(), small(2, 2, 3, 2, 2, seed=1).detach()
    drawn, v = dict(s=torch.tensor([0.1, 1.0])), small(2, 2, 3, 2, 2, seed=2)
    x_s = task.noisy(x_0, noise, drawn)
    assert torch.equal(x_s[1], noise[1])

    def loss(v):
        net = lambda x, timestep, guidance, return_dict: (rearrange(v, "b f c h w -> b c f h w"),)
        return task(task.estimate(net, x_s, drawn, {}), x_0=x_0, drawn=drawn)

    assert gradcheck(loss, v)
    torch.testing.assert_close(loss(v), (v - (noise - x_0)).pow(2).mean(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(loss(noise - x_0), torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)


def test_consistency_gradient_stops_at_the_target():
    "The slope is that of a loss whose target is held, whoever gave the target."
    task, x_0, noise = ConsistencyDistillation(), small(2, 2, 3, 2, 2).detach(), small(2, 2, 3, 2, 2, seed=1).detach()
    drawn = dict(t=torch.tensor([4.0, 604.0]), w=torch.tensor([5.0, 6.0]), motion=torch.zeros(2))
    x_t, weight = task.noisy(x_0, noise, drawn), small(2, seed=3)
    student = lambda a: Says(lambda x, t: a[0] * rearrange(x, "b c f h w -> b f c h w") + a[1] * noise)
    now = weight.detach().clone()  # finite differences move `weight` itself
    x_tea = task.estimate(student(now + 0.1), x_t, drawn, {})

    def loss(a, target):
        x_hat = task.estimate(student(a), x_t, drawn, {})
        return task(x_hat, x_t=x_t, drawn=drawn, told={}, student=student(target), x_tea=x_tea)

    assert gradcheck(lambda a: loss(a, now), weight)
    held, live = (torch.autograd.grad(loss(weight, target), weight)[0] for target in (now, weight))
    assert torch.equal(held, live) and held.abs().min() > 0


@pytest.mark.parametrize("name", FAMILY_NAMES)
def test_judge_passes_the_gradient_to_the_clip(teachers, name):
    "From the heads' logits through encoder and noise to the student's clip."
    teacher = replace(teachers[name], network=copy.deepcopy(teachers[name].network).double())
    torch.manual_seed(1)
    given, mca, look = told(name, 1, torch.float64), MCA(Heads.of(teacher, width=8).double()), Encoder(teacher)
    noise, sigma = clips(name, 1, 1, torch.float64), torch.tensor([0.5], dtype=torch.float64)
    gen = lambda x: mca.gen(look(x, sigma, noise, given), pooled(given))
    x = clips(name, 1, 2, torch.float64).requires_grad_()
    if name == "tiny-hunyuan-video":  # its rotations are in single precision whatever comes: a longer step along the slope
        (slope,) = torch.autograd.grad(gen(x), x)
        h = 0.01 / slope.norm()
        with torch.no_grad():
            measured = (gen(x + h * slope) - gen(x - h * slope)) / (2 * h)
        assert measured.item() == pytest.approx(slope.pow(2).sum().item(), rel=1e-3)
    else:
        assert gradcheck(gen, x, fast_mode=True)


# --- ICD and MCA beyond SVD


def features(network: nn.Module, paths: dict[str, str], family: Family) -> dict[str, torch.Tensor]:
    if family.inputs:
        inputs = network_inputs(family)
    else:
        inputs = dict(sample=rearrange(clips(T2V, 1), "b f c h w -> b c f h w"), timestep=999, **told(T2V, 1))
    with torch.no_grad(), Features(network, paths) as seen:
        prunable(network)(**inputs)
    return seen


@pytest.mark.parametrize(
    "name,gone,names",
    [
        (T2V, "D.3 M U.0 D.0.R.1 D.0.A.1 U.3.R.1 U.3.A.1", "D.0 D.1 D.2 U.1 U.2 U.3"),
        (T2V, "", "D.0 D.1 D.2 D.3 M U.0 U.1 U.2 U.3"),
        ("tiny-svd-vae", "Mid.R.1 Mid.A.0 Up.3.R.1 Up.3.R.2", "Mid Up.0 Up.1 Up.2 Up.3"),
        ("tiny-svd-vae", "Mid", "Up.0 Up.1 Up.2 Up.3"),
    ],
)
def test_stages_pair_at_equal_addresses_and_shapes(name, gone, names):
    plan, whole = Plan.dropping(name, *gone.split()), network_of(name)
    student = cut(copy.deepcopy(whole), plan.dropped)
    found = pairs(plan, whole)
    assert [*found] == names.split() and pairs(student, whole) == found
    ours, theirs = (features(n, {k: p[i] for k, p in found.items()}, FAMILIES[name]) for i, n in enumerate((student, whole)))
    assert {k: f.shape for k, f in ours.items()} == {k: f.shape for k, f in theirs.items()}
    apart = {k: theirs for k, (_, theirs) in found.items() if theirs != {b.name: b.path for b in blocks(whole, "stage")}[k]}
    assert apart == ({"D.2": "down_blocks.2.temp_attentions.1"} if "D.3" in gone else {})


RUNS = [
    ("tiny-hunyuan-video", "DS.00 DS.05 DS.06 DS.19 SS.00 SS.38 SS.39", {"DS.04": "DS.06", "DS.18": "SS.00", "SS.37": "SS.39"}),
    ("tiny-hunyuan-video", "", {"DS.19": "DS.19", "SS.39": "SS.39"}),
    ("tiny-wan-t2v", "B.01 B.02 B.28", {"B.00": "B.02", "B.27": "B.28", "B.29": "B.29"}),
    ("tiny-cogvideox-2b", "B.00 B.07", {"B.06": "B.07", "B.29": "B.29"}),
]


@pytest.mark.parametrize("name,gone,ends", RUNS)
def test_transformers_pair_where_a_run_of_kept_blocks_ends(name, gone, ends):
    plan, whole = Plan.dropping(name, *gone.split()), network_of(name)
    student = make_student(whole, plan)
    found = pairs(plan, whole)
    assert pairs(student, whole) == found
    ours, theirs = ({b.path: b.name for b in blocks(n)} for n in (student, whole))
    assert {ours[a]: theirs[b] for a, b in found.values()} == ends and [*found] == [*ends]
    f_stu = features(student, {k: p for k, (p, _) in found.items()}, FAMILIES[name])
    with ablated(whole, *plan.dropped):  # a gap that does nothing: then the partners are the same
        f_tea = features(whole, {k: p for k, (_, p) in found.items()}, FAMILIES[name])
    assert ICD()(f_stu, f_tea)[0] == 0
    assert not plan.dropped or ICD()(f_stu, features(whole, {k: p for k, (_, p) in found.items()}, FAMILIES[name]))[0] > 0


def test_fewer_pairs():
    whole = skeleton("hunyuan-video")
    student = cut(skeleton("hunyuan-video"), Plan.paper("hunyuan-video").dropped)
    found = pairs(student, whole)
    assert len(found) == 22
    for most in (1, 2, 5, 21, 22, 99):
        fewer = pairs(student, whole, most)
        assert len(fewer) == min(most, 22) and [*fewer][-1] == "SS.39" and fewer.items() <= found.items()
    with pytest.raises(BadInput, match="at most 0 pairs; expected 1 or more"):
        pairs(student, whole, 0)


def test_recomputed_activations_change_nothing(teachers):
    "A transformer's hooks sit on the very modules whose activations are recomputed."
    teacher = teachers["tiny-hunyuan-video"]
    grads = []
    for on in (False, True):
        student = make_student(teacher.network, Plan.paper("tiny-hunyuan-video")).requires_grad_(True).train()
        judge = replace(teacher, network=copy.deepcopy(teacher.network).train())
        for m in (student, judge.network):
            m.enable_gradient_checkpointing() if on else m.disable_gradient_checkpointing()
        terms = step(judge, student, FlowMatching(), most=5)
        (terms["task"] + terms["icd"] + terms["mca"]).backward()
        grads.append([p.grad for p in student.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_places_of_the_judge(teachers):
    assert eyes(teachers[T2V].network) == {f"D.{i}": f"down_blocks.{i}" for i in range(4)}
    assert [*eyes(teachers["tiny-hunyuan-video"].network)] == ["DS.01", "DS.04", "DS.06", "DS.09"]
    with pytest.raises(BadInput, match="entry 'image', but tiny-hunyuan-video is shown no first frame"):
        name = "tiny-hunyuan-video"
        Encoder(teachers[name], "image")(clips(name, 1), torch.ones(1), clips(name, 1), told(name, 1))


def test_patches_become_pictures_in_the_network_s_own_order(teachers):
    network, x = teachers["tiny-hunyuan-video"].network, clips("tiny-hunyuan-video", 2)
    with torch.no_grad():
        patches = network.x_embedder.proj(rearrange(x, "b f c h w -> b c f h w"))
        tokens = network.x_embedder(rearrange(x, "b f c h w -> b c f h w"))
    assert torch.equal(pictures(tokens, x), rearrange(patches, "b c f h w -> (b f) c h w"))


def test_judge_sees_the_noise_that_the_family_knows(teachers):
    "Against a forward that is put together by hand."
    x, n = clips(T2V, 2), clips(T2V, 2, 1)
    kept = DDIMScheduler(**SD_NOISE).alphas_cumprod[[100, 700]]
    sample = kept.sqrt().view(-1, 1, 1, 1, 1) * x + (1 - kept).sqrt().view(-1, 1, 1, 1, 1) * n
    given = dict(sample=rearrange(sample, "b f c h w -> b c f h w"), timestep=torch.tensor([100, 700]))
    given |= dict(timestep_cond=guidance_embedding([7.5] * 2), motion_cond=guidance_embedding([0.0, 0.05]))
    check_seen(teachers[T2V], x, ((1 - kept) / kept).sqrt(), n, given)
    x, n = clips("tiny-hunyuan-video", 2), clips("tiny-hunyuan-video", 2, 1)
    sample = torch.stack([0.8 * x[0] + 0.2 * n[0], 0.25 * x[1] + 0.75 * n[1]])
    given = dict(hidden_states=rearrange(sample, "b f c h w -> b c f h w"), timestep=torch.tensor([200.0, 750.0]))
    check_seen(teachers["tiny-hunyuan-video"], x, torch.tensor([0.25, 3.0]), n, given | dict(guidance=torch.full((2,), 1000.0)))


def check_seen(teacher, x, sigma, noise, given):
    conditions = told(teacher.family.name, 2)
    with torch.no_grad(), Features(teacher.network, eyes(teacher.network)) as want:
        teacher.network(**given, **conditions)
    with torch.no_grad():
        seen = Encoder(teacher)(x, sigma, noise, conditions)
    for a, b in zip(seen, want.values(), strict=True):
        torch.testing.assert_close(a, pictures(b, x), atol=2e-3, rtol=2e-3)


def test_pooled_leaves_padding_out():
    given = told("tiny-hunyuan-video", 2)
    e = pooled(given)
    assert e.shape == (2, 1, 12)
    text = given["encoder_hidden_states"]
    torch.testing.assert_close(e[:, 0], torch.stack([text[0].mean(0), text[1, :3].mean(0)]))
    image = torch.randn(3, 1, 64)
    assert torch.equal(pooled(dict(encoder_hidden_states=image)), image)  # SVD's one token, to the last bit


# --- rewards


def test_reward_gradient_and_the_frames_that_it_reads():
    score = lambda clips, captions: (clips.mean((1, 2, 3, 4)) * torch.tensor([len(c) for c in captions])).tanh()
    x = small(2, 9, 1, 2, 2)
    reward = lambda x: Reward(score, 0.5, frames=4)(x, ["a", "abc"], torch.sigmoid, torch.Generator().manual_seed(1))
    assert gradcheck(reward, x)
    reward(x).backward()
    read = x.grad.abs().sum((2, 3, 4)) > 0
    assert torch.equal(read[0], read[1]) and read.sum(1).tolist() == [4, 4]
    frames = read[0].nonzero().flatten()
    assert frames.diff().unique().tolist() == [2]
    want = -0.5 * score(x[:, frames].sigmoid(), ["a", "abc"]).mean()
    torch.testing.assert_close(reward(x), want)


def test_clip_score_is_the_cosine_of_its_model():
    class Toy(nn.Module):
        "Embeds a picture as the mean of its colours, a text as its first three numbers."

        class config:
            class vision_config:
                image_size = 4

        def get_image_features(self, pixels):
            return pixels.mean((2, 3))

        def get_text_features(self, input_ids):
            return input_ids[:, :3].float()

    clip = CLIPScore(Toy(), lambda captions: dict(input_ids=torch.tensor([[1, 2, 3, 4]] * len(captions))))
    flat = torch.tensor([0.2, 0.5, 0.7]).view(1, 1, 3, 1, 1).expand(2, 3, 3, 6, 10)
    mean, spread = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    want = torch.cosine_similarity((torch.tensor([0.2, 0.5, 0.7]) - mean) / spread, torch.tensor([1.0, 2, 3]), 0)
    torch.testing.assert_close(clip(flat, ["", ""]), want.expand(2), atol=1e-5, rtol=0)
