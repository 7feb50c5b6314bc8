"""Recipes of adversarial training: what the papers' tables say of each, and two steps of every row on made images."""

import functools

import numpy as np
import pytest
import torch
from cifar_archives import write_cifar
from pydantic import ValidationError

from limbeck.analysis.published import compare_with_paper
from limbeck.config import ModelOptions, PublishedColumn
from limbeck.config_files import find_recipe, header_fields, load_recipe, read_header, recipe_names
from limbeck.config_grid import read_grid
from limbeck.engine.compare import compare
from limbeck.engine.fit import fit
from limbeck.models import build_model

IMAGES = 100  # one of each class of CIFAR-100, two batches
CIFAR = ("cifar10", "cifar100")
ROBUST = [name for name in recipe_names() if load_recipe(name).task == "adversarial"]
LARGE = [name for name in ROBUST if load_recipe(name).data.name in CIFAR]
PAIRS = [name for name in LARGE if name.split("/")[0] == "ablations"]  # with twins on digits

# Tables III and IV of arXiv 2503.08038 and 2 and 3 of arXiv 2305.13948, clean accuracy and AutoAttack; row trades is
# row a of Table I. Rows that their authors measured, not these papers, are left out.
PUBLISHED = """
    cifar100/gkl-at              awp 60.38 28.86  lbgat 60.64 29.33  las_at 64.89 30.77  acat 65.75 30.23
    cifar100/gkl-at              trades 62.87 30.29  ikl 65.76 31.91  gkl 65.76 31.91
    cifar100/gkl-at-autoaugment  acat 68.74 31.30  ikl 66.08 32.53  gkl 66.08 32.53
    cifar100/gkl-at-generated    dm_at 72.58 38.83  ikl 73.85 39.18  gkl 73.65 39.37
    cifar100/awp                 at_awp 60.38 28.86
    cifar100/lbgat               lbgat6 60.64 29.33
    cifar10/gkl-at               awp 85.36 56.17  las_at 87.74 55.52  acat 82.41 55.36  ikl 84.80 57.09  gkl 84.80 57.09
    cifar10/gkl-at-autoaugment   acat 88.64 57.05  ikl 85.20 57.62  gkl 85.20 57.62
    cifar10/gkl-at-generated     dm_at 92.44 67.31  ikl 92.16 67.75  gkl 92.16 67.75
    cifar10/awp                  trades_awp 85.36 56.17
    cifar10/lbgat                lbgat0 88.70 53.57
"""
# The public scripts and logs: ce_weight and mse_weight of ikl and of gkl, temperature of the class means; the factor of
# KL; what the attack climbs for ikl and gkl; factors of ikl's and gkl's second view.
WEIGHTS = """
    cifar100/gkl-at              5 20  5 20  4  trades 9  gkl  -
    cifar100/gkl-at-autoaugment  4 20  4 20  4  -      -  gkl  .3 .5
    cifar100/gkl-at-generated    5 12  5 12  4  dm_at  5  kl   -
    cifar10/gkl-at               4 20  4 20  4  trades 6  kl   -
    cifar10/gkl-at-autoaugment   4 20  4 20  4  -      -  kl   .3 .5
    cifar10/gkl-at-generated     3 10  3 10  4  dm_at  5  kl   -
"""


def figures(name):
    """Row -> clean accuracy and AutoAttack of the second transcription."""
    words = [word for line in PUBLISHED.splitlines() for word in line.split()[1:] if line.split()[0] == name]
    return {words[k]: (float(words[k + 1]), float(words[k + 2])) for k in range(0, len(words), 3)}


# --- figures and settings -------------------------------------------------------------------------------------


def test_every_row_of_the_tables_that_is_ours_has_a_recipe():
    expected = {f"robust/{line.split()[0]}" for line in PUBLISHED.split("\n") if line.split()}
    assert expected == {name for name in LARGE if name.startswith("robust/") and load_recipe(name).compare.published}


@pytest.mark.parametrize("name", LARGE)
def test_header_says_that_nothing_was_run(name):
    fields = header_fields(read_header(find_recipe(name)))
    assert fields["Reproduced"] == "not reproduced here"
    assert "assumed" in fields["Hardware"]
    assert fields["Papers"]


