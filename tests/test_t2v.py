"T2V-Turbo-v2's network: parity with the official one, its names, its files, and which files it refuses."

import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import t2v_parity
import torch
from safetensors.torch import save_file

from vdmini.core import BadInput, samples
from vdmini.plan import Plan
from vdmini.surgery import weight_names
from vdmini.t2v import (
    PROJECTIONS,
    T2VTurboUNet,
    guidance_embedding,
    load_official,
    official_blocks,
    official_config,
    official_keys,
)

REFERENCE = Path("/work/shared/reference")
TINY = dict(block_out_channels=(32, 32, 64, 64), attention_head_dim=8, cross_attention_dim=16, layers_per_block=1)
OFFICIAL_TINY = dict(
    in_channels=4,
    out_channels=4,
    model_channels=32,
    attention_resolutions=[2],
    num_res_blocks=1,
    channel_mult=[1, 2],
    num_head_channels=16,
    context_dim=24,
    temporal_conv=True,
    use_relative_position=False,
    addition_attention=True,
    fps_cond=True,
    time_cond_proj_dim=256,
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return T2VTurboUNet(**TINY).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def official(network):
    "The tiny network's weights as the official code spells them."
    weights = network.state_dict()
    state = {theirs: weights[ours].clone() for ours, theirs in official_keys(network).items()}
    for k in ("init_attn.0.proj_in.weight", "init_attn.0.proj_out.weight"):
        state[k] = state[k][..., None]
    return state


@pytest.fixture(scope="module")
def inputs():
    g = torch.Generator().manual_seed(0)
    return dict(
        sample=torch.randn(2, 4, 3, 8, 8, generator=g),
        timestep=torch.tensor([999, 459]),
        encoder_hidden_states=torch.randn(2, 77, 16, generator=g),
        timestep_cond=guidance_embedding([7.5, 5.0]),
        motion_cond=guidance_embedding([0.05, 0.0]),
        fps=torch.tensor([8, 24]),
    )


def fresh(**config) -> T2VTurboUNet:
    "Another tiny network, with random weights of its own."
    return T2VTurboUNet(**TINY | config).eval().requires_grad_(False)


def meta(**config) -> T2VTurboUNet:
    "The structure at official size, without weights."
    with torch.device("meta"):
        return T2VTurboUNet(**config)


def same(one: T2VTurboUNet, other: T2VTurboUNet) -> bool:
    "Whether every weight is the same to the last bit."
    theirs = other.state_dict()
    return len(theirs) == len(one.state_dict()) and all(torch.equal(w, theirs[k]) for k, w in one.state_dict().items())


@pytest.mark.slow
@pytest.mark.skipif(not REFERENCE.exists(), reason="the official network's output is not here")
def test_parity_with_the_official_network():
    files = [str(REFERENCE / f"t2v_turbo_parity.{end}") for end in ("json", "npz")]
    done = subprocess.run([sys.executable, t2v_parity.__file__, *files], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(done.stdout.split(":")[1].split()[0]) <= 1e-4


@pytest.fixture
def pair(tmp_path):
    "A reference of the official form, made by our own network, of other sizes and without motion guidance."
    with torch.device("meta"):
        like = T2VTurboUNet(**official_config(OFFICIAL_TINY))
    weights = like.state_dict()
    shapes = {theirs: list(weights[ours].shape) for ours, theirs in official_keys(like).items()}
    reference = dict(config=OFFICIAL_TINY, salt="own", keys=shapes)
    rng = np.random.default_rng(0)
    arrays = dict(
        sample=rng.standard_normal((1, 4, 2, 4, 4)).astype(np.float32),
        timestep=np.array([500]),
        encoder_hidden_states=rng.standard_normal((1, 5, 24)).astype(np.float32),
        timestep_cond=rng.standard_normal((1, 256)).astype(np.float32),
        fps=np.array(8),
    )
    with torch.inference_mode():
        out = t2v_parity.rebuild(reference)(**{k: torch.from_numpy(v) for k, v in arrays.items()}).sample
    return tmp_path, reference, arrays | dict(output=out.numpy())


def parity(folder: Path, reference: dict, arrays: dict) -> int:
    (folder / "r.json").write_text(json.dumps(reference))
    np.savez(folder / "r.npz", **arrays)
    return t2v_parity.main(str(folder / "r.json"), str(folder / "r.npz"))


def test_parity_exit_codes(pair, capsys):
    folder, reference, arrays = pair
    assert parity(folder, reference, arrays) == 0
    assert parity(folder, dict(config=OFFICIAL_TINY, salt="own"), arrays) == 2
    off, nan = arrays["output"].copy(), arrays["output"].copy()
    off.flat[3] += 2e-4 * np.abs(off).max()
    nan.flat[3] = np.nan
    assert parity(folder, reference, arrays | dict(output=off)) == 1
    assert parity(folder, reference, arrays | dict(output=nan)) == 1
    assert parity(folder, reference, arrays | dict(fps=np.array(24))) == 1
    assert parity(folder, reference | dict(salt="other"), arrays) == 1
    assert parity(folder, reference | dict(config=OFFICIAL_TINY | dict(use_causal_attention=True)), arrays) == 2
    assert "use_causal_attention=True (expected False)" in capsys.readouterr().err


def refused(folder: Path, capsys) -> str:
    "What is said of the two files; one line, and exit code 2."
    capsys.readouterr()
    assert t2v_parity.main(str(folder / "r.json"), str(folder / "r.npz")) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    return said.err


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda r, a: r.pop("config"), "config"),
        (lambda r, a: r.update(config=3), "int"),
        (lambda r, a: r["keys"].update({"out.2.bias": [5]}), "misshapen: 1"),
        (lambda r, a: r["keys"].pop("out.2.bias"), "missing: 1 (out.2.bias)"),
        (lambda r, a: a.pop("sample"), "arrays missing: ['sample']"),
        (lambda r, a: a.update(noise=a["sample"]), "not known: ['noise']"),
        (lambda r, a: a.update(output=a["output"][:, :, :1]), "an output of [1, 4, 1, 4, 4]; expected [1, 4, 2, 4, 4]"),
        (lambda r, a: a.update(encoder_hidden_states=a["encoder_hidden_states"][..., :5]), "RuntimeError"),
    ],
)
def test_references_that_parity_cannot_use(pair, spoil, message, capsys):
    folder, reference, arrays = pair
    spoil(reference, arrays)
    parity(folder, reference, arrays)
    assert message in refused(folder, capsys)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("r.npz", lambda whole: whole[:3000], "BadZipFile"),
        ("r.npz", lambda whole: b"", "EOFError"),
        ("r.json", lambda whole: whole[:3000], "JSONDecodeError"),
        ("r.json", None, "FileNotFoundError"),
    ],
)
def test_files_that_parity_cannot_use(pair, name, content, message, capsys):
    folder, reference, arrays = pair
    parity(folder, reference, arrays)
    file = folder / name
    file.write_bytes(content(file.read_bytes())) if content else file.unlink()
    assert message in refused(folder, capsys)


