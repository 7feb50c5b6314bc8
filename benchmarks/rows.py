"""Measured rows as a CSV file, with what they were measured with."""

from __future__ import annotations

import csv
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch


def write(rows: Sequence[Mapping[str, object]], path: Path, what: Mapping[str, object]) -> None:
    """Write the rows, each with `what` was measured, torch, threads, load and commit beside it."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    beside = {**what, **machine, "load": f"{os.getloadavg()[0]:.1f}", "commit": commit}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *beside])
        writer.writeheader()
        writer.writerows({**row, **beside} for row in rows)
