"""Recipes of distillation tables: figures against a second transcription, and two steps of each on made images."""

import pytest
import torch
from cifar_archives import write_cifar
from recipe_steps import of_another_library
from safetensors.torch import save_file

from limbeck.analysis.published import compare_with_paper
from limbeck.cli import main
from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe, recipe_names
from limbeck.engine.compare import compare
from limbeck.engine.fit import fit
from limbeck.models import build_model

IMAGES = 100  # one of each class, two batches

# Tables XVII and XVIII of arXiv 2503.08038, line by line; its text names the methods so.
METHODS = ["fitnet", "rkd", "crd", "ofd", "reviewkd", "dkd", "kd", "ikl", "gkl"]
SAME_FAMILY = """
    resnet56-resnet20 resnet110-resnet32 resnet32x4-resnet8x4 wrn_40_2-wrn_16_2 wrn_40_2-wrn_40_1 vgg13-vgg8
    72.34             74.31              79.42                75.61             75.61             74.64
    69.06             71.14              72.50                73.26             71.98             70.36
    69.21             71.06              73.50                73.58             72.24             71.02
    69.61             71.82              71.90                73.35             72.22             71.48
    71.16             73.48              75.51                75.48             74.14             73.94
    70.98             73.23              74.95                75.24             74.33             73.95
    71.89             73.89              75.63                76.12             75.09             74.84
    71.97             74.11              76.32                76.24             74.81             74.68
    70.66             73.08              73.33                74.92             73.54             72.98
    71.44             74.26              76.59                76.45             74.98             74.98
    71.67             74.26              76.83                76.45             74.98             74.98
"""
TWO_FAMILIES = """
    resnet32x4-shufflenet_v1 wrn_40_2-shufflenet_v1 vgg13-mobilenet_v2 resnet50-mobilenet_v2 resnet32x4-shufflenet_v2
    79.42                    75.61                  74.64              79.34                 79.42
    70.50                    70.50                  64.60              64.60                 71.82
    73.59                    73.73                  64.14              63.16                 73.54
    72.28                    72.21                  64.52              64.43                 73.21
    75.11                    76.05                  69.73              69.11                 75.65
    75.98                    75.85                  69.48              69.04                 76.82
    77.45                    77.14                  70.37              69.89                 77.78
    76.45                    76.70                  69.71              70.35                 77.07
    74.07                    74.83                  67.37              67.35                 74.45
    76.64                    77.19                  70.40              70.62                 77.16
    76.76                    77.42                  70.61              70.78                 77.49
"""
# The public configurations: learning rate; ALPHA and BETA of IKL; ALPHA, BETA, GAMMA, GI of GKL.
CONFIGURATIONS = """
    resnet56-resnet20         .05  1  4   1  4 .2   True
    resnet110-resnet32        .05  1 12   1  4 .1   False
    resnet32x4-resnet8x4      .05  1  8   1 16 .05  True
    wrn_40_2-wrn_16_2         .05  3 12   3 20 .3   False
    wrn_40_2-wrn_40_1         .05  1  8   1 12 .3   False
    vgg13-vgg8                .05  1 12   1  8 .2   True
    resnet32x4-shufflenet_v1  .01  1  8   1  8 .0   True
    wrn_40_2-shufflenet_v1    .01  1  4   1  8 .0   False
    vgg13-mobilenet_v2        .01  4 12   4 12 .1   True
    resnet50-mobilenet_v2     .01  1 12   1  8 .05  True
    resnet32x4-shufflenet_v2  .01  3 12   3 12 .1   True
"""
TEACHERS = {"resnet56": 72.34, "resnet110": 74.31, "resnet32x4": 79.42, "wrn_40_2": 75.61, "vgg13": 74.64}
TEACHERS["resnet50"] = 79.34


def columns(table):
    """Column name -> its numbers: teacher, student, then the methods."""
    names, *lines = (line.split() for line in table.strip().splitlines())
    return {name: [float(line[k]) for line in lines] for k, name in enumerate(names)}


