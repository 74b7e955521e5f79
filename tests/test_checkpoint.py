"Checkpoints cut from file to file, refused when damaged, sent to the hub, and dropped into diffusers' pipelines."

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_prune import STREAM, peak_of, random_checkpoint
from diffusers.models import modeling_utils
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import vdmini.export
from vdmini import card, checkpoint, places
from vdmini.card import model_card, push, student_plan
from vdmini.core import BadInput
from vdmini.cost import vdmini_cost
from vdmini.export import vdmini_prune
from vdmini.families import FAMILIES, skeleton
from vdmini.plan import Plan
from vdmini.surgery import VDMiniUNet, make_student
from vdmini.t2v import official_keys
from vdmini.teachers import load_network

WAN, TURBO = FAMILIES["tiny-wan-t2v"], FAMILIES["tiny-t2v-turbo-v2"]
ONE, INDEX = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"
PLAN = Plan.dropping("tiny-wan-t2v", "B.03", "B.17", how="a test")


def random(family, dtype=torch.float32):
    torch.manual_seed(0)
    return torch.nn.Module.to(family.network_class(**family.config), dtype).eval().requires_grad_(False)


def stored(folder: Path) -> dict:
    return {k: t for p in folder.glob("*.safetensors") for k, t in load_file(p).items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(t.dtype == b[k].dtype and torch.equal(t, b[k]) for k, t in a.items())


@pytest.fixture(scope="module")
def wan():
    return random(WAN, torch.bfloat16)


@pytest.fixture
def plan(tmp_path):
    PLAN.save(tmp_path / "plan.json")
    return str(tmp_path / "plan.json")


def single(network, home):
    network.save_pretrained(home / "net")
    return home / "net", {}


def sharded(network, home):
    network.save_pretrained(home / "net", max_shard_size="100KB")
    assert len([*(home / "net").glob("*.safetensors")]) > 3
    return home / "net", {}


def pipeline(network, home):
    network.save_pretrained(home / "pipe" / "transformer", max_shard_size="200KB")
    (home / "pipe" / "vae").mkdir()
    return home / "pipe", {}


def variant(network, home):
    for kind in (dict(max_shard_size="200KB"), {}):
        network.save_pretrained(home / "net", variant="fp16", **kind)
        if kind:
            assert (home / "net" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
        else:
            (home / "net" / "diffusion_pytorch_model.safetensors.index.fp16.json").unlink()
    return home / "net", dict(variant="fp16")


def sharded_variant(network, home):
    network.save_pretrained(home / "net", variant="fp16", max_shard_size="200KB")
    return home / "net", dict(variant="fp16")


def one_file(network, home):
    network.save_pretrained(home / "net", variant="fp16")
    return home / "net" / "diffusion_pytorch_model.fp16.safetensors", {}


@pytest.mark.parametrize("form", [single, sharded, pipeline, variant, sharded_variant, one_file], ids=lambda f: f.__name__)
def test_every_form_of_a_checkpoint(form, wan, plan, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "AT_ONCE", 50_000)  # several rounds of opening and closing
    model, options = form(wan, tmp_path)
    vdmini_prune(str(model), plan=plan, out=str(tmp_path / "s"), **options)
    assert equal(stored(tmp_path / "s"), make_student(wan, PLAN).state_dict())
    assert {p.name for p in (tmp_path / "s").iterdir()} == {"config.json", ONE, "README.md", "plan.json"}
    assert Plan.load(tmp_path / "s" / "plan.json") == PLAN
    make_student(wan, PLAN).save_pretrained(tmp_path / "t")  # what diffusers itself would have written
    assert json.loads((tmp_path / "s" / "config.json").read_text()) == json.loads((tmp_path / "t" / "config.json").read_text())


def test_shards_as_diffusers_writes_them(wan, tmp_path):
    wan.save_pretrained(tmp_path / "net")
    vdmini.export.cut_checkpoint(checkpoint.open_checkpoint(tmp_path / "net"), PLAN, tmp_path / "s", max_shard_size="100KB")
    make_student(wan, PLAN).save_pretrained(tmp_path / "t", max_shard_size="100KB")
    ours, theirs = ({p.name: p for p in (tmp_path / d).glob("*model*")} for d in "st")
    assert ours.keys() == theirs.keys() and len(ours) > 3
    for name, path in ours.items():
        if name.endswith(".json"):
            assert json.loads(path.read_text()) == json.loads(theirs[name].read_text())
        else:
            assert equal(load_file(path), load_file(theirs[name]))


@pytest.mark.parametrize("scales,name", [("both", "unet_mg.pt"), ("none", "model.ckpt"), ("both", "turbo.safetensors")])
def test_official_files(name, scales, tmp_path):
    torch.manual_seed(0)
    given = {} if scales == "both" else dict(time_cond_proj_dim=None, motion_cond_proj_dim=None)  # VideoCrafter2 has none
    network = TURBO.network_class(**TURBO.config | given)
    ours, keys = network.state_dict(), official_keys(network)
    state = {keys[k]: t for k, t in ours.items()}
    state["init_attn.0.proj_in.weight"] = state["init_attn.0.proj_in.weight"][..., None].clone()  # a convolution there
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    elif name.endswith(".ckpt"):
        named = {f"model.diffusion_model.{k}": t for k, t in state.items()}
        torch.save(dict(state_dict=named | {"first_stage_model.x": torch.zeros(2)}, epoch=3), tmp_path / name)
    else:
        torch.save(state, tmp_path / name)
    vdmini_prune(str(tmp_path / name), out=str(tmp_path / "s"))
    student, again = make_student(network, Plan.paper(TURBO.name)), skeleton(tmp_path / "s")
    assert equal(stored(tmp_path / "s"), student.state_dict())
    assert type(again) is type(student) and again.config.motion_cond_proj_dim == network.config.motion_cond_proj_dim


def test_another_number_format(wan, plan, tmp_path):
    wan.save_pretrained(tmp_path / "net")
    vdmini_prune(str(tmp_path / "net"), plan=plan, out=str(tmp_path / "s"), dtype="float16")
    kinds = {k: t.dtype for k, t in stored(tmp_path / "s").items()}
    assert kinds["blocks.0.attn1.to_q.weight"] == torch.float16
    assert kinds["blocks.0.norm2.weight"] == torch.bfloat16  # one that diffusers wants in full precision is left as it came


def before_the_cut(name: str) -> str:
    "Where a tensor of SVD's student comes from: U.0 is gone, and of U.2 and U.3 the middle pair."
    if not name.startswith("up_blocks."):
        return name
    _, stage, kind, i, *rest = name.split(".")
    i = "2" if stage in "12" and kind in ("resnets", "attentions") and i == "1" else i
    return ".".join(["up_blocks", str(int(stage) + 1), kind, i, *rest])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_of_a_cut(tmp_path):
    plan = Plan.paper("svd")
    plan.save(tmp_path / "plan.json")
    try:
        whole = random_checkpoint(tmp_path / "svd" / "unet", "svd", torch.bfloat16)
        _, peak, said = peak_of(STREAM, tmp_path / "svd", tmp_path / "plan.json", tmp_path / "s", "bfloat16")
        assert "1524.623082 M -> 939.884186 M parameters" in said
        student = (tmp_path / "s" / ONE).stat().st_size
        assert whole > 3e9 and student > 2 * 939_884_186
        assert peak < student < student + 1e9, f"{peak / 1e9:.2f} GB for a student of {student / 1e9:.2f} GB"
        index = json.loads((tmp_path / "svd" / "unet" / INDEX).read_text())["weight_map"]
        with safe_open(tmp_path / "s" / ONE, "pt") as f:
            names = [*f.keys()]
            for name in names[::40]:
                old = before_the_cut(name)
                with safe_open(tmp_path / "svd" / "unet" / index[old], "pt") as g:
                    assert torch.equal(f.get_tensor(name), g.get_tensor(old)), (name, old)
        again = VDMiniUNet.from_pretrained(tmp_path / "s", torch_dtype=torch.bfloat16)
        assert sum(p.numel() for p in again.parameters()) == 939_884_186
    finally:
        shutil.rmtree(tmp_path)


# what cannot be used: one line, exit code 2, nothing written


@pytest.fixture
def net(wan, tmp_path):
    "A folder with a small network in several files."
    wan.save_pretrained(tmp_path / "net", max_shard_size="200KB")
    return tmp_path / "net"


@pytest.fixture
def refuse(tmp_path, capsys):
    "A function: cut a model, expect one line that holds all of some words, and nothing written."

    def check(model, *words, plan="vdmini", out="s", **options):
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            vdmini_prune(str(model), plan=str(plan), out=str(tmp_path / out), **options)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.startswith("vdmini_prune: ") and err.count("\n") == 1, err
        assert all(w in err for w in words), err
        assert sorted(tmp_path.rglob("*")) == before

    return check


def change(file: Path, **tensors) -> None:
    "Put tensors into a safetensors file, or take those that are None out of it."
    state = load_file(file) | tensors
    save_file({k: t for k, t in state.items() if t is not None}, file, metadata={"format": "pt"})


def first_file(net: Path) -> Path:
    return sorted(net.glob("*.safetensors"))[0]


def test_keys_that_are_missing_left_over_or_misshapen(net, plan, refuse):
    names = sorted(load_file(first_file(net)))[:4]
    change(first_file(net), **dict.fromkeys(names))
    refuse(net, f"missing: 4 ({', '.join(names[:3])}, …)", plan=plan)
    with pytest.raises(BadInput, match=r"not those of a WanTransformer3DModel; missing: 4 \("):  # the other way in says the same
        load_network(net)
    change(first_file(net), **{n: torch.zeros(2, 3) for n in names}, odd=torch.zeros(1), **{"odd.1": torch.zeros(1)})
    refuse(net, "surplus: 2 (odd, odd.1)", f"misshapen: 4 ({names[0]} [2, 3] for ", plan=plan)


def test_whole_numbers_for_weights(net, plan, refuse):
    name, weight = next(iter(load_file(first_file(net)).items()))
    change(first_file(net), **{name: weight.int()})
    refuse(net, f"of another kind: 1 ({name} torch.int32 for torch.float32)", plan=plan)


def test_tensors_that_do_no_harm(wan, plan, tmp_path):
    wan.save_pretrained(tmp_path / "net")
    before = load_file(tmp_path / "net" / ONE)
    made, useless = (
        "rope.freqs_cos",
        "blocks.0.attn1.norm_added_q.weight",
    )  # a buffer that is never saved; one that diffusers ignores
    assert made in dict(wan.named_buffers()) and made not in before
    change(tmp_path / "net" / ONE, **{made: torch.zeros(3), useless: torch.zeros(24)})
    vdmini_prune(str(tmp_path / "net"), plan=plan, out=str(tmp_path / "s"))
    assert equal(stored(tmp_path / "s"), make_student(wan, PLAN).state_dict())
    load_network(tmp_path / "net")


def test_files_that_are_half_there_or_not_at_all(net, plan, refuse):
    file, whole = first_file(net), first_file(net).read_bytes()
    for size in (len(whole) - 1, len(whole) // 2, 100, 4, 0):
        file.write_bytes(whole[:size])
        refuse(net, f"{file.name} is damaged or only half there", plan=plan)
    file.unlink()
    refuse(net, "index.json names", f"missing: 1 ({file.name})", plan=plan)
    for text in "{}", json.dumps(dict(weight_map=dict(a=1))):
        (net / INDEX).write_text(text)
        refuse(net, "is no index of shards", plan=plan)
    (net / INDEX).unlink()
    refuse(net, f"holds no {ONE}; there: ", plan=plan)
    refuse(net, "holds no diffusion_pytorch_model.fp16.safetensors", plan=plan, variant="fp16")


def test_a_configuration_that_says_more(wan, net, plan, tmp_path):
    "Entries that the class does not know: other versions of diffusers write them."
    config = json.loads((net / "config.json").read_text())
    (net / "config.json").write_text(json.dumps(config | dict(of_another_version=3)))
    vdmini_prune(str(net), plan=plan, out=str(tmp_path / "s"))
    assert equal(stored(tmp_path / "s"), make_student(wan, PLAN).state_dict())
    assert equal(make_student(load_network(net, dtype=torch.bfloat16), PLAN).state_dict(), make_student(wan, PLAN).state_dict())


def test_networks_of_other_families(net, tmp_path, plan, refuse):
    config = json.loads((net / "config.json").read_text())
    for text, words in {
        json.dumps(
            config | dict(num_layers=31)
        ): "of other sizes than those of: wan-t2v, tiny-wan-t2v; nearest: tiny-wan-t2v, but for num_layers 31 (there 30)",
        json.dumps(config | dict(_class_name="UNet2DModel")): "no network class 'UNet2DModel'; nearest: ",
        json.dumps(config | dict(patch_size="x")): "describes no network",
        "{": "no readable config.json",
        json.dumps([config]): "holds a list; expected the entries",
        json.dumps(config | dict(_dropped=3)): "says that 3 was dropped; expected a list of blocks",
        json.dumps(config | dict(num_layers=None)): "describes no network",
    }.items():
        (net / "config.json").write_text(text)
        refuse(net, words, plan=plan)
    refuse(tmp_path, "no readable config.json", plan=plan)
    refuse("tiny-swd", "no model 'tiny-swd'; nearest: tiny-svd", plan=plan)
    refuse("tiny-wan-t2v", "has no weights", plan=plan)


def test_plans_that_do_not_fit(net, tmp_path, plan, refuse):
    refuse(net, "no plan of VDMini's for tiny-wan-t2v")
    bad = tmp_path / "bad.json"
    lacking, foreign = dict(family="tiny-wan-t2v", keep=["B.00", "B.77"]), dict(family="svd", keep=["M.R.0"])
    for wrong, words in ((lacking, "no block of tiny-wan-t2v 'B.77'; nearest: "), (foreign, "a plan for svd")):
        bad.write_text(json.dumps(wrong))
        refuse(net, words, plan=bad)
    vdmini_prune(str(net), plan=plan, out=str(tmp_path / "student"))
    refuse(tmp_path / "student", "cut already (28 of 30 layers are left)", plan=plan)
    refuse(net, "no dtype 'half'; nearest: ", plan=plan, dtype="half")


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil-was-here",)


def test_pickles_that_run_code(net, tmp_path, plan, refuse, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"input_blocks.0.0.weight": Evil()}, tmp_path / "unet_mg.pt")
    refuse(tmp_path / "unet_mg.pt", "is refused: a pickle may run code", "posix.system", plan=plan)
    for file in net.glob("*model*"):
        file.unlink()
    torch.save({"odd": Evil()}, net / "diffusion_pytorch_model.bin")
    refuse(net, "there: 1 (diffusion_pytorch_model.bin); a pickle may run code", plan=plan)
    assert not (tmp_path / "evil-was-here").exists()


def test_out_folders_that_hold_something_else(net, tmp_path, plan, refuse):
    (tmp_path / "film").mkdir()
    (tmp_path / "film" / "note.txt").write_text("mine")
    refuse(net, "it holds other things than a student and its plan: 1 (note.txt)", plan=plan, out="film")
    refuse(net, "it is what is to be cut", plan=plan, out="net")
    shutil.copytree(net, tmp_path / "other")  # a whole network is no student, either
    refuse(net, "other things than a student", plan=plan, out="other")
    refuse(net, "is a file", plan=plan, out="film/note.txt")
    (tmp_path / "empty").mkdir()
    vdmini_prune(str(net), plan=plan, out=str(tmp_path / "empty"))
    Plan.dropping("tiny-wan-t2v", "B.01").save(tmp_path / "plan.json")
    vdmini_prune(str(net), plan=plan, out=str(tmp_path / "empty"))  # over an earlier student, whole again
    assert load_network(tmp_path / "empty").config.num_layers == 29


def test_disks_that_are_full(net, tmp_path, plan, refuse, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
        refuse(net, "0.00 GB are needed, 0.00 GB are free", plan=plan)
    code = f"""
import resource
from vdmini.export import vdmini_prune
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
vdmini_prune({str(net)!r}, plan={plan!r}, out={str(tmp_path / "s")!r})"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # full in the middle of it
    assert done.returncode == 2 and done.stderr.startswith("vdmini_prune: cannot write") and done.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "plan.json"]


# the hub


def hub_of(cache: Path, repo: str) -> Path:
    "An empty snapshot of a repository in a cache of the hub's layout."
    home, sha = cache / f"models--{repo.replace('/', '--')}", "0" * 40
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(sha)
    return home / "snapshots" / sha


def test_a_model_of_the_hub_without_network(wan, tmp_path, plan):
    cached = hub_of(tmp_path / "cache", "someone/clips")
    wan.save_pretrained(cached / "transformer")
    env = os.environ | dict(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "cache"))

    code = f"""
from vdmini.export import vdmini_prune
vdmini_prune("someone/clips", plan={plan!r}, out="s")
vdmini_prune("svd", variant="fp16", out="t")"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert equal(stored(tmp_path / "s"), make_student(wan, PLAN).state_dict())
    head = ModelCard.load(tmp_path / "s" / "README.md").data
    assert head.base_model == "someone/clips" and head.license is None  # of somebody's own weights we know no licence
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    file, home = "unet/diffusion_pytorch_model.fp16.safetensors", "stabilityai/stable-video-diffusion-img2vid"
    assert f"svd is no folder here, and {file} of https://huggingface.co/{home} could not be fetched" in done.stderr
    assert f"hf download {home} --include 'unet/*' --local-dir DIR, then name DIR/unet as the model" in done.stderr
    assert not (tmp_path / "t").exists()


def test_only_the_network_is_fetched(wan, tmp_path, plan, monkeypatch):
    asked = {}

    def fetch(repo, allow_patterns):
        asked[repo] = allow_patterns
        wan.save_pretrained(tmp_path / "hub" / "transformer", variant="fp16")
        return tmp_path / "hub"

    monkeypatch.setattr(places, "snapshot_download", fetch)
    monkeypatch.setattr(places, "hub_place", lambda model: ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "transformer"))
    vdmini_prune("wan-t2v", plan=plan, out=str(tmp_path / "s"), variant="fp16")
    (patterns,) = asked.values()
    assert all(p.startswith("transformer/") for p in patterns) and not any("*" in p and "fp16" not in p for p in patterns)
    assert equal(stored(tmp_path / "s"), make_student(wan, PLAN).state_dict())


def test_counting_fetches_no_weights(wan, tmp_path, monkeypatch):
    asked = []

    def fetch(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        wan.save_config(tmp_path / "hub" / "transformer")
        return tmp_path / "hub"

    monkeypatch.setattr(places, "snapshot_download", fetch)
    assert skeleton("someone/clips").state_dict().keys() == wan.state_dict().keys()
    vdmini_cost("someone/clips", level="stage", count_only=True)
    assert asked == [("someone/clips", ["config.json", "unet/config.json", "transformer/config.json"])] * 2


def test_official_files_are_counted(tmp_path, capsys):
    torch.manual_seed(0)
    network = FAMILIES["tiny-t2v-turbo-v2"].network_class(**FAMILIES["tiny-t2v-turbo-v2"].config)
    names = official_keys(network)
    torch.save({names[k]: w for k, w in network.state_dict().items()}, tmp_path / "unet.pt")
    vdmini_cost(str(tmp_path / "unet.pt"), level="stage", count_only=True)
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.3f}" in capsys.readouterr().out


@pytest.fixture
def hub(monkeypatch, tmp_path):
    "A hub that keeps what it is sent, in a folder; `hub.card` is the card that it has."
    kept = SimpleNamespace(folder=tmp_path / "sent", card=None, asked=[])

    def create_repo(repo_id, **options):
        kept.asked.append((repo_id, options))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(*, repo_id, folder_path, allow_patterns=None, **options):
        kept.asked.append((repo_id, options))
        shutil.rmtree(kept.folder, ignore_errors=True)
        names = [p.name for p in Path(folder_path).iterdir() if not allow_patterns or any(p.match(a) for a in allow_patterns)]
        kept.folder.mkdir()
        for n in names:
            shutil.copy(Path(folder_path) / n, kept.folder / n)
        return "address"

    def load(repo_id, **options):
        if kept.card is None:
            raise LocalEntryNotFoundError("no card yet")
        return ModelCard(kept.card)

    for module in (hub_utils, modeling_utils, card):
        monkeypatch.setattr(module, "create_repo", create_repo)
    for module in (hub_utils, card):
        monkeypatch.setattr(module, "upload_folder", upload_folder)
    monkeypatch.setattr(hub_utils.ModelCard, "load", load)
    return kept


def sent_card(hub) -> ModelCard:
    return ModelCard((hub.folder / "README.md").read_text())


def test_push_to_hub_brings_the_card(hub, tmp_path):
    student = make_student(random(FAMILIES["tiny-svd"]), Plan.paper("tiny-svd"))
    assert student.push_to_hub("small", private=True) == "address"
    assert [repo for repo, _ in hub.asked] == ["small", "me/small"]
    assert {p.name for p in hub.folder.iterdir()} == {"config.json", ONE, "README.md"}
    assert equal(VDMiniUNet.from_pretrained(hub.folder).state_dict(), student.state_dict())
    card = sent_card(hub)
    assert card.data.library_name == "diffusers" and "vdmini" in card.data.tags
    count = sum(p.numel() for p in student.parameters())
    assert f"{count / 1e6:.6f} M" in card.text and '.from_pretrained("me/small"' in card.text and "`D.3`" in card.text
    student.save_pretrained(str(tmp_path / "again"), push_to_hub=True, repo_id="small")  # diffusers' other way
    assert "`D.3`" in sent_card(hub).text
    hub.card = "---\nlicense: mit\n---\nMy own words on VDMini."
    student.push_to_hub("small")
    assert sent_card(hub).text.strip() == "My own words on VDMini."
    student.push_to_hub("small", subfolder="unet")
    assert not (hub.folder / "README.md").exists()  # a card stands at the top of a repository


def test_students_of_plain_classes_bring_the_card(hub, tmp_path):
    "HunyuanVideo's student is diffusers' own class: cut here, copied, or read back here, it brings the card all the same."
    name = "tiny-hunyuan-video"
    student = make_student(random(FAMILIES[name]), Plan.paper(name))
    student.save_pretrained(tmp_path / "s")
    for network in student, copy.deepcopy(student), load_network(tmp_path / "s"):
        network.push_to_hub("small")
        assert "`DS.01`" in sent_card(hub).text and sent_card(hub).data.library_name == "diffusers"
        assert equal(type(student).from_pretrained(hub.folder).state_dict(), network.state_dict())
    assert "_upload_folder" not in vars(load_network(tmp_path / "s").__class__)  # the class is as it was


@pytest.mark.parametrize("name", ["tiny-svd", "tiny-wan-t2v"])
def test_push_takes_a_student_or_its_folder(name, hub, tmp_path):
    family, plan = FAMILIES[name], Plan.dropping(name, *{"tiny-svd": ["M"], "tiny-wan-t2v": ["B.03"]}[name], how="a hunch")
    student = make_student(random(family), plan)
    assert push(student, "small") == "address"
    by_network = sent_card(hub)
    random(family).save_pretrained(tmp_path / "net")
    plan.save(tmp_path / "plan.json")
    vdmini_prune(str(tmp_path / "net"), plan=str(tmp_path / "plan.json"), out=str(tmp_path / "s"))
    (tmp_path / "s" / "diary.txt").write_text("not for others")
    push(tmp_path / "s", "small")
    assert {p.name for p in hub.folder.iterdir()} == {"config.json", ONE, "README.md", "plan.json"}
    by_folder = sent_card(hub)
    assert by_folder.data.to_dict() == by_network.data.to_dict()
    assert "a hunch" in by_folder.text and "not recorded" in by_network.text
    assert all('.from_pretrained("me/small"' in c.text for c in (by_folder, by_network))
    with pytest.raises(BadInput, match="no readable config.json"):
        push(tmp_path, "small")


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.hub])
def test_cards_of_full_size(name):
    network, family = skeleton(name), FAMILIES[name]
    plan = Plan.paper(name) if family.paper_drop else Plan.dropping(name, Plan.dropping(name).keep[1])
    student = make_student(network, plan)
    card = ModelCard(model_card(student))
    assert student_plan(student).dropped == plan.dropped
    assert card.data.base_model == family.hub
    kind, _, own = family.licence.partition("/")
    assert (card.data.license or "", card.data.get("license_name") or "") == (kind, own)
    code = card.text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert ("from vdmini" in code) == (not type(student).__module__.startswith("diffusers."))
    assert all(f"`{b}`" in card.text for b in plan.dropped)


