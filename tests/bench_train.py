"""One training step against a plain loop: python tests/bench_train.py [--steps 10] [--batch N] [--family NAME | --full]

Both compute the same: task + ICD + MCA for the student, the hinge for the judge, and their gradients. The plain loop runs what
each term needs when the term needs it: the teacher for a task that reads its estimate, the teacher for ICD, the teacher again
for the judge's real clips, the judge's encoder on the student's clips once for either side. Ours runs the teacher once and the
encoder once per clip. The steps take turns; printed are medians and their ratios. Peak memory is that of tensors alive during
a step (weights and optimisers, which are the same, left out); on a GPU also the peak of a whole training step, all included.

Without a family it is the bundled model on generated clips; other families have random weights and see noise. --full is SVD's
student at 448×576, 14 frames, batch 1, in bf16: that needs a GPU.
"""

import argparse
import sys
import time
from dataclasses import replace
from statistics import median

import torch

from vdmini.corpus import Corpus, encoded
from vdmini.count import LiveBytes
from vdmini.families import FAMILIES, clip_size
from vdmini.judge import Encoder, pooled
from vdmini.losses import ICD, Features
from vdmini.recipe import TrainConfig, draw
from vdmini.sampling import Request
from vdmini.surgery import Plan
from vdmini.teacher import Teacher
from vdmini.teachers import load_teacher, random_teacher
from vdmini.train import Bench, bench_of, losses, train_step

CARD_GB = 80


def ours(bench: Bench, part) -> dict:
    loss, loss_d, terms = losses(bench, part, judged=True)
    loss.backward()
    loss_d.backward()
    return terms


def plain(bench: Bench, part) -> dict:
    c, t, task = bench.config, bench.teacher, bench.task
    drawn, told, autocast = part.drawn, part.told, bench.accelerator.autocast
    x_t, look, tokens = task.noisy(part.x_0, part.noise, drawn), Encoder(t, c.entry, task), pooled(told)

    def see(x):
        return look(x, part.sigma_d, part.noise_d, told)

    def teach():
        with torch.no_grad():
            return task.estimate(t.network, x_t, drawn, told)

    with Features(bench.net, {name: p for name, (p, _) in bench.pairs.items()}) as f_stu:
        x_stu = task.estimate(bench.student, x_t, drawn, told)
    with autocast():
        x_tea = teach() if task.wants_teacher else None
        loss = task(x_stu, x_0=part.x_0, x_t=x_t, drawn=drawn, told=told, student=bench.student, x_tea=x_tea)
        with Features(t.network, {name: p for name, (_, p) in bench.pairs.items()}) as f_tea:
            teach()
        icd, _ = ICD()(f_stu, f_tea)
        x_tea = teach()
        with torch.no_grad():
            true = [see(x_tea), see(part.x_0)]
        gen = bench.mca.gen(see(x_stu), tokens)
        disc = bench.mca.disc(see(x_stu.detach()), true, tokens)
    (loss + c.icd * icd + c.mca * gen).backward()
    (c.mca * disc).backward()
    return {k: v.item() for k, v in dict(task=loss, icd=icd, mca_gen=gen, mca_disc=disc).items()}


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


def material(family: str, batch: int, size) -> tuple[Teacher, Corpus]:
    "A teacher, and clips for it."
    if family == "tiny-svd":
        teacher = load_teacher(family)
        return teacher, encoded(teacher, None, max(8, batch), progress=False)
    teacher = random_teacher(family)
    f, h, w = size or clip_size(teacher.family)
    clips = torch.rand(batch, f, 3, h, w, generator=torch.Generator().manual_seed(0))
    request = Request(clips[:, 0], torch.zeros(batch, 2, dtype=torch.long), ("noise",) * batch, clips)
    with torch.no_grad():
        corpus = Corpus(teacher.encode(clips), teacher.tell(request), ["noise"] * batch, family)
    return replace(teacher, vae=None, parts={}), corpus


def whole_step(bench: Bench, batch) -> str:
    "The peak of a whole training step on a GPU, against what a card has."
    for _ in range(2):  # the first one makes the optimisers' moments
        torch.cuda.reset_peak_memory_stats()
        train_step(bench, batch)
    used = torch.cuda.max_memory_allocated() / 1e9
    verdict = "fits" if used < CARD_GB else "does not fit"
    return f"a whole step, weights and optimisers included: {used:.1f} GB; {verdict} in {CARD_GB} GB"


def main(steps: int, batch: int | None, family: str, full: bool) -> None:
    if full and not torch.cuda.is_available():
        sys.exit(
            print("bench_train: --full needs a GPU, and there is none here; without it: the bundled model", file=sys.stderr) or 2
        )
    family, batch = ("svd", batch or 1) if full else (family, batch or 4)
    config = TrainConfig.paper(family, batch=batch, accumulation=1, mca_from=0)
    teacher, corpus = material(family, batch, config.size)
    bench = bench_of(config, teacher, Plan.paper(family))
    batch = draw(config, corpus, 0)
    part = batch.to(bench.accelerator.device)
    seconds = {ours: [], plain: []}
    near = 1e-4 if config.precision == "no" else 1e-2
    for i in range(steps + 2):
        terms = {}
        for step in seconds:
            spent, terms[step] = timed(step, bench, part)
            if i >= 2:
                seconds[step].append(spent)
        for k, v in terms[plain].items():  # the same losses, or the comparison is void
            assert abs(v - terms[ours][k]) < near * max(1, abs(v)), (k, v, terms[ours][k])
    t, m = ({s.__name__: f(s) for s in seconds} for f in (lambda s: median(seconds[s]), lambda s: peak(s, bench, part)))
    frames, height, width = clip_size(FAMILIES[family], config.latent)
    where = torch.cuda.get_device_name() if part.x_0.is_cuda else "cpu"
    size = f"{len(part.x_0)} of {frames}×{height}×{width}"
    print(f"{family} student, batch {size}, precision {config.precision}, {where}, median of {steps} steps in turns")
    print(f"seconds a step: ours {t['ours']:.3f}, plain {t['plain']:.3f}; ratio {t['ours'] / t['plain']:.2f}")
    print(
        f"peak memory: ours {m['ours'] / 2**20:.0f} MiB, plain {m['plain'] / 2**20:.0f} MiB; ratio {m['ours'] / m['plain']:.2f}"
    )
    if part.x_0.is_cuda:
        print(whole_step(bench, batch))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, help="clips in a step; 4, or 1 with --full")
    parser.add_argument("--family", default="tiny-svd", choices=[n for n in FAMILIES if n.startswith("tiny")], metavar="NAME")
    parser.add_argument("--full", action="store_true", help="SVD's student at full size; needs a GPU")
    main(**vars(parser.parse_args()))