@pytest.mark.parametrize("name", sorted({line.split()[0] for line in PUBLISHED.split("\n") if line.split()}))
def test_published_figures_equal_the_second_transcription(name):
    published = load_recipe(f"robust/{name}").compare.published
    both = {row: (clean, published.robust_rows[row]) for row, clean in published.rows.items()}
    assert figures(name).items() <= both.items()
    assert len(both) - len(figures(name)) == (name == "cifar100/awp")  # trades_awp, measured by its authors


def test_a_figure_of_one_accuracy_alone_is_refused():
    PublishedColumn(source="T", rows={"gkl": 65.76}, robust_rows={"gkl": 31.91})
    with pytest.raises(
        ValidationError, match=r"`robust_rows` expected the rows of `rows`.*got gkl, ikl in one of them"
    ):
        PublishedColumn(source="T", rows={"gkl": 65.76}, robust_rows={"ikl": 31.91})


@pytest.mark.parametrize("line", WEIGHTS.strip().splitlines(), ids=lambda line: line.split()[0])
def test_weights_equal_the_public_scripts(line):
    name, *weights, temperature, kl_row, kl_weight, climbs, views = [*line.split(), ""][:10]
    recipe = load_recipe(f"robust/{name}")
    rows = {row: contender.settings[0] for row, contender in recipe.compare.contenders.items()}
    for place, row in enumerate(("ikl", "gkl")):
        clean, term = rows[row]
        assert (clean.name, clean.on, clean.weight, term.name, term.on, term.weight) == (
            *("cross_entropy", "clean", 1),
            *(row, "clean", 1),
        )
        assert [term.ce_weight, term.mse_weight] == [float(weight) for weight in weights[2 * place : 2 * place + 2]]
        assert (term.prior, term.prior_temperature, term.temperature) == ("class", float(temperature), 1)
        assert recipe.adversary_of(row).climbs(rows[row]) == climbs
    assert rows["gkl"][1].weight_power == 1
    assert recipe.losses == rows["gkl"]
    if kl_row != "-":
        assert (rows[kl_row][1].name, rows[kl_row][1].weight) == ("kl", float(kl_weight))
        assert recipe.adversary_of(kl_row).climbs(rows[kl_row]) == "kl"
    second = [recipe.adversary_of(row).second_view_weight for row in ("ikl", "gkl")]
    assert second == ([0.3, 0.5] if views == ".3" else [1, 1])
    assert (recipe.data.second_view is not None) == (views == ".3")


GKL_AT = [f"robust/{data}/gkl-at{end}" for data in CIFAR for end in ("", "-autoaugment")]


@pytest.mark.parametrize("name", [*GKL_AT, *PAIRS])
def test_training_is_that_of_the_public_scripts(name):
    recipe = load_recipe(name)
    optimizer, adversary, train = recipe.optimizer, recipe.adversary, recipe.train
    assert recipe.model.name == "wrn_34_10"
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov, optimizer.weight_decay) == (
        *(0.2, 0.9),
        *(False, 5e-4),
    )
    assert (recipe.schedule.name, recipe.schedule.warmup_epochs, recipe.schedule.final_factor) == ("cosine", 0, 0)
    assert (train.epochs, train.batch_size, train.ema_decay, train.ema_every) == (200, 128, 0.9, "epoch")
    assert adversary.epsilon == 8 / 255
    assert adversary.epsilon_ramp
    assert (adversary.steps, adversary.step_ratio, adversary.growing_steps) == (5, 0.5, False)
    assert (adversary.start, adversary.bn_mode, adversary.awp, adversary.awp_from_epoch) == (
        "gaussian",
        "eval",
        0.005,
        10,
    )


