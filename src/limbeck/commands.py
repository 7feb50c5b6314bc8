"""The commands of `limbeck`, one function each. torch is imported by those that compute, inside the function."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from limbeck.errors import UserError
from limbeck.interrelation_commands import interrelations
from limbeck.network_commands import Weights, export, models

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, distil and compare with divergence losses: KL, DKL, IKL, GKL, Wasserstein, and their rivals.",
    epilog="Start with `limbeck demo`: a teacher, students distilled with five losses, a table and pictures.",
)

data = typer.Typer(help="List the data sets, or download one.", invoke_without_command=True)
app.add_typer(data, name="data")

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name of `limbeck recipes`, or a YAML file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="PATH=VALUE", help="Change an option: --set train.epochs=10 --set losses.1.temperature=2"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Runs to train at once, each in a process of its own.",
        show_default="as many as the cores hold at `train.threads` each; 1 without that, or on an accelerator",
    ),
]
Ranks = Annotated[
    int | None,
    typer.Option(
        "--nproc",
        min=1,
        help="Ranks of this machine that share each run, as torchrun would start them.",
        show_default="1",
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option("--folder", metavar="FOLDER", help="Data folder.", show_default="$LIMBECK_DATA, or data")
]


class Norm(str, Enum):
    """Norm of the ball of an attack."""

    linf = "linf"
    l2 = "l2"


def _at_least_one(seeds: int | None) -> int | None:
    if seeds is not None and seeds < 1:
        raise typer.BadParameter(f"expected at least 1, got {seeds}")
    return seeds


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"limbeck {version('limbeck')}")
        raise typer.Exit


def _on_ranks(nproc: int | None) -> None:
    """Let so many ranks do what the command line says, and end with their exit code; go on if that is one."""
    if nproc and nproc > 1:
        from limbeck.launch import launch, without_nproc

        raise typer.Exit(launch(without_nproc(sys.argv[1:]), nproc))


def _one_of(workers: int | None, nproc: int | None) -> None:
    if workers and nproc and min(workers, nproc) > 1:
        raise typer.BadParameter(
            f"expected one of --workers, runs at once, and --nproc, ranks of each run, got {workers} and {nproc}"
        )


@app.callback()
def limbeck(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Hold the options that belong to no command. `--debug` is read by `cli.main`, anywhere on the line."""


@app.command()
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(help="Where runs, tables and pictures go.", show_default="runs/demo, or runs/demo-robust"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(callback=_at_least_one, help="Seeds per loss.", show_default="6, or 3 of the robust demo"),
    ] = None,
    robust: Annotated[
        bool, typer.Option("--robust", help="Instead: three methods of adversarial training, judged by AutoAttack.")
    ] = False,
    workers: Workers = None,
) -> None:
    """Compare five losses on two tasks with real images. Run it again to go on where it stopped."""
    from limbeck.demo import run_demo, run_robust_demo

    if robust:
        run_robust_demo(folder or Path("runs/demo-robust"), seeds or 3, workers)
    else:
        run_demo(folder or Path("runs/demo"), seeds or 6, workers)


@app.command()
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    run: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Run folder.", show_default="runs/RECIPE, / as -")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder, to the bit.")] = False,
    generations: Annotated[
        int,
        typer.Option(
            min=1, help="Born-again networks: so many runs, each learns from the one before. Goes on by itself."
        ),
    ] = 1,
    nproc: Ranks = None,
) -> None:
    """Train one recipe into a run folder, alone or (`torchrun -m -- limbeck train ...`) on many ranks."""
    from limbeck.config_files import check_teachers, default_folder, load_recipe

    options = load_recipe(recipe, overrides or ())
    check_teachers(options)
    folder = run or default_folder(recipe)
    _on_ranks(nproc)
    from limbeck.listings import loading
    from limbeck.run_listings import print_generations, print_results, print_robustness

    with loading():
        from limbeck.engine.fit import fit
        from limbeck.engine.generations import train_generations
        from limbeck.engine.progress import open_reporter
        from limbeck.engine.ranks import joined
        from limbeck.engine.robustness import read_figures

    with joined(options.train.device) as place:
        reporter = open_reporter() if place.lead else None
        if generations > 1:
            family = train_generations(options, folder, generations, reporter=reporter)
        else:
            results = fit(options, folder, resume=resume, reporter=reporter)
    if not place.lead:
        return
    if generations > 1:
        print_generations(family, folder)
        return
    print_results(results, folder)
    if figures := read_figures(folder):
        print_robustness(figures)


