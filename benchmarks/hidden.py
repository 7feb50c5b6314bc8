"""Losses from hidden states on a device: ours, the same of logits, and others' where they are installed.

Forward and backward to the student's hidden states and head, the teacher frozen. Each is verified against torch's dense
form in float32, then timed in turns beside one multiplication of all hidden states with a head.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import tables, verify
from benchmarks.devices import Device
from benchmarks.measure import DTYPES, WRONG, first_line
from limbeck import functional

Row = dict[str, Any]
Sides = Sequence[Tensor]  # hidden states, head, and the teacher's
SIZES = {"cuda": (4096, 2048, 32000), "cpu": (256, 64, 4000)}  # tokens, width, classes
TOLERANCE = {"fp32": 1e-4, "bf16": 0.1}  # the dense form rounds its logits to bf16
DENSE = {"KL": functional.kl_divergence, "JS": functional.js_divergence, "GKL": functional.gkl_divergence}
LINEAR = {"KL": functional.linear_kl, "JS": functional.linear_js, "GKL": functional.linear_gkl}
ROUNDS = 5


class Form(NamedTuple):
    """One way to compute a divergence from both sides."""

    name: str
    divergence: str
    loss: Callable[..., Tensor]
    package: str | None = None


def dense(divergence: str, impl: str = "auto") -> Callable[..., Tensor]:
    """The loss of logits that are made first."""
    return lambda h, w, th, tw: DENSE[divergence](h @ w.T, th @ tw.T, impl=impl)


def liger(beta: float) -> Callable[..., Tensor]:
    """Liger's fused linear JSD, which is KL at 0."""

    def loss(hidden: Tensor, head: Tensor, target_hidden: Tensor, target_head: Tensor) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearJSD

        return LigerFusedLinearJSD(jsd_beta=beta)(hidden, head, target_hidden, target_head, None)

    return loss


def trl(beta: float) -> Callable[..., Tensor]:
    """TRL's divergence by tiles, which is KL at 0; it returns a value for each token, and an entropy."""

    def loss(hidden: Tensor, head: Tensor, target_hidden: Tensor, target_head: Tensor) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        given = hidden, head, None, target_hidden, target_head, None
        return ChunkedDivergenceFunction.apply(*given, beta, 1.0, 1.0, None, 1.0, None)[0].mean()

    return loss


def forms() -> list[Form]:
    """Ours from hidden states beside the dense ones, and others'."""
    ours = [Form(f"linear_{name.lower()}", name, LINEAR[name]) for name in LINEAR]
    logits = [Form(f"{name} of logits", name, dense(name)) for name in DENSE]
    others = [
        Form(f"{who} {name}", name, make(beta), package)
        for who, make, package in (("Liger fused linear", liger, "liger_kernel"), ("TRL chunked", trl, "trl"))
        for name, beta in (("KL", 0.0), ("JS", 0.5))
    ]
    return [*logits, *others, *ours]


def make_sides(device: str, dtype: torch.dtype) -> Sides:
    """Draw hidden states and heads, whose logits have a standard deviation of about 3."""
    tokens, width, classes = SIZES[device]
    generator = torch.Generator(device).manual_seed(0)
    size = (3 / width**0.5) ** 0.5
    drawn = [torch.randn(rows, width, generator=generator, device=device) for rows in (tokens, classes) * 2]
    return [x.mul_(size).to(dtype).requires_grad_(place < 2) for place, x in enumerate(drawn)]


def run(device: Device) -> list[Row]:
    """Measure, print and return a row for each form."""
    dtype = "bf16" if device.kind == "cuda" else "fp32"
    given = make_sides(device.kind, DTYPES[dtype])
    tokens, width, classes = SIZES[device.kind]
    size = {"samples": tokens, "classes": classes, "width": width, "dtype": dtype}
    rows = [size | {"contender": form.name, "divergence": form.divergence, "note": ""} for form in forms()]
    steps = [_step(form, given, row, device) for form, row in zip(forms(), rows, strict=True)]
    one = _take_turns(device, given, [(row, step) for row, step in zip(rows, steps, strict=True) if step is not None])
    head = ("from hidden states", "ms", "spread", "products", "extra MB", "error")
    title = f"{tokens:,} tokens of width {width:,}, {classes:,} classes, {dtype}; one product takes {1e3 * one:.2f} ms"
    print("\n".join([title, tables.table(head, [_line(row) for row in rows if not row["note"]])]))
    for row in (row for row in rows if row["note"]):
        print(f"  {row['contender']}: {row['note']}")
    return rows


def _step(form: Form, given: Sides, row: Row, device: Device) -> Callable[[], Sequence[Tensor]] | None:
    """Verify; return what is to be timed, or note why not."""

    def step() -> Sequence[Tensor]:
        return torch.autograd.grad(form.loss(*given), given[:2])

    if form.package and not importlib.util.find_spec(form.package):
        row["note"] = f"{form.package} is not installed"
        return None
    try:
        exact = [x.detach().float().requires_grad_(x.requires_grad) for x in given]
        value = dense(form.divergence, "torch")(*exact)
        expected = [value.detach(), *torch.autograd.grad(value, exact[:2])]
        found = [form.loss(*given).detach(), *step()]
        row["error"] = max(verify.relative(x, y) for x, y in zip(found, expected, strict=True))
        row["extra_bytes"] = device.extra_bytes(step)
    except Exception as error:  # whatever others' code may raise
        row["note"] = first_line(error)
        return None
    if not row["error"] <= TOLERANCE[row["dtype"]]:
        row["note"] = f"{WRONG}: relative error {row['error']:.1e}, at most {TOLERANCE[row['dtype']]:.0e} expected"
        return None
    return step


def _take_turns(device: Device, given: Sides, timed: Sequence[tuple[Row, Callable[[], object]]]) -> float:
    """Fill in the times; return the seconds of one product."""

    def product() -> Tensor:
        with torch.no_grad():
            return given[0] @ given[1].T

    samples: list[list[float]] = [[] for _ in timed]
    products: list[float] = []
    for _ in range(ROUNDS):
        products.append(device.seconds(product, 3))
        for mine, (_, step) in zip(samples, timed, strict=True):
            mine.append(device.seconds(step, 1))
    one = statistics.median(products)
    for mine, (row, _) in zip(samples, timed, strict=True):
        median = statistics.median(mine)
        row |= {"median_us": 1e6 * median, "min_us": 1e6 * min(mine), "max_us": 1e6 * max(mine)}
        row["products"] = median / one
    return one


def _line(row: Row) -> list[str]:
    spread = (row["max_us"] - row["min_us"]) / row["median_us"]
    figures = [f"{row['median_us'] / 1e3:,.2f}", f"{spread:.0%}", f"{row['products']:.2f}"]
    return [row["contender"], *figures, f"{row['extra_bytes'] / 1e6:,.1f}", f"{row['error']:.0e}"]