@pytest.mark.parametrize("data", CIFAR)
def test_generated_images_come_with_the_recipe_of_dm_at(data):
    recipe = load_recipe(f"robust/{data}/gkl-at-generated")
    optimizer, adversary, train = recipe.optimizer, recipe.adversary, recipe.train
    assert recipe.model.name == "wrn_28_10_swish"
    assert (optimizer.learning_rate, optimizer.nesterov, optimizer.decay_norms_and_biases) == (0.2, True, False)
    assert (recipe.schedule.name, recipe.schedule.warmup_fraction) == ("onecycle", 0.025)
    assert (train.ema_decay, train.ema_every, train.ema_warmup_epochs) == (0.995, "step", 0.025 * train.epochs)
    assert (adversary.steps, adversary.step_ratio, adversary.start, adversary.bn_mode) == (10, 0.25, "uniform", "batch")
    assert (adversary.epsilon, adversary.epsilon_ramp, adversary.awp) == (8 / 255, False, 0)
    assert all(row.settings[0][0].label_smoothing == 0.1 for row in recipe.compare.contenders.values())


@pytest.mark.parametrize("name", LARGE)
def test_pixels_stay_in_0_1_and_all_images_train_unless_the_epoch_is_chosen(name):
    recipe = load_recipe(name)
    assert not recipe.data.standardise
    assert (recipe.protocol, recipe.data.validation) == (("holdout", 0.02) if name.endswith("pgd-at") else ("paper", 0))
    assert (recipe.data.augment.crop_padding, recipe.data.augment.flip) == (4, True)
    assert "aa" in recipe.adversary.attacks


# --- ablations ------------------------------------------------------------------------------------------------


