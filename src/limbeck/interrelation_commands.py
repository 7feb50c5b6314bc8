"""What `limbeck interrelations` does: how alike classes are to a teacher, into a file. No torch before it computes."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from limbeck.errors import UserError
from limbeck.interrelation_files import KINDS, OPTIONS_OF, PAIRED, InterrelationRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe
    from limbeck.interrelation_files import InterrelationFile

LISTED = 10  # classes whose nearest ones are printed
PAIRED_WARNING = (
    "{kind} compares sample k of one class with sample k of another, which chance has paired: it tells almost nothing "
    "of which classes are alike. centroid, classifier and covariance do"
)


class Features(str, Enum):
    """What is looked at of the teacher."""

    penultimate = "penultimate"
    logits = "logits"


class Negative(str, Enum):
    """What becomes of negative cosines."""

    shift = "shift"
    clip = "clip"


def interrelations(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="Folder of a run, or a file of weights.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Data set, or a recipe whose data it is.", show_default="the run's"),
    ] = None,
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(KINDS)}.")] = "centroid",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where it goes.", show_default="KIND.safetensors")
    ] = None,
    features: Annotated[
        Features | None, typer.Option(help="What is looked at of the teacher.", show_default="penultimate")
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Of cka, rbf, polynomial: samples of each class.",
            show_default="as many as the smallest class has, at most 500",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of their draw.", show_default="0")] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Of rbf, in roots of the median squared distance.", show_default="0.4")
    ] = None,
    power: Annotated[int | None, typer.Option(min=1, help="Of polynomial.", show_default="2")] = None,
    center: Annotated[
        bool | None,
        typer.Option("--center/--no-center", help="Of centroid: subtract the mean of all.", show_default="center"),
    ] = None,
    negative: Annotated[
        Negative | None,
        typer.Option(
            help="Of centroid, classifier: make (1 + cos) / 2 of cosines, or 0 of negative ones.", show_default="shift"
        ),
    ] = None,
    sharpness: Annotated[
        float, typer.Option(min=0, help="kappa in the cost 1 - exp(-kappa (1 - similarity)); 0 leaves 1 - similarity.")
    ] = 1.0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw it, into a .png or .svg.", show_default="no picture")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Network of a file of weights.", show_default="the run's")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Change an option of the data: --set data.folder=FOLDER"),
    ] = None,
) -> None:
    """Compute how alike classes are to a teacher, for losses that transport between them."""
    from limbeck.listings import loading, say

    given: dict[str, Any] = {
        "features": features.value if features else None,
        "per_class": per_class,
        "seed": seed,
        "bandwidth": bandwidth,
        "power": power,
        "center": center,
        "negative": negative.value if negative else None,
    }
    request = _request(kind, {name: value for name, value in given.items() if value is not None})
    recipe, name = _recipe(teacher, data, model, overrides or ())
    if plot:
        from limbeck.analysis.interrelations import check_ending

        check_ending(plot)
    with loading():
        from limbeck.engine.build_interrelations import build_interrelations
        from limbeck.engine.progress import open_reporter
    place = out or Path(f"{kind}.safetensors")
    with open_reporter() as reporter:
        content = build_interrelations(
            teacher, recipe, place, request, sharpness=sharpness, data_name=name, reporter=reporter
        )
    _print(content)
    say(f"File: {place}")
    if plot:
        from limbeck.analysis.interrelations import save_picture

        save_picture(content, plot)
        say(f"Picture: {plot}")


def _request(kind: str, given: dict[str, Any]) -> InterrelationRequest:
    """Return the request, or raise UserError for an unknown kind or an option of another one."""
    from limbeck.config import did_you_mean

    if kind not in KINDS:
        raise UserError(f"--kind: unknown kind `{kind}`; {did_you_mean(kind, KINDS)}")
    for name in given:
        if kind not in OPTIONS_OF[name]:
            option, kinds = name.replace("_", "-"), ", ".join(OPTIONS_OF[name])
            raise UserError(f"--{option} belongs to {kinds}, got it with --kind {kind}; leave it out")
    return InterrelationRequest(kind, **given)


def _recipe(teacher: Path, data: str | None, model: str | None, overrides: Sequence[str]) -> tuple[Recipe, str]:
    """Return a recipe with the data, and the network of a file of weights; and what the data are called."""
    from limbeck.config_files import override, recipe_of_file, short_name

    if teacher.is_dir():
        if model is not None:
            raise UserError(f"--model {model} names the network of a file of weights; the run {teacher} has its own")
        recipe, name = _recipe_of_run(teacher, data)
        return override(recipe, overrides), name
    if not teacher.is_file():
        raise UserError(f"TEACHER expected the folder of a run or a file of weights, got {teacher}, which is not there")
    missing = [word for word, value in (("DATA", data), ("--model", model)) if value is None]
    if data is None or model is None:
        raise UserError(f"a file of weights expected DATA and --model beside it, got no {' and no '.join(missing)}")
    if data in _data_sets():
        recipe = cast("Recipe", recipe_of_file(None, model, teacher, data, overrides))
        return recipe, data
    network = cast("Recipe", recipe_of_file(None, model, teacher, "digits", ())).model
    return override(_read_recipe(data).model_copy(update={"model": network}), overrides), short_name(data)


def _recipe_of_run(run: Path, data: str | None) -> tuple[Recipe, str]:
    """Return the recipe of a run with its own data, or with other ones."""
    from limbeck.config import DataOptions
    from limbeck.config_files import load_recipe, short_name

    config = run / "config.yaml"
    if not config.is_file():
        raise UserError(f"TEACHER expected the folder of a run or a file of weights, got {run}, which holds no run")
    own = load_recipe(str(config))
    if data is None or data == own.data.name:
        return own, own.data.name
    if data in _data_sets():
        return own.model_copy(update={"data": DataOptions.model_validate({"name": data})}), data
    return _read_recipe(data), short_name(data)


def _data_sets() -> set[str]:
    from limbeck.config import DataOptions
    from limbeck.config_tasks import TASK_DATA

    return set(get_args(DataOptions.model_fields["name"].annotation)) - {"custom"} - TASK_DATA.keys()


def _read_recipe(data: str) -> Recipe:
    from limbeck.config_files import load_recipe

    try:
        return load_recipe(data)
    except UserError as error:
        known = ", ".join(sorted(_data_sets()))
        raise UserError(f"DATA expected one of {known}, or a recipe: {error}") from error


def _print(content: InterrelationFile) -> None:
    """Print the spread of similarities and costs, the nearest classes of some classes, and a warning if there is."""
    from limbeck.analysis.interrelations import nearest_classes, off_diagonal
    from limbeck.listings import print_table, say

    matrices = {"similarity": content.interrelations, "cost": content.cost}
    spread = [
        (name, *(f"{value:.3f}" for value in (v.min(), v.max(), v.mean(), v.std())))
        for name, v in ((name, off_diagonal(matrix)) for name, matrix in matrices.items())
        if len(v)
    ]
    looked = sorted(set(content.samples))
    counts = f"; {'-'.join(map(str, looked[:: max(1, len(looked) - 1)]))} samples of each" if looked else ""
    say(f"{content.kind}: {KINDS[content.kind]}")
    say(f"{len(content.cost)} classes of {content.data}{counts}; teacher {content.teacher}")
    print_table(("between two classes", "min", "max", "mean", "deviation"), spread, numbers=True)
    nearest = nearest_classes(content.interrelations)
    if content.kind != "uniform" and nearest.shape[1]:
        rows = [
            (str(c), ", ".join(f"{other} ({content.interrelations[c, other]:.3f})" for other in nearest[c]))
            for c in range(min(len(nearest), LISTED))
        ]
        print_table(("class", "nearest classes (similarity)"), rows)
    if content.kind in PAIRED:
        say(f"WARNING: {PAIRED_WARNING.format(kind=content.kind)}.")
