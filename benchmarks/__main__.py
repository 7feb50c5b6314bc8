"""One benchmark for CPU and GPU: verified first, timed in turns, beside a copy of memory on the same device.

    python -m benchmarks [--device cuda|cpu] [--csv DIR] [--plot [DIR]] [--quick] [--only PART ...] [--shapes NxC ...]

Every part runs in a process of its own; what one fails at, the next does not see. A contender whose value or gradients
are wrong gets no time, and the exit status is 1. Without a GPU the CPU is measured, each kernel runs in Triton's
interpreter for its numbers, and is compiled for GPUs, for its registers.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import devices, parts, rows, tables
from benchmarks.measure import WRONG
from benchmarks.parts import Part, Row

PLOTS = Path("docs/assets")
LATEST = 120, 6  # seconds, and times what a part is guessed to take: then it is ended


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts, or the one that this process was started for."""
    arguments = parser().parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("`--device cuda` expected a GPU that torch can see, got none; --device cpu measures the CPU")
    kind = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = devices.cuda() if kind == "cuda" else devices.cpu()
    if arguments.csv:
        try:  # before anything is measured
            arguments.csv.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            sys.exit(f"`--csv` expected a folder to write to, got {arguments.csv}: {error.strerror}")
    if arguments.part:
        found = parts.run(arguments.part, device, quick=arguments.quick)
        arguments.rows.write_text(json.dumps(found), "utf-8")
        return 0
    return run_all(device, arguments)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    found = argparse.ArgumentParser(
        "benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--device", choices=("cuda", "cpu"), help="the GPU if there is one")
    found.add_argument("--csv", type=Path, metavar="DIR", help="write rows here, as soon as a part is done")
    found.add_argument("--plot", type=Path, nargs="?", const=PLOTS, metavar="DIR", help=f"draw the sweep ({PLOTS})")
    found.add_argument("--quick", action="store_true", help="small and few: does it work at all?")
    found.add_argument("--only", nargs="+", metavar="PART", help="parts whose names contain one of these")
    found.add_argument("--shapes", nargs="+", type=_shape, metavar="NxC", help="batches other than the usual ones")
    found.add_argument("--commit", default=rows.commit(), help="what to write where there is no clone to ask")
    found.add_argument("--part", help=argparse.SUPPRESS)
    found.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return found


def _shape(word: str) -> tuple[int, int]:
    samples, _, classes = word.partition("x")
    if not (samples.isdecimal() and classes.isdecimal() and int(samples) and int(classes)):
        raise argparse.ArgumentTypeError(f"expected samples x classes as 4096x32000, got {word!r}")
    return int(samples), int(classes)


def run_all(device: devices.Device, arguments: argparse.Namespace) -> int:
    """Run part after part; return the exit status."""
    beside = measured_with(device, arguments.commit)
    print(", ".join(f"{name} {value}" for name, value in beside.items() if value != ""), flush=True)
    options = ["--device", device.kind, *(["--quick"] if arguments.quick else [])]
    wanted = parts.plan(device.kind, arguments.shapes, options, quick=arguments.quick)
    wanted = [part for part in wanted if not arguments.only or any(word in part.name for word in arguments.only)]
    if not wanted:
        sys.exit(f"`--only` expected a part's name, got {' '.join(arguments.only)}")
    failed, groups = [], {}
    start, guessed = time.monotonic(), 0.0
    for place, part in enumerate(wanted):
        left = sum(each.seconds for each in wanted[place:])
        pace = (time.monotonic() - start) / guessed if guessed else 1.0
        print(f"\n[{place + 1}/{len(wanted)}] {part.name}; about {left * pace / 60:.1f} min left", flush=True)
        found = run_part(part, device, arguments.csv)
        guessed += part.seconds
        if found is None:
            failed.append(part.name)
            continue
        groups.setdefault(part.group, []).extend(found)
        if arguments.csv and found:
            rows.write_beside(groups[part.group], arguments.csv / f"{part.group}-{device.word}.csv", beside)
    return conclude(device, arguments, groups, failed)


def run_part(part: Part, device: devices.Device, folder: Path | None) -> list[Row] | None:
    """Run its process, which prints; return its rows, or None if it fails."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "rows.json"
        words = ["--rows", str(path)] if part.group else []
        if not part.group and folder:
            words = ["--csv", str(folder / f"{part.name}-{device.word}.csv")]
        quiet = {"KINETO_LOG_LEVEL": "99", "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
        most = LATEST[0] + LATEST[1] * part.seconds
        try:
            status = subprocess.run(
                [*part.command, *words], env={**os.environ, **quiet, **part.environment}, timeout=most
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"more than {most:.0f} s"
        if status:
            print(f"  {part.name} failed: exit status {status}")
            return None
        return json.loads(path.read_text("utf-8")) if part.group else []


def conclude(
    device: devices.Device, arguments: argparse.Namespace, groups: dict[str, list[Row]], failed: Sequence[str]
) -> int:
    """Print what the figures mean, the verdict and what went wrong; draw the sweep."""
    shaped = groups.get("shapes", [])
    if shaped:
        print(f"\n{tables.LEGEND}")
    if device.kind == "cuda":
        print(f"\n{tables.verdict(shaped, parts.TARGETS)}")
    else:
        print("\nNo GPU time was measured: no GPU is here.")
    if arguments.plot and groups.get("sweep"):
        from benchmarks import sweep_picture

        where = device.name if device.kind == "cuda" else f"{device.name}, {torch.get_num_threads()} threads"
        print(sweep_picture.write(groups["sweep"], arguments.plot / f"speed-classes-{device.word}.png", where))
    wrong = [row for found in groups.values() for row in found if str(row.get("note", "")).startswith(WRONG)]
    for row in wrong:
        print(f"{row['contender']} ({row['samples']}, {row['classes']}) {row['dtype']}: {row['note']}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if wrong or failed else 0


def measured_with(device: devices.Device, commit: str) -> Row:
    """Return what every row of a file has beside its figures."""
    try:
        triton = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        triton = "not installed"
    date = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    versions = {"torch": torch.__version__, "triton": triton, "driver": device.driver}
    threads = torch.get_num_threads() if device.kind == "cpu" else ""
    return {"device": device.name, **versions, "threads": threads, "commit": commit, "date": date}


if __name__ == "__main__":
    sys.exit(main())
