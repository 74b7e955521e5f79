"""Memory of cutting a checkpoint: python tests/bench_prune.py [--family svd] [--dtype bfloat16]

Two processes cut the same checkpoint of random weights by the paper's plan and save the student. One loads the network, cuts it
(`make_student`) and saves what is left; the other is `vdmini_prune`. Printed are the seconds and the peak of resident memory of
each (Linux's VmHWM; `ru_maxrss` would count the process that started it, too), the student's size, and the ratio.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from vdmini.families import FAMILIES, skeleton

LOAD_THEN_CUT = """
import sys, torch
from vdmini.families import network_folder, skeleton
from vdmini.surgery import Plan, make_student
source, plan, out, dtype = sys.argv[1:]
network = type(skeleton(source)).from_pretrained(network_folder(source), torch_dtype=getattr(torch, dtype))
make_student(network, Plan.load(plan)).save_pretrained(out)
"""
STREAM = """
import sys
from vdmini.export import vdmini_prune
source, plan, out, dtype = sys.argv[1:]
vdmini_prune(source, plan=plan, out=out)
"""
PEAK = "\nimport re; print('peak', re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1])"


def random_checkpoint(
    folder: Path,  # of the network; made
    family: str,  # a family's name
    dtype: torch.dtype,
    shard: int = 400_000_000,  # bytes of one file, about: no more is held
) -> int:  # bytes of weights
    "Save a network of random weights, file by file."
    network, pool = skeleton(family), torch.randn(2**26).to(dtype)  # 67 million numbers, of which each tensor takes a run
    folder.mkdir(parents=True)
    network.save_config(folder)
    files, part, size, start = [], {}, 0, 0
    state = network.state_dict()
    for i, (name, t) in enumerate(state.items()):
        start = (start + 7919) % (len(pool) - t.numel())  # no two tensors are equal
        part[name] = pool[start : start + t.numel()].view(t.shape).clone()
        size += part[name].nbytes
        if size > shard or i == len(state) - 1:
            files.append([*part])
            save_file(part, folder / f"part-{len(files)}.safetensors", metadata={"format": "pt"})
            part, size = {}, 0
    where = {name: f"part-{i}.safetensors" for i, names in enumerate(files, 1) for name in names}
    index = dict(metadata={}, weight_map=where)
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


def peak_of(code: str, *args) -> tuple[float, int, str]:
    "Run code in a process of its own: seconds, peak of resident memory in bytes, what it printed before."
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PEAK, *map(str, args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said, _, kilobytes = done.stdout.rpartition("peak ")
    return time.perf_counter() - start, int(kilobytes) * 1024, said


def main(family: str, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as d:
        source = Path(d) / "pipeline" / ("unet" if FAMILIES[family].layout.skips else "transformer")
        whole = random_checkpoint(source, family, getattr(torch, dtype))
        from vdmini.plan import Plan

        Plan.paper(family).save(Path(d) / "plan.json")
        print(f"{family}, {dtype}: {whole / 1e9:.2f} GB of weights")
        peaks = {}
        for what, code in (("load, cut, save", LOAD_THEN_CUT), ("vdmini_prune", STREAM)):
            out = Path(d) / re.sub(r"\W", "_", what)
            seconds, peaks[what], _ = peak_of(code, source, Path(d) / "plan.json", out, dtype)
            student = sum(p.stat().st_size for p in out.glob("*.safetensors"))
            print(f"{what}: {seconds:.1f} s, peak {peaks[what] / 1e9:.2f} GB; student {student / 1e9:.2f} GB")
        load, stream = peaks.values()
        print(f"peak memory of the two: {load / stream:.1f} to 1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", default="svd")
    parser.add_argument("--dtype", default="bfloat16")
    main(**vars(parser.parse_args()))
