"""Batched augmentation against a loop over images with Pillow: normalised views per second of a core, in one run.

    python -m benchmarks.augment

Both make float32 views of the same uint8 batch by the same draws, on one thread. The loop takes its draws from lists
that are made beforehand, not timed, and normalises the batch at once; ours draws as a run does. Views of each batch
are compared before the times are taken: to one grey level for each operation on top of another. The two take turns,
each after a call that is not timed. CPU time is what is measured, so that other work on the machine does not count;
medians over batches and the ratio of medians are printed.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks import pillow_loop
from limbeck.config import AugmentOptions
from limbeck.data import Pixels, augment, normalise
from limbeck.draws import integers

BATCH, SIDE = 128, 32
BATCHES = 40
SEED = 0
PIXELS = Pixels(255, (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))  # CIFAR-100's
PADDING = 4
OPERATIONS, MAGNITUDE = 2, 9
SHARES = (0.08, 1.0)

Change = Callable[[Image.Image], Image.Image]


class Case(NamedTuple):
    """An augmentation, both ways.

    Attributes:
        options: Ours.
        changes: What Pillow is to do to each image of an epoch.
        levels: Grey levels that views may differ by.
    """

    options: AugmentOptions
    changes: Callable[[int, Tensor], list[Change]]
    levels: int


def crop_and_flip(epoch: int, indices: Tensor) -> list[Change]:
    """RandomCrop with padding, then RandomHorizontalFlip."""
    places = integers(SEED, epoch, indices, "crop", 2 * PADDING + 1, (2, 1)).flatten(1).tolist()
    flips = integers(SEED, epoch, indices, "flip", 2).tolist()
    return [
        partial(pillow_loop.crop_and_flip, padding=PADDING, down=down, right=right, flipped=bool(flip))
        for (down, right), flip in zip(places, flips, strict=True)
    ]


def resized_crop(epoch: int, indices: Tensor) -> list[Change]:
    """RandomResizedCrop."""
    boxes = [pillow_loop.box_of(SIDE, SIDE, SHARES, SEED, epoch, index) for index in indices.tolist()]
    return [partial(pillow_loop.resize, box=box, size=(SIDE, SIDE)) for box in boxes]


def auto_augment(epoch: int, indices: Tensor) -> list[Change]:
    """AutoAugment alone."""
    return [partial(pillow_loop.follow, plan) for plan in pillow_loop.auto_augment_plans(SEED, epoch, indices)]


def rand_augment(epoch: int, indices: Tensor) -> list[Change]:
    """RandAugment alone."""
    plans = pillow_loop.rand_augment_plans(OPERATIONS, MAGNITUDE, SEED, epoch, indices)
    return [partial(pillow_loop.follow, plan) for plan in plans]


def whole_pipeline(epoch: int, indices: Tensor) -> list[Change]:
    """Crop, flip and AutoAugment, as in adversarial training with AutoAugment."""
    pairs = zip(crop_and_flip(epoch, indices), auto_augment(epoch, indices), strict=True)
    return [lambda image, first=first, second=second: second(first(image)) for first, second in pairs]


CASES = {
    "crop + flip": Case(AugmentOptions(crop_padding=PADDING, flip=True), crop_and_flip, 0),
    "RandomResizedCrop": Case(AugmentOptions(resized_crop=SHARES), resized_crop, 0),
    "AutoAugment": Case(AugmentOptions(auto_augment=True), auto_augment, 2),
    "RandAugment(2, 9)": Case(
        AugmentOptions(rand_augment_operations=OPERATIONS, rand_augment_magnitude=MAGNITUDE), rand_augment, 2
    ),
    "crop + flip + AutoAugment": Case(
        AugmentOptions(crop_padding=PADDING, flip=True, auto_augment=True), whole_pipeline, 2
    ),
}


def batch_of(epoch: int) -> Tensor:
    """Smooth random images: noise of 8x8 pixels, enlarged, so that no operation finds all levels in use."""
    generator = torch.Generator().manual_seed(epoch)
    noise = torch.rand(BATCH, 3, 8, 8, generator=generator) * 255
    return torch.nn.functional.interpolate(noise, SIDE, mode="bicubic").clamp_(0, 255).to(torch.uint8)


def pillow_views(images: np.ndarray, changes: list[Change]) -> Tensor:
    """The loop, over images `(N, H, W, C)` as data sets for Pillow keep them."""
    views = np.stack(
        [np.asarray(change(Image.fromarray(image))) for image, change in zip(images, changes, strict=True)]
    )
    return normalise(torch.from_numpy(views).permute(0, 3, 1, 2), PIXELS)


def verify(name: str, ours: Tensor, theirs: Tensor, levels: int) -> None:
    """Exit rather than measure wrong views."""
    std = torch.tensor(PIXELS.std).view(-1, 1, 1)
    apart = ((ours - theirs).abs() * std * PIXELS.maximum).max().item()
    if apart > levels + 0.01:
        sys.exit(f"{name}: views differ by {apart:.0f} grey levels")


def seconds_of(call: Callable[[], Tensor]) -> float:
    """Return the CPU time of the second of two calls: the first pays for caches that the other contender emptied."""
    call()
    start = time.process_time()
    call()
    return time.process_time() - start


def time_case(name: str, case: Case) -> tuple[float, float]:
    """Seconds of a batch, ours and Pillow's, medians over batches."""
    ours, theirs = [], []
    for epoch in range(BATCHES):
        images, indices = batch_of(epoch), torch.arange(BATCH)
        changes = case.changes(epoch, indices)
        batched = partial(augment, images, case.options, pixels=PIXELS, seed=SEED, epoch=epoch, indices=indices)
        looped = partial(pillow_views, images.permute(0, 2, 3, 1).contiguous().numpy(), changes)
        verify(name, batched(), looped(), case.levels)
        ours.append(seconds_of(batched))
        theirs.append(seconds_of(looped))
    return statistics.median(ours), statistics.median(theirs)


def main() -> None:
    """Verify, time, print."""
    torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, Pillow {Image.__version__}, 1 thread; {BATCH}x3x{SIDE}x{SIDE}, images per second"
    )
    for name, case in CASES.items():
        ours, theirs = time_case(name, case)
        print(
            f"{name:26s}  batched {BATCH / ours:8,.0f}   Pillow {BATCH / theirs:8,.0f}   ratio {theirs / ours:5.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
