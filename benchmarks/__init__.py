"""Timings and memory, each verified before it is measured: `python -m benchmarks.gkl`."""
