r"""Divergences between softmaxes of logits that are never built: the logits of a tile at a time, from hidden states.

    logits = cap(scale * (hidden head^T + bias)),  cap(x) = softcap * tanh(x / softcap)

The forward pass sweeps over the tiles and keeps a few numbers per token. The backward pass makes each tile once more,
turns both sides' logits into their gradients in place, and adds their products with heads and hidden states to the
gradients that are returned. Besides the two tiles of logits there is what the eighth of a tile needs that is worked on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, full_precision, reduce, widest
from limbeck.functional._linear_sums import Partition
from limbeck.functional._linear_terms import Block, Divergence, Weighting, count

# Tokens and classes of a tile. Products of this size run at the speed of larger ones, and its parts stay in a cache.
TILE = (512, 2048)
TILE_ON_DEVICE = (2048, 8192)  # 64 MiB in float32
PARTS = 8


class Side(NamedTuple):
    """One side's logits, unmade; tensors but `softcap`, and `scale` where it is a number."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None
    scale: Tensor | float
    softcap: float | None

    def dtype(self) -> torch.dtype:
        """What is multiplied in: half stays half."""
        return torch.promote_types(self.hidden.dtype, self.head.dtype)

    def multiply(self, rows: Tensor, columns: Tensor, room: Tensor) -> Tensor:
        """Products of hidden states and rows of the head, in `room`."""
        out = room[: len(rows) * len(columns)].view(len(rows), len(columns))
        return torch.mm(rows.to(room.dtype), columns.to(room.dtype).T, out=out)

    def finish(self, products: Tensor, classes: slice, dtype: torch.dtype) -> Tensor:
        """Logits of products, in place where the dtype allows it."""
        x = products.to(dtype)
        if self.bias is not None:
            x.add_(self.bias[classes])
        if isinstance(self.scale, Tensor) or self.scale != 1:
            x.mul_(self.scale)
        return x if self.softcap is None else x.div_(self.softcap).tanh_().mul_(self.softcap)

    def to_products(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """From the gradient of logits to that of products and bias; both are used up."""
        if self.softcap is not None:
            slope = logits.div_(self.softcap).square_().neg_().add_(1)
            gradient.mul_(slope)
        return gradient.mul_(self.scale) if isinstance(self.scale, Tensor) or self.scale != 1 else gradient


class Plan(NamedTuple):
    """What a call computes, besides its tensors that take a gradient."""

    divergence: Divergence
    reduction: Reduction
    mask: Tensor | None
    tile: tuple[int, int]
    dtype: torch.dtype


def default_tile(hidden: Tensor) -> tuple[int, int]:
    """Tokens and classes."""
    return TILE if hidden.device.type == "cpu" else TILE_ON_DEVICE


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


class _Rooms:
    """Where the products of a tile are made, over and over."""

    def __init__(self, sides: tuple[Side, ...], tile: tuple[int, int]) -> None:
        tokens, classes = min(tile[0], len(sides[0].hidden)), min(tile[1], len(sides[0].head))
        self.rooms = [side.hidden.new_empty(tokens * classes, dtype=side.dtype()) for side in sides]
        self.sides, self.part = sides, max(1, tile[0] // PARTS)

    def products(self, tokens: slice, classes: slice) -> list[Tensor]:
        return [
            side.multiply(side.hidden[tokens], side.head[classes], room)
            for side, room in zip(self.sides, self.rooms, strict=True)
        ]

    def parts(self, tokens: slice) -> list[slice]:
        """Slices of a tile's tokens."""
        return list(_slices(tokens.stop - tokens.start, self.part))


def _swept(student: Side, target: Side, plan: Plan) -> tuple[Tensor, Tensor]:
    """Parts of the values (P, N, 1) and statistics (K, N, 1)."""
    rooms = _Rooms((student, target), plan.tile)
    column = student.hidden.new_zeros((rooms.part, 1), dtype=plan.dtype)
    found = []
    for tokens in _slices(len(student.hidden), plan.tile[0]):
        parts = rooms.parts(tokens)
        states = [plan.divergence.state(column[: part.stop - part.start]) for part in parts]
        for sweep in range(plan.divergence.sweeps):
            for classes in _slices(len(student.head), plan.tile[1]):
                products = rooms.products(tokens, classes)
                for part, state in zip(parts, states, strict=True):
                    plan.divergence.add(state, _block((student, target), products, tokens, part, classes, plan), sweep)
        found += [plan.divergence.finish(state) for state in states]
    parts_of, statistics_of = ([torch.stack(group) for group in groups] for groups in zip(*found, strict=True))
    return torch.cat(parts_of, 1), torch.cat(statistics_of, 1)


def _block(
    sides: tuple[Side, Side], products: list[Tensor], tokens: slice, part: slice, classes: slice, plan: Plan
) -> Block:
    s, t = (side.finish(x[part], classes, plan.dtype) for side, x in zip(sides, products, strict=True))
    return Block(s, t, slice(tokens.start + part.start, tokens.start + part.stop), classes)


def linear_divergence(student: Side, target: Side, plan: Plan) -> Tensor:
    """The reduced divergence, (N,) for "none"."""
    value: Tensor = _apply(*student, *target, plan)
    return value


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a captured graph would hold each tile once more
def _apply(*arguments: Any) -> Tensor:
    value: Tensor = _Tiled.apply(*arguments)  # type: ignore[no-untyped-call]
    return value


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        plan: Plan = arguments[-1]
        student, target = Side(*arguments[:5]), Side(*arguments[5:10])
        parts, statistics = _swept(student, target, plan)
        mask = None if plan.mask is None else plan.mask.unsqueeze(-1)
        factors = plan.divergence.factors(parts, statistics, mask)
        # a part with factor 0 adds nothing, be it infinite
        values = (parts.masked_fill(factors == 0, 0.0) * factors).sum(0)
        if mask is not None:
            values = values.masked_fill(~mask, 0.0)
            factors = factors.masked_fill(~mask, 0.0)
        sizes = (factors * (1 + parts.nan_to_num(0.0, 0.0))).abs().sum(0)
        kept = [x if isinstance(x, Tensor) else None for x in arguments[:-1]]
        # A teacher under inference_mode makes tensors that autograd refuses to save, and that nobody can change.
        ctx.inference = [x if x is not None and x.is_inference() else None for x in kept]
        saved = (None if x is not None and x.is_inference() else x for x in kept)
        ctx.save_for_backward(*saved, statistics, factors, sizes)
        ctx.numbers = [None if isinstance(x, Tensor) else x for x in arguments[:-1]]
        ctx.plan = plan
        return reduce(values.squeeze(-1), plan.reduction, count(values, mask))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear losses expected first derivatives; second ones need the functions of logits")
        *saved, statistics, factors, sizes = ctx.saved_tensors
        given = zip(saved, ctx.inference, ctx.numbers, strict=True)
        arguments: list[Any] = [next((x for x in three if x is not None), None) for three in given]
        student, target = Side(*arguments[:5]), Side(*arguments[5:])
        grad_output, plan = grad_outputs[0], ctx.plan
        if plan.reduction == "mean":
            grad_output = grad_output / count(statistics[0], plan.mask)
        grad_output = grad_output.unsqueeze(-1) if plan.reduction == "none" else grad_output
        unit = _unit(sizes * grad_output, student, target, plan)
        factors, needs = factors * grad_output, ctx.needs_input_grad
        return *_gradients(statistics, factors, student, target, plan, unit, (needs[:5], needs[5:10])), None


@full_precision  # as the forward pass
def _gradients(
    statistics: Tensor,
    factors: Tensor,
    student: Side,
    target: Side,
    plan: Plan,
    unit: Tensor | None,
    needs: tuple[Any, Any],
) -> list[Tensor | None]:
    rooms, both = _Rooms((student, target), plan.tile), (student, target)
    factors = factors if unit is None else factors / unit
    gathered = [_Gathered(side, need, plan, unit) for side, need in zip(both, needs, strict=True)]
    for classes in _slices(len(student.head), plan.tile[1]):
        for tokens in _slices(len(student.hidden), plan.tile[0]):
            products = rooms.products(tokens, classes)
            for part in rooms.parts(tokens):
                block = _block(both, products, tokens, part, classes, plan)
                of_block = statistics[:, block.tokens], factors[:, block.tokens]
                found = plan.divergence.gradients(block, *of_block, gathered[1].wanted)
                for side, x, logits, gradient in zip(both, products, block[:2], found, strict=True):
                    if gradient is None:
                        continue
                    if plan.mask is not None:
                        gradient.masked_fill_(~plan.mask[block.tokens].unsqueeze(-1), 0.0)
                    x[part] = side.to_products(gradient, logits)
            for sums, x in zip(gathered, products, strict=True):
                if sums.wanted:
                    sums.add(x, tokens, classes)
        for sums in gathered:
            sums.close(classes)
    return [gradient for sums in gathered for gradient in sums.gradients()]


def _unit(sizes: Tensor, student: Side, target: Side, plan: Plan) -> Tensor | None:
    """What gradients of products are measured in, so that float16 holds them and their sums over a tile's tokens.

    A factor 1/N would push them below its range, a logit scale above. `sizes` are of each token the sum of |factor| *
    (1 + part): no gradient to logits over the temperature is larger, since w |d - mu| <= sqrt(2 v) <= 1 + v for half a
    variance v, and q / e + p log(p / q) >= 0 leaves p log(p / q) <= 1 + KL.
    """
    if torch.float16 not in (student.dtype(), target.dtype()):
        return None
    largest = sizes.abs().amax() / min(1.0, plan.divergence.temperature)
    largest = torch.maximum(largest * student.scale, largest * target.scale)
    sums = 2**13 / min(plan.tile[0], len(sizes))  # eight times less than float16 holds: hidden states exceed 1
    return largest.clamp_min(torch.finfo(sizes.dtype).tiny * sums) / sums


class _Gathered:
    """Gradients of one side, added up over tiles in at least float32."""

    def __init__(self, side: Side, needs: tuple[bool, ...], plan: Plan, unit: Tensor | None) -> None:
        self.side, self.mask, self.unit = side, plan.mask, unit
        self.wanted = any(needs)
        self.dtype = widest(side.hidden, side.head)
        learns_scale = needs[3]
        self.hidden = self._zeros(side.hidden) if needs[0] or learns_scale else None
        self.bias = self._zeros(side.bias) if side.bias is not None and (needs[2] or learns_scale) else None
        self.head = torch.zeros_like(side.head) if needs[1] else None
        self.rows: Tensor | None = None  # those of the head that belong to the classes at hand
        self.needs = needs

    def _zeros(self, like: Tensor) -> Tensor:
        return torch.zeros(like.shape, dtype=self.dtype, device=like.device)

    def add(self, gradient: Tensor, tokens: slice, classes: slice) -> None:
        """`gradient` belongs to a tile of products."""
        if self.bias is not None:
            self.bias[classes] += gradient.sum(0, dtype=self.dtype)
        if self.hidden is not None:
            _add_product(self.hidden[tokens], gradient, self.side.head[classes])
        if self.head is None:
            return
        if self.rows is None:
            rows = self.head[classes]
            self.rows = rows if rows.dtype == self.dtype and self.unit is None else self._zeros(rows)
        hidden = self.side.hidden[tokens]
        if self.mask is not None:  # 0 * NaN
            hidden = hidden.masked_fill(~self.mask[tokens].unsqueeze(-1), 0.0)
        _add_product(self.rows, gradient.T, hidden)

    def close(self, classes: slice) -> None:
        """All tokens of these classes were added."""
        if self.head is None or self.rows is None:
            return
        if self.unit is not None:
            self.rows.mul_(self.unit)
        if self.rows.dtype != self.head.dtype or self.unit is not None:
            self.head[classes] = self.rows
        self.rows = None

    def gradients(self) -> list[Tensor | None]:
        """For each field of the side, in the dtype of its input."""
        for x in (self.hidden, self.bias):
            if x is not None and self.unit is not None:
                x.mul_(self.unit)
        side = self.side
        found = (self.hidden, self.head, self.bias, self._to_scale() if self.needs[3] else None)
        like = (side.hidden, side.head, side.bias, side.scale)
        typed = [
            x.to(given.dtype) if need and x is not None and isinstance(given, Tensor) else None
            for x, given, need in zip(found, like, self.needs, strict=False)
        ]
        return [*typed, None]

    def _to_scale(self) -> Tensor:
        """Products and bias are linear in it: their sum times gradients is known from those of hidden and bias."""
        assert self.hidden is not None
        hidden = self.side.hidden
        if self.mask is not None:
            hidden = hidden.masked_fill(~self.mask.unsqueeze(-1), 0.0)
        total = (self.hidden * hidden).sum()
        if self.bias is not None and self.side.bias is not None:
            total = total + (self.bias * self.side.bias.masked_fill(self.bias == 0, 0.0)).sum()
        return total / self.side.scale


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums += a @ b, multiplied in the dtype of `a`."""
    if sums.dtype == a.dtype:
        sums.addmm_(a, b.to(a.dtype))
    else:
        sums.add_(a @ b.to(a.dtype))


@torch.no_grad()
def log_masses(target: Side, weighting: Weighting, plan_dtype: torch.dtype, tile: tuple[int, int]) -> Tensor:
    """Logarithms of the tokens' sums of weights (N, 1), from the target's side alone."""
    rooms = _Rooms((target,), tile)
    column = target.hidden.new_zeros((rooms.part, 1), dtype=plan_dtype)
    found = []
    for tokens in _slices(len(target.hidden), tile[0]):
        parts = rooms.parts(tokens)
        states = [(Partition(column[: x.stop - x.start]), Partition(column[: x.stop - x.start])) for x in parts]
        for classes in _slices(len(target.head), tile[1]):
            (products,) = rooms.products(tokens, classes)
            for part, (of_scores, of_target) in zip(parts, states, strict=True):
                t = target.finish(products[part], classes, plan_dtype)
                owners = slice(tokens.start + part.start, tokens.start + part.stop)
                scores = weighting.scores(t, owners, classes)
                of_scores.add(scores.expand_as(t).masked_fill(torch.isneginf(t), -torch.inf))
                of_target.add(t / weighting.temperature)
        found += [weighting.log_mass(a.logarithm(), b.logarithm()) for a, b in states]
    return torch.cat(found)
