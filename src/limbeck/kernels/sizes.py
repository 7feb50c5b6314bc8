"""Sizes of the kernels' tiles, each with its reason. They are reasoned, not tuned: nothing here was timed on a GPU."""

from __future__ import annotations

import contextlib
import functools

import torch

VECTOR_BYTES = 16  # the widest load of one thread
LANES = 128  # threads of a program along a long row: registers let 4 to 12 programs share a multiprocessor
SHORT_CLASSES = 1024  # up to here a warp holds whole rows in registers: 32 pairs of logits a thread
SHORT_PAIRS = 512  # of narrower rows a warp takes several, 16 pairs a thread
GRADIENT_PAIRS = 2048  # of one program of the backward pass: 4 warps, 16 pairs a thread
JS_SHORT_CLASSES = 4096  # for JS up to here a program holds whole rows in registers: 16 pairs in each of 256 threads
BATCH_ROWS = 1024  # rows summed by one program: the sums of a million rows are then a thousand
PROGRAMS_EACH = 8  # rows are split until every multiprocessor has so many programs
SPLIT_TILES = 4  # but a part of a row has at least so many tiles, so that merging parts stays small beside reading them
MOST_BLOCKS = 65_535  # along any but the first axis of a grid
MULTIPROCESSORS = 132  # where there is no GPU to ask: an H100's


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """How many the device has."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else MULTIPROCESSORS


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def power_of_two(x: int) -> int:
    """The smallest power of two of at least x."""
    return 1 << max(x - 1, 0).bit_length()


def gradient_block(classes: int) -> int:
    """Classes that a program of the backward pass takes: wider where a grid would have more blocks than it may."""
    return min(power_of_two(classes), max(GRADIENT_PAIRS, power_of_two(-(-classes // MOST_BLOCKS))))


def parts_of_row(samples: int, tiles: int, device: torch.device) -> int:
    """How many programs share a row: a power of two, 1 where the rows alone fill the device."""
    wanted = PROGRAMS_EACH * multiprocessors(device) // samples
    return 1 << (max(min(wanted, tiles // SPLIT_TILES), 1).bit_length() - 1)
