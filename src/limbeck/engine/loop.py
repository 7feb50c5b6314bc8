"""The loop. What changes while a run trains, one step, one epoch, and the state that is saved.

One process, or one of several ranks: they come in where batches are cut, where a micro-batch has a share (its samples
over those of the whole step), and where losses synchronise. There is no second loop for them.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from limbeck.adversary.pgd import AttackNotFinite
from limbeck.data import Batch
from limbeck.engine import checkpoint, ranks, run_folder
from limbeck.engine.log import NotFinite, RunLog, RunningMeans, SilentLog, remedy
from limbeck.engine.metrics import NotFiniteLogits, predict
from limbeck.engine.micro_batches import micro_batches
from limbeck.engine.normalised import set_batch_norm
from limbeck.engine.objective import open_objective
from limbeck.engine.optimizer import WeightAverage, build_optimizer
from limbeck.engine.reduced import across_ranks, unreduced
from limbeck.engine.schedule import learning_rate_factor
from limbeck.engine.validation import Split, Validator, best_by
from limbeck.errors import Diverged, Interrupted, UserError
from limbeck.headlines import headline_of

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from limbeck.config import Recipe
    from limbeck.data import DataBundle, Stream
    from limbeck.engine.progress import Reporter
    from limbeck.engine.signals import StopRequest
    from limbeck.engine.teachers import Teacher
    from limbeck.objectives import Batch as ObjectiveBatch
    from limbeck.objectives import Outcome


class Trainer:
    """A run: everything that changes while it trains.

    Args:
        recipe: What to do.
        run: Folder of the run, ready to be written to.
        model: The student, on the data's device.
        data: The data.
        stream: Its training batches.
        teachers: For the task `distill`.
        recorded: The teachers' logits on the training images, if no augmentation makes other views of them.
        guide: Second network that trains, for the task `adversarial`.
        reporter: Whom to tell.
        stop: Says when to stop early.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        model: nn.Module,
        data: DataBundle,
        stream: Stream,
        teachers: Sequence[Teacher],
        *,
        recorded: Sequence[Tensor] = (),
        guide: nn.Module | None = None,
        reporter: Reporter,
        stop: StopRequest,
    ) -> None:
        self.recipe, self.run, self.model, self.data, self.teachers = recipe, run, model, data, teachers
        self.reporter, self.stop = reporter, stop
        self.device, self.ranks = data.device, ranks.here()
        self.epochs = recipe.train.epochs
        self.stream, self.steps_per_epoch = stream, stream.steps_per_epoch
        self.objective = open_objective(
            recipe, model, data, teachers, recorded=recorded, guide=guide, reporter=reporter
        )
        set_batch_norm(self.objective.losses, recipe.train)  # of projectors
        self.call = across_ranks(self.objective, self.ranks)
        self.optimizer = build_optimizer(self.objective, recipe.optimizer, model)
        self.average = self._build_average()
        self.validator = Validator(recipe, data, teachers, self.predict, self.ranks)
        self.means = RunningMeans(self.objective.logged)
        self.epoch, self.step_in_epoch, self.step = 1, 0, 0
        self.best: dict[str, Any] | None = None
        self.optimistic: dict[str, Any] | None = None  # the best on test, which nothing may be chosen by
        self.seconds = 0.0  # of training, over all sessions
        self.saved_step: int | None = None
        self.log_lengths: dict[str, int] = {}

    def _build_average(self) -> WeightAverage | None:
        train = self.recipe.train
        if train.ema_decay is None:
            return None
        warmup = round(train.ema_warmup_epochs * self.steps_per_epoch)
        return WeightAverage(self.model, train.ema_decay, warmup_steps=warmup, constant=train.ema_every == "epoch")

    @property
    def candidate(self) -> nn.Module:
        """The network that validation looks at: in adversarial training the averaged one, if there is one."""
        averaged = self.recipe.task == "adversarial" and self.average is not None
        return self.average.model if averaged and self.average else self.objective.reported

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.epochs

    # --- the loop ---------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train to the end of the last epoch, from wherever the run stands.

        Raises:
            Interrupted: A signal came; the state is saved.
            Diverged: A loss, the weights or the logits are not finite.
            UserError: The folder cannot be written.
        """
        self.saved_at = time.monotonic()
        self.started = self.saved_at - self.seconds
        tensorboard = self.recipe.save.tensorboard
        self.log: RunLog | SilentLog = SilentLog()
        if self.ranks.lead:
            self.log = RunLog(self.run, lengths=self.log_lengths, step=self.step, tensorboard=tensorboard)
        try:
            while self.epoch <= self.epochs:
                self.objective.set_epoch(self.epoch)
                with closing(self._batches()) as batches:  # so that processes that decode end with an interruption
                    for batch in batches:
                        self._optimize(batch)
                        self._after_step()
                self._end_epoch()
        except NotFinite as error:
            raise Diverged(self._divergence(error)) from error
        finally:
            self.seconds = time.monotonic() - self.started
            self.log.close()
            self.objective.close()

    def _batches(self) -> Generator[Batch, None, None]:
        """Yield what is left of the epoch."""
        yield from self.stream.batches(self.epoch, self.step_in_epoch)

    def _optimize(self, batch: Batch) -> None:
        """Make one optimizer step. Micro-batches count by their samples, so a sum over them is the whole batch's."""
        self.step += 1
        self.step_in_epoch += 1
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate() * group.get("factor", 1.0)
        train = self.recipe.train
        pieces = micro_batches(batch, train.accumulate, train.batch_size, self.ranks.world)
        prepared = [self._prepared(piece) for piece in pieces]
        with self._autocast():
            parts = self.objective.prepare_step(prepared)
        samples = batch.whole or len(batch.labels)
        shares = [len(part.labels) / samples for part in parts]

        outcomes: list[Outcome] = []

        def accumulate_gradient() -> None:
            with unreduced(self.call):
                outcomes[:] = [self._backward(part, share) for part, share in zip(parts[:-1], shares, strict=False)]
            outcomes.append(self._backward(parts[-1], shares[-1]))

        with self.objective.around_step(accumulate_gradient):
            self.optimizer.zero_grad()
            accumulate_gradient()
            if self.recipe.optimizer.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.optimizer.clip_norm)
            self.optimizer.step()
        for part, outcome in zip(parts, outcomes, strict=True):
            self.objective.after_step(part, outcome)
        if self._ranks_meet:
            self.objective.synchronize()
        if self.average is not None and self.recipe.train.ema_every == "step":
            self.average.update(self.step)
        found = zip(shares, parts, outcomes, strict=True)
        values = [share * self._values(part, outcome) for share, part, outcome in found]
        self.means.add(self.step, samples, self.ranks.sum(sum(values[1:], start=values[0])))
        self.reporter.step(self.step, samples)

    @property
    def _ranks_meet(self) -> bool:
        """Whether ranks sum their statistics, of C² numbers, after this step, and may save: they know it unasked."""
        save = self.recipe.save
        wanted = self.step % save.log_every == 0 or bool(save.every_steps and self.step % save.every_steps == 0)
        return self.ranks.world == 1 or wanted

    def _prepared(self, part: Batch) -> ObjectiveBatch:
        try:
            with self._autocast():
                return self.objective.prepare(part)
        except AttackNotFinite as error:
            raise NotFinite("attack", self.step) from error
        except ValueError as error:  # such as pixels outside of [0, 1]
            raise UserError(str(error)) from error

    def _backward(self, part: ObjectiveBatch, share: float) -> Outcome:
        with self._autocast():
            outcome: Outcome = self.call(part)
        # Gradients are averaged over the ranks, and a share is of the samples of all of them.
        (share * self.ranks.world * outcome.loss).backward()  # type: ignore[no-untyped-call]
        return outcome

    def _values(self, batch: ObjectiveBatch, outcome: Outcome) -> Tensor:
        """Return what `RunningMeans` adds up, on the device: the loss, its parts, the score."""
        parts = (part.detach() for part in outcome.parts.values())
        return torch.stack([outcome.loss.detach(), *parts, self.objective.score(batch, outcome)])

    def _learning_rate(self) -> float:
        factor = learning_rate_factor(
            self.recipe.schedule, self.step, steps_per_epoch=self.steps_per_epoch, epochs=self.epochs
        )
        return self.recipe.optimizer.learning_rate * factor

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.recipe.train.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _after_step(self) -> None:
        """Log, refresh, save, stop: what is due at this step."""
        save, refresh_every = self.recipe.save, self.recipe.train.refresh_every
        if self.step % save.log_every == 0:
            self._log_step()
        if refresh_every != "epoch" and self.step % refresh_every == 0:
            self.objective.refresh()
        many_steps = save.every_steps is not None and self.step % save.every_steps == 0
        long_ago = save.every_seconds is not None and time.monotonic() - self.saved_at > save.every_seconds
        asked = self._ranks_meet and self._asked_to_stop()
        if asked or many_steps or (long_ago and self._ranks_meet):
            self.save()
        if asked:
            raise self._interrupted()

    def _asked_to_stop(self) -> bool:
        """Whether a signal came to any rank; they agree on it where they meet, since it takes a wait."""
        return self.ranks.any(self.stop.signal_name is not None, self.device)

    def _interrupted(self) -> Interrupted:
        why = self.stop.signal_name or "a signal to another rank"
        return Interrupted(f"stopped by {why}: {self.run} is saved after step {self.step} of {self.steps}")

    def _end_epoch(self) -> None:
        """Refresh the losses, look at the validation split, keep the best weights, and save if it is time."""
        by_epochs = self.recipe.train.refresh_every == "epoch"
        self.objective.refresh() if by_epochs else self.objective.synchronize()
        if self.average is not None and self.recipe.train.ema_every == "epoch":
            self.average.update(self.epoch)
        means = self.means.take("epoch")
        self._check_weights()
        others = (self.objective.guide, None if self.average is None else self.average.model)
        for network in dict.fromkeys((self.model, self.candidate, *(other for other in others if other is not None))):
            self.ranks.share_buffers(network)
        headline = headline_of(self.recipe.task)
        watched = {name: means[name] for name in self.objective.logged if name not in self.objective.terms}
        line: dict[str, Any] = {"kind": "epoch", "epoch": self.epoch, "step": self.step}
        line |= {
            "train": {"loss": means["loss"], headline.training.key: means["score"], **watched},
            **self.validator.measure_epoch(self.candidate, self.average),
        }
        self.log.write(line, self._timing())
        self.reporter.epoch(line, self.epochs)
        self._keep_best(line)
        finished = self.epoch == self.epochs
        due = finished or self.epoch % self.recipe.save.every_epochs == 0
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        asked = self._asked_to_stop()
        if due or asked:
            self.save()
        if asked and not finished:
            raise self._interrupted()

    # --- what is written down ---------------------------------------------------------------------------------

    def _log_step(self) -> None:
        means = self.means.take("line")
        line = {
            "kind": "step",
            "step": self.step,
            "epoch": self.epoch,
            "learning_rate": self._learning_rate(),
            "loss": means["loss"],
            "parts": {name: means[name] for name in self.objective.logged},
            "weights": self.objective.weights,
        }
        self.log.write(line, self._timing())

    def _timing(self) -> dict[str, float]:
        seconds = time.monotonic() - self.started
        return {"seconds": seconds, "steps_per_second": self.step / max(seconds, 1e-9)}

    def predict(self, split: Split, model: nn.Module | None = None) -> Tensor:
        """Return the logits on a split, of the student unless another model is given; float32 `(N, C)` on the CPU.

        Raises:
            UserError: They are not finite.
        """
        source = self.data.validation if split == "validation" else self.data.test
        try:
            return predict(model or self.model, source, self.ranks)
        except NotFiniteLogits as error:
            raise Diverged(self._divergence(NotFinite(f"logits of the {split} split", self.step))) from error

    def _keep_best(self, line: Mapping[str, Any]) -> None:
        validation, test, by = line["validation"], line.get("test"), best_by(self.recipe)
        key = headline_of(self.recipe.task).main.key  # the test images are not attacked
        if test and (self.optimistic is None or test[key] > self.optimistic["test"][key]):
            self.optimistic = {"epoch": self.epoch, "test": test}
        if validation and (self.best is None or validation[by] > self.best["validation"][by]):
            weights = {name: value.detach().cpu().clone() for name, value in self.candidate.state_dict().items()}
            self.best = {"epoch": self.epoch, "validation": validation, "weights": weights}

    # --- the state --------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint, unless something in it is not finite.

        Raises:
            NotFinite: A loss since the last look, or the weights.
            UserError: The folder cannot be written.
        """
        means = self.means.state_dict()
        self._check_weights()
        self.saved_at, self.saved_step = time.monotonic(), self.step
        if not self.ranks.lead:
            return
        state = {
            "fingerprints": self._fingerprints(),
            "threads": torch.get_num_threads(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.objective.losses.state_dict(),
            "guide": None if self.objective.guide is None else self.objective.guide.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "random": checkpoint.random_state(self.device),
            "means": means,
            "best": self.best,
            "optimistic": self.optimistic,
            "seconds": time.monotonic() - self.started,
            "log_lengths": self.log.sync(),
        }
        checkpoint.save_checkpoint(self.run / run_folder.CHECKPOINT, state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint. The schedule is a function of the step, and needs no state.

        Raises:
            UserError: The checkpoint was made with another recipe, other data or other teachers.
        """
        path = self.run / run_folder.CHECKPOINT
        checkpoint.refuse_other_fingerprint(state["fingerprints"], self._fingerprints(), path)
        self.epoch, self.step_in_epoch, self.step = state["epoch"], state["step_in_epoch"], state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.losses.load_state_dict(state["losses"])
        if self.objective.guide is not None:
            self.objective.guide.load_state_dict(state["guide"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        checkpoint.restore_random_state(state["random"], self.device)
        self.means.load_state_dict(state["means"])
        self.best, self.optimistic, self.seconds = state["best"], state["optimistic"], state["seconds"]
        self.log_lengths, self.saved_step = state["log_lengths"], state["step"]

    def _fingerprints(self) -> dict[str, str]:
        return {
            "recipe": run_folder.recipe_fingerprint(self.recipe),
            "data": self.data.fingerprint,
            "teachers": " ".join(teacher.fingerprint for teacher in self.teachers),
            "network": checkpoint.shapes(self.model),
        }

    def _check_weights(self) -> None:
        """Raise NotFinite if a weight or a statistic, of networks or losses, is not, though every loss so far was."""
        models = [self.model, self.objective.losses]
        models += [] if self.objective.guide is None else [self.objective.guide]
        models += [] if self.average is None else [self.average.model]
        tensors = [tensor for model in models for tensor in model.state_dict().values()]
        if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
            raise NotFinite("weights", self.step)

    def _divergence(self, error: NotFinite) -> str:
        good = f"no checkpoint was written to {self.run} yet"
        if self.saved_step is not None:
            good = f"the last good checkpoint, {self.run / run_folder.CHECKPOINT}, is from step {self.saved_step}"
        epoch = (error.step - 1) // self.steps_per_epoch + 1
        return (
            f"`{error.term}` is not finite at step {error.step} of {self.steps} (epoch {epoch} of {self.epochs}); "
            f"{good}. {remedy(error, self.objective.terms)}"
        )