# From the official code's own listing of the full-size network.
OFFICIAL = {
    "time_embed.0.weight": [1280, 320],
    "combine_proj.weight": [320, 640],
    "init_attn.0.transformer_blocks.0.attn2.to_k.weight": [512, 512],
    "input_blocks.4.0.skip_connection.weight": [640, 320, 1, 1],
    "input_blocks.5.1.transformer_blocks.0.attn2.to_k.weight": [640, 1024],
    "input_blocks.5.2.transformer_blocks.0.attn2.to_k.weight": [640, 640],
    "input_blocks.6.0.op.weight": [640, 640, 3, 3],
    "input_blocks.11.0.temopral_conv.conv1.2.weight": [1280, 1280, 3, 1, 1],
    "middle_block.3.emb_layers.1.weight": [1280, 1280],
    "output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
    "output_blocks.5.0.in_layers.2.weight": [1280, 1920, 3, 3],
    "output_blocks.5.3.conv.weight": [1280, 1280, 3, 3],
    "output_blocks.11.2.proj_out.weight": [320, 320],
    "out.2.weight": [4, 320, 3, 3],
}


def test_official_names_and_shapes():
    whole = meta()
    weights = whole.state_dict()
    shapes = {theirs: list(weights[ours].shape) for ours, theirs in official_keys(whole).items()}
    assert len(shapes) == len(weights) == 1487
    assert {k: shapes.get(k) for k in OFFICIAL} == OFFICIAL


def test_removing_what_vdmini_removes_leaves_its_count():
    whole = meta()
    gone = {f"input_blocks.{i}" for i in (2, 5, 9, 10, 11)} | {"middle_block"} | {f"output_blocks.{i}" for i in (0, 1, 2, 7, 10)}
    keys = official_keys(whole)
    left = {k: p.numel() for k, p in whole.named_parameters() if not any(keys[k].startswith(f"{g}.") for g in gone)}
    assert sum(p.numel() for p in whole.parameters()) == 1_413_653_060
    assert sum(left.values()) == 817_019_780
    plan = Plan.paper("t2v-turbo-v2")
    assert sorted(weight_names(whole, plan.dropped).values()) == sorted(left)


def test_official_blocks_are_modules_of_ours():
    whole = meta(time_cond_proj_dim=None, motion_cond_proj_dim=None)
    modules = dict(whole.named_modules())
    blocks = official_blocks(whole)
    assert not [ours for ours in blocks if ours not in modules]
    assert "time_embedding.combine_proj" not in blocks and "down_blocks.3.attentions.0" not in blocks