# into diffusers' pipelines


def test_an_svd_student_in_its_pipeline(tmp_path):
    from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    student = make_student(random(FAMILIES["tiny-svd"]), Plan.paper("tiny-svd"))
    student.save_pretrained(tmp_path / "student")
    sizes = dict(hidden_size=32, intermediate_size=32, projection_dim=64, num_hidden_layers=1, num_attention_heads=2)
    pipe = StableVideoDiffusionPipeline(
        vae=random(FAMILIES["tiny-svd-vae"]),
        image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, patch_size=112)).eval(),
        unet=VDMiniUNet.from_pretrained(tmp_path / "student"),
        scheduler=EulerDiscreteScheduler(),
        feature_extractor=CLIPImageProcessor(),
    )
    image = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 50).convert("RGB")

    def clip(p):
        p.set_progress_bar_config(disable=True)
        size = dict(height=64, width=64, num_frames=4, num_inference_steps=2, decode_chunk_size=2)
        return p(image, **size, output_type="pt", generator=torch.Generator().manual_seed(0)).frames

    made = clip(pipe)
    assert made.shape == (1, 4, 3, 64, 64) and made.isfinite().all() and made.std() > 0
    pipe.save_pretrained(tmp_path / "pipe")
    again = StableVideoDiffusionPipeline.from_pretrained(tmp_path / "pipe")
    assert type(again.unet) is VDMiniUNet
    assert torch.allclose(clip(again), made, atol=1e-4)


