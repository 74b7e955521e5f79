"""One training step against a plain loop: python tests/bench_train.py [--steps 10] [--batch 4]

Both compute the same: task + ICD + MCA for the student, the hinge for the judge, and their gradients. The plain loop runs what
each term needs when the term needs it: the teacher for ICD, the teacher again for the judge's real clips, the judge's encoder on
the student's clips once for either side. Ours runs the teacher once and the encoder once per clip. The steps take turns; printed
are medians and their ratios. Peak memory is that of tensors alive during a step (weights and optimisers, which are the same,
left out).
"""

import argparse
import time
from dataclasses import replace
from statistics import median

import torch

from vdmini.count import LiveBytes
from vdmini.judge import Encoder
from vdmini.losses import ICD, Features
from vdmini.recipe import TrainConfig, draw, encoded
from vdmini.surgery import Plan
from vdmini.teachers import load_teacher
from vdmini.train import Bench, bench_of, losses


def ours(bench: Bench, part) -> dict:
    loss, loss_d, terms = losses(bench, part, judged=True)
    loss.backward()
    loss_d.backward()
    return terms


def plain(bench: Bench, part) -> dict:
    c, t = bench.config, bench.teacher
    condition = t.condition(part.x_0[:, 0], part.motion)
    x_t = part.x_0 + part.sigma.view(-1, 1, 1, 1, 1) * part.noise
    look, tokens = Encoder(t, c.entry), condition["encoder_hidden_states"]

    def see(x):
        return look(x, part.sigma_d, part.noise_d, condition)

    with Features(bench.net, {name: p for name, (p, _) in bench.pairs.items()}) as f_stu:
        x_stu = replace(t, network=bench.student).denoise(x_t, part.sigma, **condition)
    with torch.no_grad(), Features(t.network, {name: p for name, (_, p) in bench.pairs.items()}) as f_tea:
        t.denoise(x_t, part.sigma, **condition)
    with torch.no_grad():
        x_tea = t.denoise(x_t, part.sigma, **condition)
        true = [see(x_tea), see(part.x_0)]
    icd, _ = ICD()(f_stu, f_tea)
    task, gen = c.task(x_stu, part.x_0), bench.mca.gen(see(x_stu), tokens)
    disc = bench.mca.disc(see(x_stu.detach()), true, tokens)
    (task + c.icd * icd + c.mca * gen).backward()
    (c.mca * disc).backward()
    return {k: v.item() for k, v in dict(task=task, icd=icd, mca_gen=gen, mca_disc=disc).items()}


def clear(bench: Bench) -> None:
    for o in bench.optimisers:
        o.zero_grad()


def timed(step, bench: Bench, part) -> tuple[float, dict]:
    wait = torch.cuda.synchronize if part.x_0.is_cuda else lambda: None
    clear(bench)
    wait()
    start = time.perf_counter()
    terms = step(bench, part)
    wait()
    return time.perf_counter() - start, terms


def peak(step, bench: Bench, part) -> int:
    clear(bench)
    if part.x_0.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(bench, part)
        return torch.cuda.max_memory_allocated() - before
    with LiveBytes() as live:
        step(bench, part)
    return live.peak


def main(steps: int, batch: int) -> None:
    config = TrainConfig.paper("tiny-svd", batch=batch, clips=max(8, batch))
    teacher = load_teacher("tiny-svd")
    corpus = encoded(teacher, None, config.clips, progress=False)
    bench = bench_of(config, teacher, Plan.paper("tiny-svd"))
    part = draw(config, corpus, 0).to(bench.accelerator.device)
    seconds = {ours: [], plain: []}
    for i in range(steps + 2):
        terms = {}
        for step in seconds:
            spent, terms[step] = timed(step, bench, part)
            if i >= 2:
                seconds[step].append(spent)
        for k, v in terms[plain].items():  # the same losses, or the comparison is void
            assert abs(v - terms[ours][k]) < 1e-4 * max(1, abs(v)), (k, v, terms[ours][k])
    t, m = ({s.__name__: f(s) for s in seconds} for f in (lambda s: median(seconds[s]), lambda s: peak(s, bench, part)))
    print(f"tiny-svd student, batch {batch}, {bench.accelerator.device}, median of {steps} steps in turns")
    print(f"seconds a step: ours {t['ours']:.3f}, plain {t['plain']:.3f}; ratio {t['ours'] / t['plain']:.2f}")
    print(
        f"peak memory: ours {m['ours'] / 2**20:.0f} MiB, plain {m['plain'] / 2**20:.0f} MiB; ratio {m['ours'] / m['plain']:.2f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    main(**vars(parser.parse_args()))
