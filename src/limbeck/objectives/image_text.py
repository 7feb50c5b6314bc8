"""Learning from pairs of images and texts, and from a teacher's similarities between them.

A pair's value hangs on all others of the step, whichever micro-batch or rank they are in. So a step of several parts
goes twice through the networks: once without a graph for all features, which give the loss and its gradient with
respect to them; and once part by part, where that gradient is handed to the part's own features. The step is then that
of one whole batch, but for rounding (Gao et al. 2021, arXiv 2101.06983, call it gradient caching).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm, GKLTerm, JSTerm, KLTerm
from limbeck.functional.image_text_labels import contrastive_cross_entropy
from limbeck.losses import ContrastiveDivergenceLoss
from limbeck.models.image_text import Towers
from limbeck.models.running import Precision, arithmetic
from limbeck.objectives.supervised import Batch, Outcome, Supervised
from limbeck.objectives.terms import asks_teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limbeck.config import Term
    from limbeck.config_image_text import ImageTextOptions
    from limbeck.objectives.build import Facts


@dataclass(frozen=True, eq=False)
class PreparedPart:
    """A micro-batch, and what the whole step's loss asks of it.

    Attributes:
        images: `(n, C, H, W)`.
        labels: Tokens, int64 `(n, L)`.
        indices: As in `Batch`.
        gradients: Of the loss by the part's features, by scale and bias; features times the rank's samples over n, so
            that a part that counts by its share of the samples adds its own.
        outcome: The whole step's, without a graph.
        random: State of the generators before the part's first forward pass.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    gradients: Towers
    outcome: Outcome
    random: tuple[Tensor, ...]


