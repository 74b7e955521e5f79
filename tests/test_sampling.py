"Clips from every family: whole, without blocks, cut; parts from a folder; what is refused."

from dataclasses import replace

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from small import MEAN, NAMES, material, small_cut

from vdmini.core import BadInput
from vdmini.evaluate import evaluate
from vdmini.families import FAMILIES, SIGMA_MAX, clip_size
from vdmini.plan import Plan, ablated
from vdmini.surgery import make_student
from vdmini.sweep import sweep
from vdmini.t2v import T2VTurboUNet, guidance_embedding, official_keys
from vdmini.teachers import load_teacher, random_teacher

RANDOM = [n for n in FAMILIES if n.startswith("tiny-") and not FAMILIES[n].bundled]
each_random = pytest.mark.parametrize("name", RANDOM)


@pytest.fixture(scope="module")
def teacher():
    "A function: the random teacher of a family, always the same one."
    made = {}
    return lambda name: made.setdefault(name, random_teacher(name))


def steps(teacher):
    return dict(steps=2) if "steps" in teacher.family.sampler.settings else {}


@pytest.fixture
def quick(monkeypatch):
    "A function: a teacher that samples in two steps unless told otherwise."

    def hurried(t):
        own = t.family.sampler
        family = replace(t.family, sampler=replace(own, settings=own.settings | steps(t)))
        monkeypatch.setitem(FAMILIES, family.name, family)
        return replace(t, family=family)

    return hurried


@each_random
def test_from_teacher_to_clip(name, teacher, quick):
    t = quick(teacher(name))
    real = material(t.family)
    table = sweep(t, real, "stage", MEAN, progress=False)
    stages = table[table.metric == "content_drift"].set_index("block").value
    assert stages["none"] == 0 and (stages.drop("none") > 0).all()

    plan = small_cut(name)
    student = replace(t, network=make_student(t.network, plan))
    whole, cut = t.answer(real.request), student.answer(real.request)
    assert whole.shape == cut.shape == real.clips.shape and whole.dtype == torch.float32
    assert 0 <= cut.min() and cut.max() <= 1 and not torch.equal(whole, cut)
    if not t.family.layout.skips:  # a U-Net's student loses skips, too
        with ablated(t.network, *plan.dropped):
            assert torch.equal(t.answer(real.request), cut)
    assert torch.equal(t.answer(real.request), whole)


@each_random
def test_the_way_in_bfloat16(name):
    "As it goes on a GPU; clips are float32 whatever the weights are."
    t = random_teacher(name, dtype=torch.bfloat16)
    t, real = t.sampled(**steps(t)), material(t.family)
    student = make_student(t.network, small_cut(name))
    table = evaluate(t, dict(student=student), real, MEAN, repeats=1)
    assert {p.dtype for m in (t.network, t.vae, student) for p in m.parameters()} == {torch.bfloat16}
    assert t.answer(real.request).dtype == torch.float32
    assert table.value.isna().sum() == 0 and table.set_index(["model", "metric"]).value["student", "content_drift"] > 0
    drift = sweep(t, real, "stage", MEAN, progress=False).query("metric == 'content_drift' and block != 'none'").value
    assert (drift > 0).all()


@each_random
def test_all_that_is_made_up_is_where_it_is_wanted(name):
    "The meta device stands for a GPU here: what constructors leave on the CPU would not meet the rest there."
    t = random_teacher(name, device="meta", dtype=torch.bfloat16)
    modules = [t.network, t.vae, *(m for m in t.parts.values() if isinstance(m, torch.nn.Module))]
    assert all(p.is_meta for m in modules for p in (*m.parameters(), *m.buffers()))
    assert {p.dtype for m in modules for p in m.parameters()} == {torch.bfloat16}