def test_a_hunyuan_video_student_in_its_pipeline_without_vdmini(tmp_path):
    family = FAMILIES["tiny-hunyuan-video"]
    random(family).save_pretrained(tmp_path / "net")
    vdmini_prune(str(tmp_path / "net"), out=str(tmp_path / "student"))
    code = """
import sys
import torch
from diffusers import AutoencoderKLHunyuanVideo, FlowMatchEulerDiscreteScheduler
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel

student = HunyuanVideoTransformer3DModel.from_pretrained("student")
torch.manual_seed(0)
vae = AutoencoderKLHunyuanVideo(latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4).eval()
none = dict.fromkeys(["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"])
pipe = HunyuanVideoPipeline(transformer=student, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), **none)
text = dict(prompt_embeds=torch.ones(1, 5, 12), prompt_attention_mask=torch.ones(1, 5).long())
text["pooled_prompt_embeds"] = torch.ones(1, 6)

def clip(p):
    size = dict(height=32, width=48, num_frames=9, num_inference_steps=2)
    return p(**size, **text, generator=torch.Generator().manual_seed(0), output_type="pt").frames

made = clip(pipe)
assert made.shape == (1, 9, 3, 32, 48) and made.isfinite().all() and made.std() > 0
pipe.save_pretrained("pipe")
again = HunyuanVideoPipeline.from_pretrained("pipe", **none)
assert torch.allclose(clip(again), made, atol=1e-4)
assert not [m for m in sys.modules if m.partition(".")[0] == "vdmini"]
print("layers", again.transformer.config.num_layers, again.transformer.config.num_single_layers)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.endswith("layers 12 28\n"), done.stderr
