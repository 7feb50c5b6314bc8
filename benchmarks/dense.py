"""Dense losses against the same losses on a class-last copy, and against the pairwise form: memory and time.

    python -m benchmarks.dense [--csv FILE]

Forward and backward of one batch of maps, the teacher frozen, each contender in a process of its own. Memory is the
peak of the resident set above what the process had with its inputs, less the gradient that is returned, in MB and in
units of one (N, C, H, W) float32 tensor.
"""

from __future__ import annotations

import argparse
import csv
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from limbeck import functional

SHAPES = ((4, 21, 64, 64), (2, 150, 96, 96))  # the pairwise form of a crop of 473 would take 40 GB an image
Step = Callable[[], Tensor]


def dense_kl(s: Tensor, t: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """KL, tile by tile."""
    return functional.dense_kl_divergence(s, t, labels=labels, ignore_index=255)


def copied_kl(s: Tensor, t: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """KL of a class-last copy of the pixels that take part."""
    kept = labels != 255
    return functional.kl_divergence(s.movedim(1, -1)[kept], t.movedim(1, -1)[kept])


def dense_gkl(s: Tensor, t: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """GKL, tile by tile."""
    return functional.dense_gkl_divergence(s, t, prior, labels=labels, ignore_index=255, weight_power=0.3)


def copied_gkl(s: Tensor, t: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """GKL of a class-last copy, without pairs."""
    kept = labels != 255
    rows = s.movedim(1, -1)[kept], t.movedim(1, -1)[kept]
    return functional.gkl_divergence(*rows, prior, labels=labels[kept], weight_power=0.3)


def pairwise_gkl(s: Tensor, t: Tensor, prior: Tensor, labels: Tensor) -> Tensor:
    """GKL as Eq. 12 writes it: all pairs of classes of each pixel."""
    kept = labels != 255
    student, teacher = s.movedim(1, -1)[kept], t.movedim(1, -1)[kept]
    weights = prior.pow(0.3)[labels[kept]]
    pairs = weights.unsqueeze(2) * weights.unsqueeze(1)
    gaps = [each.unsqueeze(2) - each.unsqueeze(1) for each in (teacher, student)]
    mse = 0.25 * (pairs * (gaps[0] - gaps[1]) ** 2).sum() / pairs.sum()
    return mse - (teacher.softmax(1) * student.log_softmax(1)).sum(1).mean()


CONTENDERS = {each.__name__: each for each in (dense_kl, copied_kl, dense_gkl, copied_gkl, pairwise_gkl)}


def peak() -> int:
    """Largest resident set of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, shape: tuple[int, ...]) -> tuple[float, float, float]:
    """Return the value, the seconds of the fastest of three steps, and the bytes of the first."""
    generator = torch.Generator().manual_seed(0)
    s = (3 * torch.randn(shape, generator=generator)).requires_grad_()
    t = 3 * torch.randn(shape, generator=generator)
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[:, 0] = 255
    prior = torch.softmax(torch.randn(shape[1], shape[1], generator=generator), -1)
    small = tuple(x[:1, :, :1, :8] for x in (s.detach().clone().requires_grad_(), t))
    CONTENDERS[name](*small, prior, labels[:1, :1, :8].clamp_max(shape[1] - 1)).backward()  # code is loaded once
    before, seconds = peak(), []
    for attempt in range(3):
        start = time.perf_counter()
        value = CONTENDERS[name](s, t, prior, labels)
        (gradient,) = torch.autograd.grad(value, s)
        seconds.append(time.perf_counter() - start)
        if attempt == 0:
            used = peak() - before - gradient.numel() * gradient.element_size()
    return value.item(), min(seconds), max(used, 0)


def main() -> None:
    """Print a table, and write it if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(*measure(arguments.one[0], SHAPES[int(arguments.one[1])]))
        return
    rows = []
    for place, shape in enumerate(SHAPES):
        for name in CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.dense", "--one", name, str(place)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            value, seconds, used = map(float, said)
            unit = 4 * torch.Size(shape).numel()
            sizes = "x".join(map(str, shape))
            rows.append(
                (sizes, name, f"{value:.5f}", f"{1e3 * seconds:.0f}", f"{used / 1e6:.1f}", f"{used / unit:.2f}")
            )
            print("{:>14}  {:<13} value {}  {:>6} ms  {:>8} MB  {:>7} tensors".format(*rows[-1]))
    if arguments.csv:
        with arguments.csv.open("w", newline="") as file:
            csv.writer(file).writerows([("shape", "loss", "value", "ms", "MB", "tensors"), *rows])


if __name__ == "__main__":
    main()