@each_random
def test_a_clip_depends_on_its_seed_and_place_alone(name, teacher):
    t = teacher(name)
    request = material(t.family).request
    clips = t.answer(request, seed=1, **steps(t))
    # random weights are chaotic: rounding, which a batch changes, is enlarged on the way
    assert torch.allclose(t.answer(request, seed=1, batch=1, **steps(t)), clips, atol=0.02)
    assert torch.allclose(t.answer(request[:2], seed=1, **steps(t)), clips[:2], atol=0.02)
    if "clips" not in t.family.sampler.takes:
        assert not torch.allclose(t.answer(request, seed=2, **steps(t)), clips, atol=0.02)


@each_random
def test_what_is_asked_for_makes_a_difference(name, teacher):
    t = teacher(name)
    request = material(t.family).request
    key = t.family.sampler.takes[0]
    other = replace(request, **{key: request.given[key][::-1] if key == "prompts" else request.given[key].flip(0)})
    assert not torch.equal(t.answer(request, **steps(t)), t.answer(other, **steps(t)))


def test_one_step_of_svd_is_sfv(teacher):
    "The many-step sampler with one step against eq. 2 by hand."
    t = teacher("tiny-svd-clip")
    request, noise = material(t.family).request, t.noise(3)
    told = t.tell(request)
    by_hand = t.decode(
        t.denoise(SIGMA_MAX * noise, SIGMA_MAX, **told | dict(added_time_ids=torch.tensor([[6.0, 127, 0]]).expand(3, 3)))
    )
    sampled = t.sample(request, told, noise, range(3), steps=1, augmentation=0.0)
    assert torch.allclose(sampled, by_hand, atol=1e-3)


def test_the_bundled_family_with_random_weights():
    clip = load_teacher("random:tiny-svd").generate(torch.rand(1, 3, 32, 32), torch.zeros(1, 2, dtype=torch.long))
    assert clip.shape == (1, *clip_size(FAMILIES["tiny-svd"])[:1], 3, 32, 32)


def test_guidance_grows_only_over_several_steps(teacher):
    t = teacher("tiny-svd-clip")
    request = material(t.family).request
    assert torch.equal(t.answer(request, steps=1, guidance=3.0), t.answer(request, steps=1, guidance=1.0))
    assert not torch.equal(t.answer(request, steps=2, guidance=3.0), t.answer(request, steps=2, guidance=1.0))


@pytest.fixture
def folder(teacher, tmp_path):
    "A function: the folder of a family's pipeline with random weights."

    def saved(name):
        teacher(name).pipeline.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


@pytest.mark.parametrize("name", [n for n in RANDOM if FAMILIES[n].sampler.pipeline and "frames" in FAMILIES[n].sampler.takes])
def test_a_pipeline_from_a_folder(name, folder, teacher, tmp_path):
    t, root = teacher(name), folder(name)
    found, request = load_teacher(root), material(t.family).request
    assert found.family == t.family and {*found.parts} == {*t.parts}
    assert torch.equal(found.answer(request, **steps(t)), t.answer(request, **steps(t)))
    # a student borrows the rest from its base
    plan = Plan.dropping(name, "D.1.R.1", "D.1.A.1", "U.2.R.1", "U.2.A.1")
    make_student(t.network, plan).save_pretrained(tmp_path / "student")
    with pytest.raises(BadInput, match="holds no VAE"):
        load_teacher(tmp_path / "student")
    student = load_teacher(tmp_path / "student", base=str(root))
    cut = replace(t, network=make_student(t.network, plan))
    # equal but for rounding: arithmetic depends on where in memory the weights lie
    assert torch.allclose(student.answer(request, **steps(t)), cut.answer(request, **steps(t)), atol=1e-3)


def test_a_pipeline_of_which_one_variant_is_there(teacher, tmp_path):
    t = teacher("tiny-svd-clip")
    t.pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    request = material(t.family).request
    assert torch.equal(load_teacher(tmp_path).answer(request, **steps(t)), t.answer(request, **steps(t)))


