"""Memory and time of losses between similarities: whole matrices, tiles, and GKL's pairs written out.

    python -m benchmarks.contrastive [--sizes 1024,2048,4096,8192] [--width 128] [--tile 512] [--csv FILE]

N pairs, features of unit length, float32, forward and backward to the student's features and scale. `whole` makes the
N x N matrices, `tiled` parts of them; `pairwise` is GKL with its weighted MSE as the formula has it, over all pairs of
entries of each row, N x N x N numbers, and is measured at N of 256 at most. `MiB` is the peak of what is alive during a
step above what was alive before it, and counts the gradients.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import write
from limbeck.functional import contrastive_cross_entropy, contrastive_divergence

LOSSES = ("cross_entropy", "kl", "js", "gkl")
LARGEST = 2**30  # bytes of the pairwise form's tensor
SCALE = 20.0
Row = dict[str, object]


def features(count: int, width: int) -> list[Tensor]:
    """Return images and texts of student and teacher; the student's receive gradients."""
    generator = torch.Generator().manual_seed(0)
    made = [normalize(torch.randn(count, width, generator=generator), dim=-1) for _ in range(4)]
    return [x.requires_grad_(place < 2) for place, x in enumerate(made)]


def loss_of(name: str, given: list[Tensor], scale: Tensor, tile: int | None) -> Tensor:
    """Return a loss of the student's features."""
    if name == "cross_entropy":
        return contrastive_cross_entropy(*given[:2], logit_scale=scale, tile=tile)
    word = {"kl": "kl", "js": "js", "gkl": "gkl"}[name]
    return contrastive_divergence(
        *given,
        logit_scale=scale,
        target_logit_scale=SCALE,
        divergence=word,  # type: ignore[arg-type]
        tile=tile,
    )


def pairwise(given: list[Tensor], scale: Tensor) -> Tensor:
    """Return GKL over both directions with its pairs of entries written out."""
    values = []
    for rows, columns, target_rows, target_columns in (given, [given[1], given[0], given[3], given[2]]):
        s, t = scale * rows @ columns.T, SCALE * target_rows @ target_columns.T
        w = torch.softmax(t, -1)
        pairs = (s.unsqueeze(2) - s.unsqueeze(1)) - (t.unsqueeze(2) - t.unsqueeze(1))
        spread = (w.unsqueeze(2) * w.unsqueeze(1) * pairs.square()).sum((1, 2)) / w.sum(-1).square()
        values.append(spread / 4 - (torch.softmax(t, -1) * torch.log_softmax(s, -1)).sum(-1))
    return 0.5 * (values[0] + values[1]).mean()


def peak_mib(step: Callable[[], None]) -> float:
    """Return the peak of what a step has alive."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step()
    alive = peak = 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak / 2**20


def measured(name: str, form: str, count: int, width: int, tile: int) -> Row:
    """Return memory and seconds of a step, the faster of two."""
    given, scale = features(count, width), torch.tensor(SCALE, requires_grad=True)

    def step() -> None:
        for leaf in (*given, scale):
            leaf.grad = None
        if form == "pairwise":
            value = pairwise(given, scale)
        else:
            value = loss_of(name, given, scale, tile if form == "tiled" else None)
        value.backward()  # type: ignore[no-untyped-call]

    peak, seconds = peak_mib(step), []
    for _ in range(2):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return {"loss": name, "form": form, "pairs": count, "mib": round(peak, 1), "seconds": round(min(seconds), 3)}


def rows_of(sizes: list[int], width: int, tile: int) -> Iterator[Row]:
    """Yield a row for each loss, form and size."""
    for count in (64, 128, 256, *sizes):
        if count**3 * 4 <= LARGEST // 4:
            yield measured("gkl", "pairwise", count, width, tile)
            yield measured("gkl", "whole", count, width, tile)
        if count in sizes:
            for name in LOSSES:
                for form in ("whole", "tiled"):
                    yield measured(name, form, count, width, tile)


def main() -> None:
    """Print the rows, and write them where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1024,2048,4096,8192")
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    print(f"{'loss':<14} {'form':<9} {'pairs':>6} {'MiB':>8} {'seconds':>8}")
    rows = []
    for row in rows_of([int(size) for size in given.sizes.split(",")], given.width, given.tile):
        rows.append(row)
        print("{loss:<14} {form:<9} {pairs:>6} {mib:>8.1f} {seconds:>8.3f}".format_map(row), flush=True)
    if given.csv:
        write(rows, given.csv, {"width": given.width, "tile": given.tile})


if __name__ == "__main__":
    main()