def differences(name):
    """Option -> its values in the rows of a comparison; options that all rows have alike are left out."""
    recipe = load_recipe(name)
    rows = {}
    for row, contender in recipe.compare.contenders.items():
        terms = {f"{place}.{key}": value for place, term in enumerate(contender.settings[0]) for key, value in term}
        adversary = {f"adversary.{key}": value for key, value in recipe.adversary_of(row)}
        rows[row] = terms | adversary
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    found = {key: [row.get(key) for row in rows.values()] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


@pytest.mark.parametrize("data", ["cifar100", "digits"])
def test_each_row_of_table_i_changes_what_the_table_says(data):
    name = f"ablations/{data}/adversarial-table-i"
    assert list(load_recipe(name).compare.contenders) == ["kl", "dkl", "weighted", "symmetric", "smooth", "class"]
    assert differences(name) == {
        "1.name": ["kl", "dkl", "dkl", "dkl", "gkl", "gkl"],
        "1.weight": [9, 1, 1, 1, 1, 1],
        "1.scale_by_t2": [False, False, False, False, None, None],
        "1.standardize": [False, False, False, False, None, None],  # not an option of gkl
        "1.prior": [None, "sample", "sample", "sample", "sample", "class"],
        "1.symmetric": [None, False, False, True, None, None],  # gkl always is
        "1.mse_weight": [None, 9, 20, 20, 20, 20],
        "1.ce_weight": [None, 9, 5, 5, 5, 5],
        "1.weight_power": [None, None, None, None, 1, 1],
        "1.prior_temperature": [None, None, None, None, 4, 4],
        "1.ramp_epochs": [None, None, None, None, 0, 0],
        "1.normalizer": [None, None, None, None, "weights", "weights"],
        "adversary.loss": ["kl", "kl", "kl", "gkl", "gkl", "gkl"],
    }


@pytest.mark.parametrize("data", ["cifar100", "digits"])
def test_rows_of_the_schedules_differ_in_the_steps_of_the_attack_alone(data):
    assert differences(f"ablations/{data}/adversarial-steps") == {
        "adversary.steps": [5, 5, 2, 10],
        "adversary.step_ratio": [0.5, 0.5, 1, 0.25],
        "adversary.growing_steps": [False, True, False, False],
    }


@pytest.mark.parametrize("data", ["cifar100", "digits"])
@pytest.mark.parametrize(
    ("field", "option", "values"),
    [
        ("Mse", "mse_weight", [12, 16, 20, 24]),  # four times Table X's
        ("Ce", "ce_weight", [2, 3, 4, 5]),
        ("Tau", "prior_temperature", [1, 2, 3, 4]),
    ],
)
def test_a_sweep_of_the_header_is_the_papers_table_with_the_other_two_at_their_best(data, field, option, values):
    name = f"ablations/{data}/adversarial-weights"
    command = header_fields(read_header(find_recipe(name)))[field].split()
    assert command[:3] == ["limbeck", "sweep", name]
    points = read_grid(name, [command[command.index("--set") + 1]]).points
    terms = [point.recipe.losses[1].model_dump() for point in points]
    best = {"mse_weight": 20, "ce_weight": 5, "prior_temperature": 4}
    assert [term[option] for term in terms] == values
    assert all(term[key] == value for term in terms for key, value in best.items() if key != option)
    assert best[option] in values


@pytest.mark.parametrize("name", PAIRS)
def test_small_ablation_has_the_losses_and_the_attacks_of_the_published_size(name):
    full, twin = load_recipe(name), load_recipe(name.replace("cifar100", "digits"))
    assert (twin.protocol, twin.losses) == ("holdout", full.losses)
    assert {row: contender.settings for row, contender in twin.compare.contenders.items()} == {
        row: contender.settings for row, contender in full.compare.contenders.items()
    }
    for adversary in ("steps", "step_ratio", "start", "loss"):
        assert getattr(twin.adversary, adversary) == getattr(full.adversary, adversary)
    assert differences(name) == differences(name.replace("cifar100", "digits"))


# --- two steps ------------------------------------------------------------------------------------------------


@functools.cache
def architectures():
    """Name -> numbers of classes with which the recipes have it, guides too."""
    found = {}
    for name in LARGE:
        recipe = load_recipe(name)
        for network in (recipe.model, recipe.adversary.guide):
            if network is not None:
                found.setdefault(network.name, set()).add({"cifar10": 10, "cifar100": 100}[recipe.data.name])
    return {name: sorted(classes) for name, classes in found.items()}


@pytest.mark.parametrize("name", sorted(architectures()))
def test_networks_of_the_recipes_map_an_image_to_its_classes(name):
    for classes in architectures()[name]:
        with torch.device("meta"):
            model = build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=classes, seed=0)
            assert model(torch.empty(1, 3, 32, 32)).shape == (1, classes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Return a function from a recipe's name to overrides that make it two steps of a small network on made images."""
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for data in CIFAR:
        write_cifar(folder, data, train=IMAGES, test=20)
        image = generator.integers(0, 256, (IMAGES, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{data}.npz", image=image, label=np.arange(IMAGES) % (100 if data == "cifar100" else 10))
    train = ["train.device=cpu", "train.threads=1", "train.epochs=1", f"train.batch_size={IMAGES // 2}"]
    attack = ["adversary.attacks=[pgd1]", "adversary.validation_attack=cw1", "adversary.awp_from_epoch=1"]

    def overrides(name):
        recipe = load_recipe(name)
        found = [f"data.folder={folder}", *train, *attack, "save.tensorboard=false"]
        found += ["model.name=convnet", "model.width=4", "model.depth=1"]
        if recipe.adversary.guide is not None:
            found += ["adversary.guide={name: convnet, width: 4, depth: 1}"]
        if recipe.data.generated is not None:
            found += [f"data.generated={folder / recipe.data.name}.npz"]
        return found + (["data.validation=0.2"] if recipe.data.validation else [])

    return overrides


@pytest.mark.parametrize("name", [name for name in LARGE if load_recipe(name).compare.contenders])
def test_every_row_takes_two_steps(name, small, tmp_path):
    recipe = load_recipe(name, small(name))
    compare(recipe, tmp_path, seeds=1)
    for row in recipe.compare.contenders:
        assert (tmp_path / row / "setting0" / "seed0" / "results.json").is_file()
    if recipe.compare.published:
        table = {row.name: row for row in compare_with_paper(tmp_path).rows}
        ours = recipe.compare.published.rows.keys() & recipe.compare.contenders.keys()
        assert all(table[row].ours and table[row].paper and table[row].robust_paper for row in ours)


@pytest.mark.parametrize("name", [name for name in LARGE if not load_recipe(name).compare.contenders])
def test_recipe_without_rows_takes_two_steps(name, small, tmp_path):
    results = fit(load_recipe(name, small(name)), tmp_path / "run")
    assert results["steps"] == 2
    reported = "best" if name.endswith("pgd-at") else "ema" if name in PAIRS else "last"
    assert results["reported"] == reported
    assert 0 <= results[reported]["test"]["robust"] <= 1