def test_the_decoder_from_a_folder(teacher, tmp_path):
    t = teacher("tiny-svd-vae")
    t.network.save_pretrained(tmp_path / "vae")
    request = material(t.family).request
    assert torch.equal(load_teacher(tmp_path / "vae").answer(request), t.answer(request))


def test_parts_that_are_missing_are_named(folder, tmp_path):
    root = folder("tiny-svd-clip")
    for file in (root / "image_encoder").iterdir():
        file.unlink()
    with pytest.raises(BadInput, match="no whole StableVideoDiffusionPipeline .*image_encoder") as e:
        load_teacher(root)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("model", ["svd", "somebody/some-model", "t2v-turbo-v2"])
def test_offline_and_absent(model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        BadInput,
        match="(model_index.json and the weights|unet_mg.pt) of .*hf download .*--local-dir DIR, then name DIR.* as the model",
    ):
        load_teacher(model)


def test_text_encoders_are_asked(teacher, tmp_path):
    "HunyuanVideo with its own kinds of text encoders, small and random, instead of random numbers."
    t = teacher("tiny-hunyuan-video")
    real = replace(t, parts=t.parts | text_encoders(t))
    told = real.tell(material(t.family).request)
    assert told["encoder_hidden_states"].shape[::2] == (3, t.family.tokens[1]) and told["pooled_projections"].shape == (3, 6)
    assert told["encoder_attention_mask"].shape == told["encoder_hidden_states"].shape[:2]
    for tokens in told["encoder_hidden_states"], told["pooled_projections"]:  # each prompt gets through
        assert all(not torch.equal(tokens[0], other) for other in tokens[1:])
    clips = real.answer(material(t.family).request, steps=2)
    assert clips.shape == material(t.family).clips.shape and clips.isfinite().all()
    real.pipeline.save_pretrained(tmp_path / "p")
    assert torch.equal(load_teacher(tmp_path / "p").answer(material(t.family).request, steps=2), clips)


