"""Hold `T2VTurboUNet` against the official network's own output: python tests/t2v_parity.py JSON NPZ

JSON gives the official constructor arguments (`config`), a `salt` and the state dict's keys with their shapes; the weights
follow from salt and key. NPZ gives the inputs and `output`, what the official network made of them in float32.

Prints the largest relative error of the output: max |ours - theirs| / max |theirs|, each over all elements. (An element's
own size would not do to divide by: some are almost zero, and rounding alone is then large beside them.) Exit code 1 where
it is above 1e-4, 2 where the files cannot be used.
"""

import json
import sys
import tempfile
import zlib
from contextlib import chdir
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vdmini.t2v import T2VTurboUNet, load_official, official_config

TOLERANCE = 1e-4
NEEDED = ("sample", "timestep", "encoder_hidden_states", "output")
TAKEN = ("timestep_cond", "motion_cond", "fps")  # by networks that have them


def weight(
    key: str,  # name in the official state dict
    shape: list[int],
    salt: str,
) -> torch.Tensor:  # float32
    "The reference's weight of that name."
    a = np.random.default_rng(zlib.crc32((salt + key).encode())).standard_normal(shape).astype(np.float32)
    a = a * 0.1 + key.endswith("weight") if len(shape) == 1 else a / np.sqrt(prod(shape[1:]))
    return torch.from_numpy(a.astype(np.float32))


def rebuild(
    reference: dict,  # what the JSON file holds
) -> T2VTurboUNet:
    "The reference's network, its weights brought in as an official checkpoint's are."
    with torch.device("meta"):
        network = T2VTurboUNet(**official_config(reference["config"]))
    state = {k: weight(k, shape, str(reference["salt"])) for k, shape in dict(reference["keys"]).items()}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        save_file(state, "keys.safetensors")  # so called in what is said of keys that do not fit
        return load_official("keys.safetensors", network)


def compared(
    network: torch.nn.Module,
    arrays: dict,  # inputs by name, and `output`
) -> float:
    "max |ours - theirs| / max |theirs|; raises `ValueError` for arrays that the network does not take or cannot answer with."
    given = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    missing, surplus = {*NEEDED} - {*given}, {*given} - {*NEEDED, *TAKEN}
    if missing or surplus:
        raise ValueError(f"arrays missing: {sorted(missing)}; not known: {sorted(surplus)}; expected {NEEDED} and any of {TAKEN}")
    theirs = given.pop("output")
    with torch.inference_mode():
        ours = network(**given).sample
    if ours.shape != theirs.shape:
        raise ValueError(f"an output of {list(theirs.shape)}; expected {list(ours.shape)}")
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def relative_error(
    json_path: str,
    npz_path: str,
) -> float:
    "The largest relative error of a reference."
    network = rebuild(json.loads(Path(json_path).read_text()))
    with np.load(npz_path) as arrays:
        return compared(network, dict(arrays))


def main(
    json_path: str,
    npz_path: str,
) -> int:  # exit code
    "Print the largest relative error; 1 where it is above `TOLERANCE`, 2 where the files cannot be used."
    try:
        error = relative_error(json_path, npz_path)
    except Exception as e:  # files of any content may come, and each library has its own words for what is wrong with them
        why = (str(e).splitlines() or ["no reason given"])[0]
        print(f"t2v_parity: {json_path} and {npz_path} cannot be used: {type(e).__name__}: {why}", file=sys.stderr)
        return 2
    print(f"largest relative error: {error:.2e} (max |ours - theirs| / max |theirs|)")
    return 0 if error <= TOLERANCE else 1  # NaN is above, too


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/t2v_parity.py JSON NPZ")
    sys.exit(main(*sys.argv[1:]))
