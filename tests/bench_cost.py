"""Do the times of the blocks add up to the forward? python tests/bench_cost.py [FAMILY …] [--repeats 10]

For each family a network with random weights is timed at the family's own (the paper's) sizes: every block by hooks, with CUDA
events on a GPU, and in turns with that the whole forward without hooks; both are means of the middle half. Printed is their
ratio, and the largest stages. On a GPU the default is every full-size family in bfloat16; without one, the small twins on the
CPU in float32.
"""

import argparse

import torch

from vdmini.blocks import prunable
from vdmini.cost import cost
from vdmini.families import FAMILIES, Family, clip_size, network_inputs
from vdmini.sampling import moved
from vdmini.teachers import random_network

FULL = [name for name in FAMILIES if FAMILIES[name].hub]
SMALL = [name for name in FAMILIES if name.startswith("tiny-")]


def timed(family: Family, device: str, dtype: torch.dtype, repeats: int):
    "The cost table of a family."
    network = random_network(family.name, device=device, dtype=dtype)
    inputs = moved(network_inputs(family), device, dtype)
    return cost(network, inputs, repeats=repeats), sum(p.numel() for p in prunable(network).parameters())


def main(names: list[str], repeats: int) -> None:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    print(torch.cuda.get_device_name() if device == "cuda" else "CPU", dtype)
    for name in names or (FULL if device == "cuda" else SMALL):
        table, params = timed(FAMILIES[name], device, dtype, repeats)
        rows = table.set_index("block")
        added, whole = rows.latency_ms["total"], table.attrs["whole_ms"]
        stages = rows[rows.level == "stage"].latency_ms.nlargest(3)
        largest = ", ".join(f"{k} {v:.1f}" for k, v in stages.items())
        size = "{} × {} × {}".format(*clip_size(FAMILIES[name]))
        both = f"blocks {added:9.2f} ms  forward {whole:9.2f} ms  ratio {added / whole:.3f}"
        print(f"{name:20} {params / 1e6:10.1f} M  {size:18} {both}  {largest}")
        if device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--repeats", type=int, default=10)
    given = parser.parse_args()
    main(given.families, given.repeats)