def test_an_official_checkpoint_borrows_the_rest(teacher, tmp_path, monkeypatch):
    "T2V-Turbo's file holds the network alone; VAE and text encoder come from a Stable Diffusion folder."
    from transformers import CLIPTextConfig, CLIPTextModel

    t = teacher("tiny-t2v-turbo-v2")
    names = official_keys(t.network)
    save_file({names[k]: w.clone() for k, w in t.network.state_dict().items()}, tmp_path / "unet.safetensors")
    whole = T2VTurboUNet.__init__
    monkeypatch.setattr(T2VTurboUNet, "__init__", lambda self, **config: whole(self, **t.family.config | config))
    letters = tokenizer()
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(letters),
            hidden_size=12,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            eos_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=12
    )
    image = StableDiffusionPipeline(
        t.vae,
        text.eval(),
        letters,
        unet,
        PNDMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    image.save_pretrained(tmp_path / "sd")
    found = load_teacher(tmp_path / "unet.safetensors", base=str(tmp_path / "sd"))
    assert found.family == t.family and type(found.pipeline.scheduler).__name__ == "LCMScheduler"
    request = material(t.family).request
    told = found.tell(request)["encoder_hidden_states"]
    assert told.shape == (3, 77, 12) and not torch.equal(told[0], told[1])
    clips = found.answer(request, **steps(t))
    assert clips.shape == material(t.family).clips.shape
    found.pipeline.save_pretrained(tmp_path / "turbo")
    assert torch.allclose(load_teacher(tmp_path / "turbo").answer(request, **steps(t)), clips, atol=0.02)


def test_turbo_against_its_formula(teacher):
    "Two steps of T2V-Turbo by hand: boundary scalings, fresh noise, motion guidance off below 500."
    t = teacher("tiny-t2v-turbo-v2")
    request, noise = material(t.family).request, t.noise(3)
    told, dice = t.tell(request), [torch.Generator().manual_seed(i) for i in range(3)]
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    x = noise.transpose(1, 2)
    for s, motion in ((999, 0.05), (499, 0.0)):
        scales = dict(timestep_cond=guidance_embedding([7.5] * 3), motion_cond=guidance_embedding([motion] * 3))
        with torch.no_grad():
            e = t.network(x, s, **told, **scales, fps=8).sample
        x_0 = (x - (1 - alphas[s]).sqrt() * e) / alphas[s].sqrt()
        scaled = s * 10
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        x_0 = c_out * x_0 + c_skip * x
        fresh = torch.stack([torch.randn(x[0].shape, generator=g) for g in dice])
        x = alphas[499].sqrt() * x_0 + (1 - alphas[499]).sqrt() * fresh
    by_hand = t.decode(x_0.transpose(1, 2))
    assert torch.allclose(t.sample(request, told, noise, range(3), steps=2), by_hand, atol=1e-3)


def tokenizer(*words: str):
    "It knows these words, or single characters."
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = words or [*map(chr, range(32, 127)), "\n"]
    vocabulary = {c: i for i, c in enumerate(["<pad>", "<eos>", "<unk>", *known])}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace() if words else pre_tokenizers.Split("", "isolated")
    marks = dict(pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")
    return PreTrainedTokenizerFast(tokenizer_object=found, model_max_length=77, **marks)


def text_encoders(t):
    "A language model whose tokenizer knows the words of our captions, CLIP and one that knows single characters."
    from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

    letters, (_, width), pooled = tokenizer(), t.family.tokens, t.network.config.pooled_projection_dim
    words = tokenizer(*dict.fromkeys(" ".join(NAMES).split()))  # letters would fill what there is room for before the prompt
    sizes = dict(vocab_size=len(letters), intermediate_size=16)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        llama = LlamaModel(LlamaConfig(hidden_size=width, num_hidden_layers=3, num_attention_heads=2, pad_token_id=0, **sizes))
        clip = CLIPTextModel(
            CLIPTextConfig(hidden_size=pooled, num_hidden_layers=1, num_attention_heads=2, eos_token_id=1, **sizes)
        )
    return dict(text_encoder=llama.eval(), tokenizer=words, text_encoder_2=clip.eval(), tokenizer_2=letters)


def test_bad_requests(teacher):
    svd, hunyuan = teacher("tiny-svd-clip"), teacher("tiny-hunyuan-video")
    with pytest.raises(BadInput, match="tiny-hunyuan-video needs prompts for each clip; came: frames"):
        hunyuan.generate(torch.rand(1, 3, 32, 48))
    with pytest.raises(BadInput, match="no setting of tiny-svd-clip 'step'; nearest: steps"):
        svd.generate(torch.rand(1, 3, 64, 64), step=3)
    with pytest.raises(BadInput, match="3 frames of 64×70 pixels do not fit tiny-svd-clip; nearest: 3 frames of 64×64"):
        svd.generate(torch.rand(1, 3, 64, 70))
    with pytest.raises(BadInput, match="13 frames .* nearest: 9 frames"):
        hunyuan.generate(prompts=("a fox",), size=(13, 32, 48))
    with pytest.raises(BadInput, match="needs frames for each clip; came: nothing"):
        svd.generate()
    for setting, said in (
        (dict(steps=0), "whole number"),
        (dict(steps=2.5), "whole number"),
        (dict(guidance=float("nan")), "finite"),
    ):
        with pytest.raises(BadInput, match=said):
            hunyuan.generate(prompts=("a fox",), **setting)
    with pytest.raises(BadInput, match="0 clips in one forward"):
        hunyuan.generate(prompts=("a fox",), batch=0)
    with pytest.raises(BadInput, match="2 clips with 1 motion"):
        load_teacher("tiny-svd").generate(torch.rand(2, 3, 32, 32), torch.zeros(1, 2, dtype=torch.long))
