"""The recipe that the arguments of `limbeck.fit` and `limbeck.compare` mean. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pydantic import ValidationError

from limbeck.config import (
    TERMS,
    AdversaryOptions,
    CrossEntropyTerm,
    OptimizerOptions,
    Recipe,
    SaveOptions,
    ScheduleOptions,
    Term,
    TermOptions,
    TrainOptions,
    did_you_mean,
)
from limbeck.config_errors import one_line
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.config_errors import Keys

Loss: TypeAlias = "str | TermOptions | Sequence[str | TermOptions]"

ALIASES = {"ce": "cross_entropy"}
LEARNING_RATES = {"sgd": 0.05, "adamw": 1e-3, "lamb": 5e-3}  # where none is given
OF_THE_LOADER = ("batch_size", "drop_last")
OF_THE_CALL = ("epochs", "device")


class Settings(NamedTuple):
    """How to train, as `limbeck.fit` and `limbeck.compare` were told; see there."""

    epochs: int
    optimizer: Literal["sgd", "adamw", "lamb"] | OptimizerOptions
    learning_rate: float | None
    schedule: Literal["constant", "cosine", "onecycle"] | ScheduleOptions
    loop: TrainOptions
    save: SaveOptions
    device: str
    batch_size: int
    objective: AdversaryOptions | None = None


def read_losses(losses: Loss) -> tuple[Term, ...]:
    """Return the terms of a loss: one divergence means cross-entropy beside it, a list means exactly that.

    Raises:
        UserError: No such loss, no loss, or something else than names and terms.

    Example:
        >>> [term.name for term in read_losses("gkl")], [term.name for term in read_losses(["gkl"])]
        (['cross_entropy', 'gkl'], ['gkl'])
    """
    if isinstance(losses, (str, TermOptions)):
        term = _term(losses)
        return (term,) if isinstance(term, CrossEntropyTerm) else (CrossEntropyTerm(), term)
    if not isinstance(losses, Sequence) or not losses:
        raise UserError(_what_losses_are(losses))
    return tuple(_term(loss) for loss in losses)


def _term(loss: object) -> Term:
    if isinstance(loss, TermOptions):
        return loss
    if not isinstance(loss, str):
        raise UserError(_what_losses_are(loss))
    name = ALIASES.get(loss, loss)
    if name not in TERMS:
        raise UserError(f"`losses`: unknown loss `{loss}`; {did_you_mean(loss, [*TERMS, *ALIASES])}")
    return TERMS[name]()  # type: ignore[call-arg]  # each has its name by default


def _what_losses_are(got: object) -> str:
    shown = repr(got) if isinstance(got, (int, float, list, tuple, dict)) else type(got).__name__
    return (
        "`losses` expected the name of a loss, a term such as limbeck.config.GKLTerm(weight_power=0.5), "
        f"or a list of these, got {shown}"
    )


def read_rows(losses: Mapping[str, Loss] | Sequence[Loss]) -> dict[str, tuple[Term, ...]]:
    """Return the rows of a comparison. A list's are called by their losses, numbered where two have the same.

    Raises:
        UserError: There are none, or as `read_losses`.

    Example:
        >>> list(read_rows(["ce", "gkl", "gkl", ["kl", "js"]]))
        ['ce', 'gkl', 'gkl-2', 'kl-js']
    """
    if isinstance(losses, Mapping):
        if not losses:
            raise UserError("`losses` expected at least one row, got none")
        return {str(name): read_losses(loss) for name, loss in losses.items()}
    if isinstance(losses, str) or not isinstance(losses, Sequence) or not losses:
        raise UserError(f"`losses` expected a list or a mapping name -> loss, got {losses!r}")
    rows: dict[str, tuple[Term, ...]] = {}
    for loss in losses:
        name, number = _row_name(loss), 1
        while (numbered := name if number == 1 else f"{name}-{number}") in rows:
            number += 1
        rows[numbered] = read_losses(loss)
    return rows


def _row_name(loss: Loss) -> str:
    if isinstance(loss, str):
        return loss
    return loss.name if isinstance(loss, TermOptions) else "-".join(term.name for term in read_losses(loss))


def run_recipe(settings: Settings, losses: Sequence[Term], *, teachers: Sequence[str], seed: int, title: str) -> Recipe:
    """Return the recipe of `limbeck.fit`.

    Args:
        settings: How to train.
        losses: Terms of the loss.
        teachers: Class names of the teachers.
        seed: Of every draw.
        title: For reports.

    Raises:
        UserError: An option is out of range, or belongs to the loader or to the call.
    """
    return _recipe(settings, {"losses": tuple(losses), "teachers": teachers, "seed": seed, "title": title})


def comparison_recipe(
    settings: Settings,
    rows: Mapping[str, Sequence[Term]],
    *,
    teachers: Sequence[str],
    seed: int,
    title: str,
    baseline: str | None,
) -> Recipe:
    """Return the recipe of `limbeck.compare`; see `run_recipe`.

    Args:
        settings: How to train.
        rows: Name of a row -> terms of its loss.
        teachers: Class names of the teachers.
        seed: The first.
        title: For reports.
        baseline: Row that the differences are taken to; `kl`, or else the first, by default.

    Raises:
        UserError: As `run_recipe`, or there is no such row.
    """
    chosen = baseline or ("kl" if "kl" in rows else next(iter(rows)))
    if chosen not in rows:
        raise UserError(f"`baseline` expected a row of `losses`, got `{chosen}`; {did_you_mean(chosen, rows)}")
    contenders = {name: {"settings": (tuple(terms),)} for name, terms in rows.items()}
    compare = {"contenders": contenders, "baseline": chosen}
    return _recipe(settings, {"teachers": teachers, "seed": seed, "title": title, "compare": compare})


def _recipe(settings: Settings, rest: Mapping[str, Any]) -> Recipe:
    _check_kinds(settings)
    teachers = tuple({"module": name} for name in rest["teachers"])
    content = {
        **rest,
        "task": "adversarial" if settings.objective else "distill" if teachers else "supervised",
        # The loaders decide; attacks have to know that pixels lie in [0, 1].
        "data": {"name": "custom", "validation": 0.0, "standardise": settings.objective is None},
        "adversary": settings.objective or AdversaryOptions(),
        "model": {"name": "custom"},
        "teachers": teachers,
        "optimizer": _optimizer(settings),
        "schedule": {"name": settings.schedule} if isinstance(settings.schedule, str) else settings.schedule,
        "train": _train(settings),
        "save": settings.save,
    }
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(one_line(error, content, _blame)) from error


def _check_kinds(settings: Settings) -> None:
    """Raise UserError for options that are no object of their class, such as a dict."""
    expected: dict[str, tuple[type, ...]] = {
        "optimizer": (str, OptimizerOptions),
        "schedule": (str, ScheduleOptions),
        "loop": (TrainOptions,),
        "save": (SaveOptions,),
        "objective": (AdversaryOptions, NoneType),
    }
    for name, kinds in expected.items():
        value = settings._asdict()[name]
        if not isinstance(value, kinds):
            named = {str: "a name", NoneType: "None"}
            words = " or ".join(named.get(kind, f"limbeck.config.{kind.__name__}(...)") for kind in kinds)
            raise UserError(f"`{name}` expected {words}, got {type(value).__name__}")


def _blame(keys: Keys) -> str:
    return "limbeck"


def _optimizer(settings: Settings) -> dict[str, Any]:
    """Return the optimizer's options as a dict, so that the learning rate is checked with them."""
    optimizer, rate = settings.optimizer, settings.learning_rate
    if isinstance(optimizer, str):
        return {"name": optimizer, "learning_rate": LEARNING_RATES.get(optimizer, 0.05) if rate is None else rate}
    return {**optimizer.model_dump(), **({} if rate is None else {"learning_rate": rate})}


def _train(settings: Settings) -> dict[str, Any]:
    for option in (*OF_THE_LOADER, *OF_THE_CALL):
        if option in settings.loop.model_fields_set:
            owner = "the training loader decides on it" if option in OF_THE_LOADER else "it is an argument of its own"
            raise UserError(f"`loop.{option}`: {owner}; leave it out of TrainOptions")
    call = {"epochs": settings.epochs, "device": settings.device, "batch_size": settings.batch_size}
    return {**settings.loop.model_dump(), **call}