@app.command()
def evaluate(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="Folder of a run.")] = None,
    which: Annotated[
        Weights | None, typer.Option(help="Which weights of the run.", show_default="what it reports")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Without a run: the network, such as resnet56.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its weights: .safetensors, or a public .pth.")
    ] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="What it sees, such as cifar100.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Change an option of a file's data or network: --set data.folder=FOLDER"
        ),
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME...",
            help="Attack the test images: pgdN, cwN with N steps, aa (AutoAttack).",
            show_default="the recipe's",
        ),
    ] = None,
    epsilon: Annotated[
        str | None,
        typer.Option(
            metavar="RADIUS,RADIUS...", help="Of the ball, such as 0.1,0.2 or 8/255.", show_default="the recipe's"
        ),
    ] = None,
    norm: Annotated[Norm | None, typer.Option(help="Of the ball.", show_default="the recipe's")] = None,
    entry: Annotated[
        Path | None,
        typer.Option("--robustbench", metavar="FILE", help="Write RobustBench's entry at the first radius."),
    ] = None,
    shifted: Annotated[
        list[str] | None,
        typer.Option(
            "--shifted", metavar="NAME=FOLDER", help="Measure a run on imagenet_v2, imagenet_sketch or imagenet_r too."
        ),
    ] = None,
    nproc: Ranks = None,
) -> None:
    """Compute the metrics of a run's weights again, or those of a file of weights; with --attacks, their robustness."""
    from limbeck.config_adversary import read_request
    from limbeck.config_data import read_shifted
    from limbeck.config_files import recipe_of_file

    options = recipe_of_file(run, model, weights, data, overrides or (), which=which.value if which else None)
    request = read_request(attacks, epsilon, norm.value if norm else None, entry)
    tests = read_shifted(shifted or ())
    if tests and (run is None or request):
        what = "a file of weights takes --set data.shifted_tests.NAME=FOLDER" if run is None else "leave attacks out"
        raise UserError(f"--shifted expected a RUN that is not attacked; {what}")
    _on_ranks(nproc)
    chosen: Literal["last", "best", "ema"] | None = which.value if which else None
    if request:
        from limbeck.present import attack_and_show

        attack_and_show(run, options, weights, request, chosen)
        return
    from limbeck.present import evaluate_and_show

    evaluate_and_show(run, options, weights, chosen, tests)


@app.command()
def compare(
    recipe: RecipeName,
    losses: Annotated[
        str | None, typer.Option(metavar="ROW,ROW...", help="Rows of the recipe to train.", show_default="all")
    ] = None,
    seeds: Annotated[int, typer.Option(callback=_at_least_one, help="Seeds per row and setting.")] = 5,
    overrides: Overrides = None,
    folder: Annotated[
        Path | None, typer.Option(help="Comparison folder.", show_default="runs/compare-RECIPE, / as -")
    ] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Also print the paper's table: weights, the paper's figure and ours.")
    ] = False,
    workers: Workers = None,
    nproc: Ranks = None,
) -> None:
    """Train the rows of a recipe on several seeds, then print the table. Finished runs are not trained again."""
    from limbeck.config_files import check_teachers, default_folder, load_recipe
    from limbeck.config_rows import select_rows

    options = load_recipe(recipe, overrides or ())
    check_teachers(options)
    rows = select_rows(options, losses)
    _one_of(workers, nproc)
    _on_ranks(nproc)
    from limbeck.present import compare_and_show

    place = folder or default_folder(recipe, "compare-")
    compare_and_show(options, place, rows=rows, seeds=seeds, published=table, workers=workers)


@app.command()
def sweep(
    recipe: RecipeName,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="PATH=VALUE,VALUE...",
            help="Options to try in all combinations, and plain changes: --set train.epochs=10,20 --set seed=1",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(callback=_at_least_one, help="Seeds per combination.")] = 3,
    folder: Annotated[Path | None, typer.Option(help="Sweep folder.", show_default="runs/sweep-RECIPE, / as -")] = None,
    workers: Workers = None,
    nproc: Ranks = None,
) -> None:
    """Train a recipe with every combination of some options, then print and draw the grid. Goes on where it stopped."""
    from limbeck.config_files import default_folder
    from limbeck.config_grid import read_grid

    grid = read_grid(recipe, overrides or ())
    _one_of(workers, nproc)
    _on_ranks(nproc)
    from limbeck.present import sweep_and_show

    sweep_and_show(grid, folder or default_folder(recipe, "sweep-"), seeds=seeds, workers=workers)


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of a run, of a comparison or of a sweep.")],
    against: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Draw a second run beside it, and the differences to that one.")
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="ROW,ROW...", help="Draw these rows of a comparison alone; of two, their pace."),
    ] = None,
) -> None:
    """Draw the pictures of a run or a sweep, or pictures and report of a comparison. Reads files only."""
    from limbeck.present import plot as plot_folder

    plot_folder(folder, against, None if rows is None else [row.strip() for row in rows.split(",")])


app.command()(interrelations)
app.command()(export)
app.command()(models)


@data.callback()
def data_sets(context: typer.Context) -> None:
    """List the data sets, or download one."""
    if context.invoked_subcommand is None:
        data_list()


@data.command("list")
def data_list(folder: DataFolder = None) -> None:
    """List the data sets: what they hold, what they cost to get, their terms, and which are here."""
    from limbeck.data_commands import print_data_sets

    print_data_sets(folder)


@data.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(metavar="NAME", help="cifar10 or cifar100.")],
    folder: DataFolder = None,
    url: Annotated[
        str | None, typer.Option(metavar="URL", help="The same archive on another server.", show_default="the authors'")
    ] = None,
) -> None:
    """Download a data set and check it. Goes on with a download that stopped."""
    from limbeck.data_commands import fetch

    fetch(name, folder, url)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this one, every option resolved.")] = None,
) -> None:
    """List the recipes, or show one."""
    from limbeck.listings import print_recipe, print_recipes

    if name is None:
        print_recipes()
    else:
        print_recipe(name)


@app.command()
def losses(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show the options of this one.")] = None,
    brief: Annotated[bool, typer.Option("--brief", help="One line for each.")] = False,
) -> None:
    """List the losses with formula, needs, cost and paper, or show the options of one."""
    from limbeck.listings import print_loss, print_losses, print_losses_briefly

    if name is not None:
        print_loss(name)
    elif brief:
        print_losses_briefly()
    else:
        print_losses()


@app.command()
def papers(
    name: Annotated[
        str | None, typer.Argument(metavar="ID", help="A paper (gkl, ikl, wkd, slides), or one entry: gkl:table-xvii.")
    ] = None,
) -> None:
    """List what each equation, table, figure and claim of the papers became here, or show one."""
    from limbeck.papers.show import print_papers

    print_papers(name)