@pytest.mark.parametrize(
    "config", [{}, dict(motion_cond_proj_dim=None), dict(time_cond_proj_dim=None, motion_cond_proj_dim=None)]
)
def test_saved_and_read_back(tmp_path, config, inputs):
    told = {k: v for k, v in inputs.items() if config.get(f"{k.replace('timestep', 'time')}_proj_dim", 256)}
    network = fresh(**config)
    network.save_pretrained(tmp_path)
    again, notes = T2VTurboUNet.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(notes.values())
    assert [again.config[f"{k}_cond_proj_dim"] for k in ("time", "motion")] == [
        network.config[f"{k}_cond_proj_dim"] for k in ("time", "motion")
    ]
    assert same(again, network)
    assert torch.allclose(again(**told, return_dict=False)[0], network(**told).sample, atol=1e-4)


def test_each_condition_matters_and_clips_of_a_batch_do_not_mix(network, inputs):
    exact = copy.deepcopy(network).double()  # rounding differs with the size of a batch
    given = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    whole = exact(**given).sample
    for name, other in dict(timestep_cond=guidance_embedding([7.5, 5.1]), motion_cond=None, fps=8, timestep=459).items():
        assert not torch.allclose(exact(**given | {name: other}).sample, whole, atol=1e-6)
    assert torch.allclose(exact(**{k: v[:1] for k, v in given.items()}).sample, whole[:1], atol=1e-10)


def test_half_precision(inputs):
    half = fresh().to(torch.bfloat16)
    given = inputs | {k: inputs[k].bfloat16() for k in ("sample", "encoder_hidden_states")}
    out = half(**given).sample
    assert out.dtype == torch.bfloat16 and out.isfinite().all()


def test_every_way_that_the_official_file_comes(tmp_path, network, official):
    lightning = {f"model.diffusion_model.{k}": v for k, v in official.items()}
    others = {"first_stage_model.conv.weight": torch.zeros(3), "betas": torch.zeros(1000)}
    torch.save(official, tmp_path / "flat.pt")
    torch.save(official, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(dict(state_dict=lightning | others, epoch=3), tmp_path / "nested.ckpt")
    save_file(lightning | others, tmp_path / "nested.safetensors")
    for file in ("flat.pt", "old.pt", "nested.ckpt", "nested.safetensors"):
        assert same(network, load_official(tmp_path / file, fresh())), file
    with torch.device("meta"):
        shell = T2VTurboUNet(**TINY)
    assert same(network, load_official(tmp_path / "flat.pt", shell))


def test_numbers_take_the_network_s_format(tmp_path, official):
    save_file({k: v.half() for k, v in official.items()}, tmp_path / "half.safetensors")
    for network in (fresh(), meta(**TINY)):
        loaded = load_official(tmp_path / "half.safetensors", network)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.conv_in.weight, official["input_blocks.0.0.weight"].half().float())


@pytest.mark.parametrize("dims", [(256, 256), (256, None), (None, None)])
def test_without_a_network_the_file_says_which_scales_there_are(tmp_path, dims):
    whole = meta(time_cond_proj_dim=dims[0], motion_cond_proj_dim=dims[1])
    weights = whole.state_dict()
    # one number per weight, shown at its full size: a checkpoint of 1.4 B parameters in less than a megabyte
    torch.save({theirs: torch.zeros(1).expand(weights[k].shape) for k, theirs in official_keys(whole).items()}, tmp_path / "u.pt")
    assert (tmp_path / "u.pt").stat().st_size < 2_000_000
    network = load_official(tmp_path / "u.pt")
    assert (network.config.time_cond_proj_dim, network.config.motion_cond_proj_dim) == dims
    if dims == (None, None):
        assert load_official(tmp_path / "u.pt", base=True).config.motion_cond_proj_dim == 256


def test_base_checkpoint(tmp_path, official, inputs):
    old = {k: v for k, v in official.items() if k.split(".")[0] not in PROJECTIONS}
    torch.save(dict(state_dict=old), tmp_path / "model.ckpt")
    with pytest.raises(
        BadInput,
        match=r"missing: 3 \(combine_proj.weight, motion_cond_proj.weight, time_cond_proj.weight\); if it is .* base=True$",
    ):
        load_official(tmp_path / "model.ckpt", fresh())
    plain = load_official(tmp_path / "model.ckpt", fresh(time_cond_proj_dim=None, motion_cond_proj_dim=None))
    untold = {k: v for k, v in inputs.items() if not k.endswith("_cond")}
    begun = load_official(tmp_path / "model.ckpt", fresh(), base=True)
    assert torch.allclose(begun(**inputs).sample, plain(**untold).sample, atol=1e-6)
    del old["init_attn.0.norm.bias"]
    torch.save(dict(state_dict=old), tmp_path / "model.ckpt")
    with pytest.raises(BadInput, match=r"missing: 1 \(init_attn.0.norm.bias\)$"):
        load_official(tmp_path / "model.ckpt", fresh(), base=True)


