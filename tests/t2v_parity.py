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
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from vdmini.t2v import T2VTurboUNet, load_official, official_config

TOLERANCE = 1e-4


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
    state = {k: weight(k, shape, reference["salt"]) for k, shape in dict(reference["keys"]).items()}
    with tempfile.TemporaryDirectory() as folder:
        save_file(state, f"{folder}/reference.safetensors")
        return load_official(f"{folder}/reference.safetensors", network)


@torch.inference_mode()
def relative_error(
    network: torch.nn.Module,
    arrays: dict,  # inputs by name, and `output`
) -> float:
    "max |ours - theirs| / max |theirs|."
    given = {k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}
    theirs = given.pop("output")
    return ((network(**given).sample - theirs).abs().max() / theirs.abs().max()).item()


def main(
    json_path: str,
    npz_path: str,
) -> int:  # exit code
    "Print the largest relative error; 1 where it is above `TOLERANCE`, 2 where the files cannot be used."
    try:
        network = rebuild(json.loads(Path(json_path).read_text()))
        with np.load(npz_path) as arrays:
            error = relative_error(network, dict(arrays))
    except (ValueError, KeyError, OSError) as e:  # BadInput is a ValueError
        print(f"t2v_parity: {type(e).__name__}: {e}", file=sys.stderr)
        return 2
    print(f"largest relative error: {error:.2e} (max |ours - theirs| / max |theirs|)")
    return 0 if error <= TOLERANCE else 1  # NaN is above, too


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tests/t2v_parity.py JSON NPZ")
    sys.exit(main(*sys.argv[1:]))
