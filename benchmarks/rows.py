"""Measured rows as a CSV file, with what they were measured with."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def commit() -> str:
    """Return the short hash of the commit, marked where files differ from it; "unknown" outside a clone."""
    changed = ("status", "--porcelain", "--untracked-files=no", "--", "src", "benchmarks", ":!benchmarks/results")
    try:
        found = [
            subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), changed)
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found[0]}-dirty" if found[1] else found[0]


def write(rows: Sequence[Mapping[str, object]], path: Path, what: Mapping[str, object]) -> None:
    """Write the rows, each with `what` was measured, torch, threads, load and commit beside it."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    write_beside(rows, path, {**what, **machine, "load": f"{os.getloadavg()[0]:.1f}", "commit": commit()})


def write_beside(rows: Sequence[Mapping[str, object]], path: Path, beside: Mapping[str, object]) -> None:
    """Write rows that may lack columns of others, with the same values beside each."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[*columns, *beside], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **beside} for row in rows)