class Evil:
    "Runs a command where a pickle is read without care."

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("how", ["zipped", "hidden", "plain", "old"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, official, how):
    mark, file = tmp_path / "it_ran", tmp_path / "unet_mg.pt"
    if how == "plain":
        file.write_bytes(pickle.dumps(Evil(mark), protocol=2))
    else:
        holds = Evil(mark) if how == "zipped" else official | {"input_blocks.0.0.weight": Evil(mark)}
        torch.save(holds, file, _use_new_zipfile_serialization=how != "old")
    with pytest.raises(BadInput, match="is refused: a pickle may run code, and this one asks for posix.system") as e:
        load_official(file, fresh())
    assert not mark.exists() and "\n" not in str(e.value)
    with contextlib.suppress(RuntimeError):  # it runs first, then the bare pickle is found to be no torch file
        torch.load(file, weights_only=False)
    assert mark.exists(), "it was never evil"


def spoil(state: dict, how: str) -> dict:
    "The official weights with something wrong with them."
    state = dict(state)
    if how == "missing":
        for k in [k for k in state if k.startswith("middle_block.0.in_layers")]:
            del state[k]
    elif how == "surplus":
        state["input_blocks.12.0.op.weight"] = torch.zeros(1)
    elif how == "misshapen":
        state["out.2.bias"] = torch.zeros(5)
    elif how == "no tensor":
        state["out.2.bias"] = 5
    return state


@pytest.mark.parametrize(
    "how,line",
    [
        ("missing", r"missing: 4 \(middle_block.0.in_layers.0.bias, middle_block.0.in_layers.0.weight, .*, …\)$"),
        ("surplus", r"surplus: 1 \(input_blocks.12.0.op.weight\)$"),
        ("misshapen", r"misshapen: 1 \(out.2.bias \[5\] for \[4\]\)$"),
        ("no tensor", r"missing: 1 \(out.2.bias\)$"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, official, how, line):
    torch.save(spoil(official, how), tmp_path / "u.pt")
    into = fresh()
    before = copy.deepcopy(into)
    with pytest.raises(BadInput, match=line) as e:
        load_official(tmp_path / "u.pt", into)
    assert "\n" not in str(e.value) and same(into, before)


def test_files_that_are_no_official_checkpoint(tmp_path, network, official):
    save_file(official, tmp_path / "half.safetensors")
    torch.save(official, tmp_path / "half.pt")
    for name in ("half.safetensors", "half.pt"):
        file = tmp_path / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / "text.pt").write_text("<html>not found</html>")
    (tmp_path / "empty.pt").touch()
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    torch.save(dict(state_dict=torch.zeros(1)), tmp_path / "tensor.pt")
    torch.save({3: torch.zeros(1), "x": torch.zeros(1)}, tmp_path / "numbered.pt")
    svd = samples("tiny-svd", "unet", "diffusion_pytorch_model.safetensors")
    lines = {
        tmp_path / "half.safetensors": "is damaged or only half there: SafetensorError",
        tmp_path / "half.pt": "is damaged or only half there",
        tmp_path / "text.pt": "is (damaged|refused)",
        tmp_path / "empty.pt": "is damaged or only half there",
        tmp_path / "list.pt": "holds no T2V-Turbo or VideoCrafter2 network: .*came: no keys",
        tmp_path / "tensor.pt": "holds no T2V-Turbo or VideoCrafter2 network: .*came: no keys",
        tmp_path / "numbered.pt": "holds no T2V-Turbo or VideoCrafter2 network: .*came: x",
        tmp_path / "none.pt": "cannot read .*none.pt",
        tmp_path / "none.safetensors": "cannot read .*none.safetensors",
        tmp_path: "cannot read",
        svd: "holds no T2V-Turbo or VideoCrafter2 network: expected a key that ends in input_blocks.0.0.weight",
    }
    for file, line in lines.items():
        with pytest.raises(BadInput, match=line) as e:
            load_official(file, network)
        assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "change,line",
    [
        (dict(temporal_selfatt_only=False), "temporal_selfatt_only=False .expected True"),
        (dict(transformer_depth=2), "transformer_depth=2 .expected 1"),
    ],
)
def test_official_config_that_this_network_cannot_be(change, line):
    with pytest.raises(BadInput, match=line):
        official_config(OFFICIAL_TINY | change)


def test_official_config_without_its_sizes_or_switches():
    for name, line in dict(context_dim="context_dim is not given", fps_cond="fps_cond=False .expected True").items():
        with pytest.raises(BadInput, match=line):
            official_config({k: v for k, v in OFFICIAL_TINY.items() if k != name})