class ImageText(Supervised):
    """Contrastive losses of pairs, and divergences from one or several teachers' similarities.

    Args:
        student: A network of two towers.
        teachers: Networks of two towers that read the same tokens; their features may have another width. Frozen here.
        terms: cross_entropy, kl, js or gkl, whose weights are sample-wise: there are no classes.
        options: What the terms share.
        epochs: Length of the run, which the terms' decay refers to.
        facts: Of the run.
        precision: What the teachers compute in.
        compiled: See `Supervised`.

    Raises:
        ValueError: A term's options are wrong.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        terms: Sequence[Term],
        options: ImageTextOptions,
        *,
        epochs: int,
        facts: Facts,
        precision: Precision = "same",
        compiled: bool = False,
    ) -> None:
        super().__init__(student, terms, epochs=epochs, facts=facts, compiled=compiled)
        # A tuple is not registered, so train(), parameters(), to() and state_dict() pass the teachers by.
        self.teachers = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)
        self.precision, self.options = precision, options
        self.divergences = {name: divergence(term, options) for name, term in self.terms.items() if asks_teacher(term)}

    # --- one part ---------------------------------------------------------------------------------------------

    def forward(self, batch: Batch | PreparedPart) -> Outcome:
        """Return the loss of a step that is one part on one rank, or what a part of a larger step adds to it.

        Its logits are the similarities' diagonal and the largest others of the rows, see `score`.
        """
        if not isinstance(batch, PreparedPart):
            ours = self._student(batch)
            return self._outcome(ours, self._targets([batch]), self._gather(len(batch.labels)))
        with _random_state(batch.random):
            ours = self._student(cast("Batch", batch))
        products = [(_wide(mine) * _wide(by)).sum() for mine, by in zip(ours, batch.gradients, strict=True)]
        carrier = sum(products[1:], start=products[0])
        known = batch.outcome
        return Outcome(known.loss + (carrier - carrier.detach()), known.logits, known.parts)

    def _student(self, batch: Batch) -> Towers:
        return cast("Towers", self.layers.model(batch.images, batch.labels))

    def score(self, batch: Batch, outcome: Outcome) -> Tensor:
        """Return the share of images whose own text is nearest among all texts of the step."""
        return (outcome.logits[:, 0] >= outcome.logits[:, 1]).float().mean()

    # --- the whole step ---------------------------------------------------------------------------------------

    def prepare_step(self, parts: list[Batch]) -> list[Batch]:
        """Return the parts of a step with the gradient of its whole loss; a step of one part is left as it is."""
        if len(parts) == 1:
            return parts
        states, seen = [], []
        with torch.no_grad(), _buffers_kept(self.student):
            for part in parts:
                states.append(_state(part.images.device))
                seen.append(self._student(part))
        samples = sum(len(part.labels) for part in parts)
        leaves = Towers(
            torch.cat([each.images for each in seen]).requires_grad_(),
            torch.cat([each.texts for each in seen]).requires_grad_(),
            seen[0].scale.detach().clone().requires_grad_(),
            seen[0].bias.detach().clone().requires_grad_(),
        )
        with torch.enable_grad():
            outcome = self._outcome(leaves, self._targets(parts), self._gather(samples))
        gradients = Towers(*torch.autograd.grad(outcome.loss, leaves, allow_unused=True, materialize_grads=True))
        plain = Outcome(
            outcome.loss.detach(), outcome.logits, {name: part.detach() for name, part in outcome.parts.items()}
        )
        prepared, start = [], 0
        for part, state in zip(parts, states, strict=True):
            mine, start = slice(start, start + len(part.labels)), start + len(part.labels)
            factor = samples / max(1, len(part.labels))
            own = Towers(gradients.images[mine] * factor, gradients.texts[mine] * factor, *gradients[2:])
            prepared.append(PreparedPart(part.images, part.labels, part.indices, own, plain, state))
        return cast("list[Batch]", prepared)

    def _gather(self, samples: int) -> Callable[[Tensor], Tensor]:
        """Return what puts the ranks' features together, with the gradient of this one's."""
        return (lambda features: features) if self.facts.gather is None else self.facts.gather(samples)

    def _targets(self, parts: Sequence[Batch]) -> list[Towers]:
        """Return what each teacher makes of all parts, without a graph."""
        if not self.divergences:
            return []
        targets = []
        with torch.no_grad(), arithmetic(parts[0].images.device.type, self.precision):
            for teacher in self.teachers:
                said = [teacher(part.images, part.labels) for part in parts]
                images, texts = (torch.cat([each[tower] for each in said]) for tower in (0, 1))
                targets.append(Towers(images, texts, *said[0][2:]))
        return targets

    def _outcome(self, ours: Towers, targets: Sequence[Towers], gather: Callable[[Tensor], Tensor]) -> Outcome:
        """Return the loss of a whole step, whose features `gather` completes."""
        whole = _completed(ours, gather)
        theirs = [_completed(target, gather) for target in targets]
        parts = {name: self._part(name, term, whole, theirs) for name, term in self.terms.items()}
        return Outcome(self._total(parts), _nearest(whole, self.options.tile), parts)

    def _part(self, name: str, term: Term, ours: Towers, theirs: Sequence[Towers]) -> Tensor:
        if isinstance(term, CrossEntropyTerm):
            return contrastive_cross_entropy(
                ours.images,
                ours.texts,
                logit_scale=ours.scale,
                logit_bias=ours.bias,
                form=self.options.form,
                tile=self.options.tile,
            )
        values = [
            self.divergences[name](
                *ours[:2],
                *target[:2],
                logit_scale=ours.scale,
                target_logit_scale=target.scale,
                logit_bias=ours.bias,
                target_logit_bias=target.bias,
            )
            for target in theirs
        ]
        return torch.stack(values).mean()


def divergence(term: Term, options: ImageTextOptions) -> ContrastiveDivergenceLoss:
    """Return the divergence between similarities that a term of the catalogue stands for.

    Raises:
        ValueError: There is none.
    """
    match term:
        case KLTerm():
            word: Any = "sigmoid_kl" if options.form == "sigmoid" else "kl"
            made = partial(ContrastiveDivergenceLoss, divergence=word, scale_by_t2=term.scale_by_t2)
        case JSTerm():
            made = partial(ContrastiveDivergenceLoss, divergence="js", scale_by_t2=term.scale_by_t2)
        case GKLTerm():
            made = partial(
                ContrastiveDivergenceLoss,
                divergence="gkl",
                weight_power=term.weight_power / term.prior_temperature,  # within a row the two are one
                mse_weight=term.mse_weight,
                ce_weight=term.ce_weight,
            )
        case _:
            raise ValueError(f"task `image_text` expected kl, js or gkl beside cross_entropy, got `{term.name}`")
    return made(temperature=term.temperature, tile=options.tile)


def _completed(towers: Towers, gather: Callable[[Tensor], Tensor]) -> Towers:
    return towers._replace(images=gather(towers.images), texts=gather(towers.texts))


def _wide(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


@torch.no_grad()
def _nearest(towers: Towers, tile: int | None) -> Tensor:
    """Return each image's similarity to its own text and the largest to another one, `(N, 2)`."""
    images, texts = towers.images.float(), towers.texts.float()
    found = []
    for start in range(0, len(images), tile or len(images)):
        rows = images[start : start + (tile or len(images))] @ texts.T
        places = torch.arange(start, start + len(rows), device=rows.device).unsqueeze(1)
        own = rows.gather(1, places)
        others = rows.scatter(1, places, -torch.inf).amax(1, keepdim=True)
        found.append(torch.cat([own, others], 1))
    return torch.cat(found)


@contextmanager
def _buffers_kept(network: nn.Module) -> Iterator[None]:
    """Leave a network's buffers as they were: the statistics of a BatchNorm take in each image once a step."""
    before = [buffer.clone() for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)


def _state(device: torch.device) -> tuple[Tensor, ...]:
    """Return the state of the generators that dropout draws from."""
    cpu = torch.get_rng_state()
    return (cpu, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (cpu,)


@contextmanager
def _random_state(state: tuple[Tensor, ...]) -> Iterator[None]:
    """Draw once more what was drawn from a state on, and go on behind what is drawn now."""
    now = torch.get_rng_state(), *((torch.cuda.get_rng_state(),) if len(state) > 1 else ())
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state(state[1])
    try:
        yield
    finally:
        torch.set_rng_state(now[0])
        if len(state) > 1:
            torch.cuda.set_rng_state(now[1])
