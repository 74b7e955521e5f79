"""How much memory does a training step need at full size? python tests/bench_memory.py [FAMILY …] [--clips 1]

Counted, not measured: one step of a family's recipe (task + ICD + MCA with the judge in the game, forward and backward, bf16
arithmetic, recomputed activations, so many clips at once) under `FakeTensorMode`, which needs neither weights nor a GPU. Counted
are the storages of tensors alive at the peak, among them the gradients; added is what lies still: the teacher, the student with
AdamW's moments and its average, all in single precision. What an allocator or a kernel takes besides is not in it. The measured
counterpart is bench_train.py --full.
"""

import argparse
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from vdmini.count import LiveBytes
from vdmini.families import FAMILIES, Family, clip_size
from vdmini.judge import MCA, Heads
from vdmini.recipe import Part, TrainConfig
from vdmini.step import Bench, losses, recompute
from vdmini.surgery import Plan, make_student
from vdmini.teacher import Teacher


@contextmanager
def half():
    "What accelerate does with bf16."
    with torch.autocast("cpu", torch.bfloat16):
        yield


def told(family: Family, b: int) -> dict[str, Tensor]:
    "What the network is told of each clip, in its sizes."
    _, c, h, w = TrainConfig.paper(family.name).latent
    found = dict(encoder_hidden_states=torch.zeros(b, *family.tokens))
    if "frames" in family.sampler.takes:
        found |= dict(image=torch.zeros(b, c, h, w), added_time_ids=torch.ones(b, 3))
    if "pooled_projection_dim" in family.config:
        mask = torch.ones(b, family.tokens[0], dtype=torch.long)
        found |= dict(pooled_projections=torch.zeros(b, family.config["pooled_projection_dim"]), encoder_attention_mask=mask)
    return found


def bench(family: Family, config: TrainConfig) -> Bench:
    "Everything that takes part in a step, without weights."
    network = family.network_class(**family.config).eval().requires_grad_(False)
    student = make_student(network, Plan.paper(family.name)).requires_grad_(True)
    teacher = Teacher(family, network, None, "no weights")
    heads = Heads.of(teacher, width=config.width, views=config.views)
    for m in (student, network):
        recompute(m, config.checkpointing)

    class Called(nn.Module):
        config = student.config

        def forward(self, *args, **kwargs):
            with half():
                return student(*args, **kwargs)

    return Bench(config, teacher, student, heads, (None, None), SimpleNamespace(autocast=half), Called(), MCA(heads, config.r1))


def step_bytes(
    name: str,  # of a family
    b: int,  # clips at once
) -> tuple[int, int]:  # at the peak of a step; of what lies still
    "Count a step of a family's recipe."
    family, config = FAMILIES[name], TrainConfig.paper(name, mca_from=0)
    with FakeTensorMode(), patch.object(Tensor, "item", lambda self: 0.0):
        noise = torch.randn(b, *config.latent)
        part = Part(noise, told(family, b), noise.clone(), config.task.at(torch.ones(b)), noise.clone(), torch.ones(b))
        made = bench(family, config)
        with LiveBytes() as live:
            loss, loss_d, _ = losses(made, part, judged=True)
            loss.backward()
            loss_d.backward()
        still = 4 * sum(p.numel() for p in made.teacher.network.parameters()) + 16 * sum(p.numel() for p in made.net.parameters())
    return live.peak, still


def main(names: list[str], clips: list[int]) -> None:
    for name in names or ["svd", "t2v-turbo-v2"]:
        for b in clips:
            peak, still = (n / 1e9 for n in step_bytes(name, b))
            size = " × ".join(map(str, clip_size(FAMILIES[name], TrainConfig.paper(name).latent)))
            both = f"step {peak:6.1f} GB + weights, moments, average {still:6.1f} GB"
            print(f"{name:16} {b} × {size:16} {both} = {peak + still:6.1f} GB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*")
    parser.add_argument("--clips", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    main(given.families, given.clips)