PUBLISHED = columns(SAME_FAMILY) | columns(TWO_FAMILIES)
SETTINGS = {line.split()[0]: line.split()[1:] for line in CONFIGURATIONS.strip().splitlines()}
ELSEWHERE = ("incremental", "consistency")  # test_incremental.py, test_consistency.py
CIFAR = [name for name in recipe_names() if name.split("/")[1] == "cifar100" and name.split("/")[0] not in ELSEWHERE]
CIFAR = [name for name in CIFAR if load_recipe(name).task != "adversarial" and not of_another_library(name)]
ABLATIONS_OF_WKD = [name for name in CIFAR if name.startswith("ablations/cifar100/wkd-")]
WKD = [name for name in CIFAR if name.startswith("distill/cifar100/wkd-")]
SELF = ["teacher/cifar100/resnet18", "supervised/cifar100/self-distillation", "distill/cifar100/born-again-resnet18"]
PAIRS = [name for name in CIFAR if name.startswith("distill/") and name not in (*WKD, *SELF)]
MDISTILLER = [name for name in CIFAR if name not in SELF]
# Every row of the comparisons takes a step in test_recipes_rivals.py; of the pairs, these are trained here.
TRAINED = dict.fromkeys(PAIRS, ("kd", "gkl")) | dict.fromkeys(WKD, ("kd", "wkd_l_f"))
COMPARISONS = [*TRAINED, "ablations/cifar100/table-i"]
# The network of the first of SELF trains in the others.
FITS = [name for name in CIFAR if name not in (*COMPARISONS, *ABLATIONS_OF_WKD, SELF[0])]


# --- figures and settings -----------------------------------------------------------------------------------


def test_there_is_a_recipe_for_each_pair_and_each_teacher():
    assert {name.rsplit("/", 1)[1] for name in PAIRS} == PUBLISHED.keys() == SETTINGS.keys()
    teachers = {name for name in MDISTILLER if name.startswith("teacher/")}
    assert {f"teacher/cifar100/{name}" for name in TEACHERS} == teachers


@pytest.mark.parametrize("name", PAIRS)
def test_published_figures_equal_the_second_transcription(name):
    teacher, student, *rows = PUBLISHED[name.rsplit("/", 1)[1]]
    published = load_recipe(name).compare.published
    assert (published.teacher, published.student) == (teacher, student)
    assert published.rows == dict(zip(METHODS, rows, strict=True))


@pytest.mark.parametrize("name", PAIRS)
def test_weights_equal_the_public_configuration_of_the_pair(name):
    rate, *numbers, by_class = SETTINGS[name.rsplit("/", 1)[1]]
    ikl_alpha, ikl_beta, alpha, beta, gamma = map(float, numbers)
    recipe = load_recipe(name)
    rows = {row: contender.settings[0] for row, contender in recipe.compare.contenders.items()}
    assert [len(rows[row]) for row in ("ce", "kd", "ikl", "gkl")] == [1, 2, 2, 2]
    assert all(row[0].name == "cross_entropy" for row in rows.values())
    assert [rows[row][0].weight for row in ("ce", "kd", "ikl", "gkl")] == [1.0, 0.1, 1.0, 1.0]
    kd, ikl, gkl = (rows[row][1] for row in ("kd", "ikl", "gkl"))
    assert (kd.name, kd.weight, kd.temperature, kd.scale_by_t2) == ("kl", 0.9, 4.0, True)
    assert (ikl.name, ikl.ce_weight, ikl.mse_weight, ikl.prior) == ("ikl", ikl_alpha, ikl_beta, "sample")
    assert (ikl.temperature, ikl.prior_temperature, ikl.normalizer) == (4.0, 100.0, "samples")
    assert (gkl.name, gkl.ce_weight, gkl.mse_weight, gkl.weight_power) == ("gkl", alpha, beta, gamma)
    assert (gkl.temperature, gkl.prior_temperature, gkl.normalizer) == (4.0, 4.0, "weights")
    assert gkl.prior == {"True": "class", "False": "sample"}[by_class]
    assert ikl.warmup_epochs == gkl.warmup_epochs == 20
    assert recipe.losses == rows["gkl"]
    assert recipe.optimizer.learning_rate == float(rate)


@pytest.mark.parametrize("name", MDISTILLER)
def test_training_is_mdistillers_on_all_images_but_for_nesterovs_momentum_of_wkd(name):
    recipe = load_recipe(name)
    optimizer, schedule, augment = recipe.optimizer, recipe.schedule, recipe.data.augment
    assert (recipe.protocol, recipe.data.validation, recipe.train.epochs, recipe.train.batch_size) == (
        "paper",
        0,
        240,
        64,
    )
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.9, 5e-4)
    assert optimizer.nesterov == (name in (*WKD, *ABLATIONS_OF_WKD))
    assert (schedule.name, schedule.milestones, schedule.decay_factor) == ("multistep", (150, 180, 210), 0.1)
    assert (augment.crop_padding, augment.flip) == (4, True)


@pytest.mark.parametrize("name", [*PAIRS, *WKD])
def test_networks_are_those_of_the_pairs_name(name):
    teacher, student = name.rsplit("/", 1)[1].removeprefix("wkd-").split("-")
    recipe = load_recipe(name)
    assert (recipe.teachers[0].recipe, recipe.model.name) == (f"teacher/cifar100/{teacher}", student)
    assert load_recipe(f"teacher/cifar100/{teacher}").model.name == {"resnet50": "resnet50_cifar"}.get(teacher, teacher)
    assert name in WKD or recipe.compare.published.teacher == TEACHERS[teacher]


