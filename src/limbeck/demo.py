"""`limbeck demo`: comparisons on real images that come with a package, of distillation or of adversarial training."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from limbeck.config_files import load_recipe
from limbeck.listings import say
from limbeck.present import compare_and_show

if TYPE_CHECKING:
    from pathlib import Path

PARTS = {"few-labels": "distill/digits/few-labels", "long-tail": "distill/digits-long-tail/gkl"}
"""Sub-folder and recipe of each part."""
ROBUST = "robust/digits/demo"


def run_demo(folder: Path, seeds: int, workers: int | None = None) -> None:
    """Train, print and draw both parts; what is finished already is only shown.

    Args:
        folder: One sub-folder per part is made in it.
        seeds: Runs per row and setting.
        workers: Runs to train at once; None is as `limbeck compare` has it.
    """
    start = time.monotonic()
    for name, recipe in PARTS.items():
        compare_and_show(load_recipe(recipe), folder / name, rows=None, seeds=seeds, workers=workers)
    say(
        f"\nThe demo took {time.monotonic() - start:.0f} s. It goes on where it stopped; for more seeds:\n"
        f"    limbeck demo --seeds {2 * seeds} --folder {folder}"
    )


def run_robust_demo(folder: Path, seeds: int, workers: int | None = None) -> None:
    """Train robustly with three methods, attack with AutoAttack, print and draw; finished runs are only shown.

    Args:
        folder: Of the comparison.
        seeds: Runs per row.
        workers: Runs to train at once; None is as `limbeck compare` has it.
    """
    start = time.monotonic()
    compare_and_show(load_recipe(ROBUST), folder, rows=None, seeds=seeds, workers=workers)
    say(
        f"\nThe demo took {time.monotonic() - start:.0f} s. It goes on where it stopped; for more seeds:\n"
        f"    limbeck demo --robust --seeds {2 * seeds} --folder {folder}"
    )