@pytest.mark.parametrize("name", ["table-i", "smoothing"])
def test_small_ablation_has_the_losses_of_the_published_size_scaled_to_10_classes(name):
    full = load_recipe(f"ablations/cifar100/{name}")
    for data in ("digits", "mnist5k"):
        twin = load_recipe(f"ablations/{data}/{name}")
        assert twin.protocol == "holdout"
        assert scaled(twin.losses, 10) == scaled(full.losses)
        assert twin.compare.contenders.keys() == full.compare.contenders.keys()
        for row, contender in full.compare.contenders.items():
            (ours,), (theirs,) = twin.compare.contenders[row].settings, contender.settings
            assert scaled(ours, 10) == scaled(theirs)


def scaled(terms, factor=1):
    """The terms with `factor` times their mse_weight, and no warm-up, which is a share of the run's epochs."""
    changed = [term.model_dump() | {"warmup_epochs": 0.0} for term in terms]
    return [term | {"mse_weight": round(factor * term.get("mse_weight", 0.0), 6)} for term in changed]


# --- two steps ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Overrides that make a recipe two steps on made images."""
    folder = tmp_path_factory.mktemp("data")
    write_cifar(folder, "cifar100", train=IMAGES, test=20)
    train = ["train.device=cpu", "train.threads=1", "train.epochs=1", f"train.batch_size={IMAGES // 2}"]
    return [f"data.folder={folder}", *train, "save.tensorboard=false"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a function from a teacher's recipe to a file of weights for its network."""
    folder = tmp_path_factory.mktemp("weights")

    def write(recipe):
        path = folder / f"{recipe.rsplit('/', 1)[1]}.safetensors"
        if not path.is_file():
            options = ModelOptions(name=load_recipe(recipe).model.name)
            model = build_model(options, image_shape=(3, 32, 32), num_classes=100, seed=1)
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0  # untrained statistics let the logits of 110 layers grow without bound
            with torch.no_grad():
                model(torch.randn(4, 3, 32, 32))
            save_file(model.state_dict(), path)
        return path

    return write


@pytest.mark.parametrize("name", COMPARISONS)
def test_rows_take_two_steps(name, small, weights, tmp_path):
    teacher = load_recipe(name).teachers[0].recipe
    overrides = [*small, f"teachers.0.weights={weights(teacher)}"]
    if name in WKD:  # an image a class relates no classes
        overrides.append("compare.contenders.wkd_l_f.settings.0.1.interrelations=uniform")
    recipe = load_recipe(name, overrides)
    rows = TRAINED.get(name, tuple(recipe.compare.contenders))
    compare(recipe, tmp_path, rows=rows, seeds=1)
    for row in rows:
        assert (tmp_path / row / "setting0" / "seed0" / "results.json").is_file()
    if recipe.compare.published:
        table = {row.name: row for row in compare_with_paper(tmp_path).rows}
        assert all(table[row].ours is not None for row in ("teacher", *rows))
        assert all(table[row].paper for row in recipe.compare.published.rows)


@pytest.mark.parametrize("name", FITS)
def test_recipe_takes_two_steps(name, small, weights, tmp_path):
    recipe = load_recipe(name, small)
    if recipe.teachers:
        recipe = load_recipe(name, [*small, f"teachers.0.weights={weights(recipe.teachers[0].recipe)}"])
    results = fit(recipe, tmp_path / "run")
    assert (results["steps"], results["protocol"], results["best"]) == (2, "paper", None)
    assert results["optimistic"]["test"]["samples"] == results["last"]["test"]["samples"] == 20


def test_command_prints_the_papers_figure_beside_ours_for_the_rows_asked_for(
    small, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "120")
    overrides = [*small, f"teachers.0.weights={weights('teacher/cifar100/vgg13')}"]
    words = [word for override in overrides for word in ("--set", override)]
    code = main(
        ["compare", "vgg13-vgg8", "--losses", "kd", "--seeds", "1", "--table", "--folder", str(tmp_path), *words]
    )
    printed = capsys.readouterr()
    before, _, table = printed.out.partition("GKL Table XVII, vgg13 > vgg8")
    lines = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert code == 0, printed.err
    assert before.rstrip(" ").endswith("\n\n"), "no blank line before the table"
    assert "72.98" in lines["kd"]
    assert "0.9·KL" in lines["kd"]
    assert "not trained" in lines["gkl"]
    assert "not trained" in lines["crd"]
    assert "73.94" in lines["crd"]
