"""The large tables a second time: figures, settings and training of their recipes, transcribed apart from the files."""

from __future__ import annotations

import pytest

from limbeck.config_files import load_recipe, recipe_names
from limbeck.objectives.terms import term_weight

TABLE_V = ["distill/imagenet/resnet34-resnet18", "distill/imagenet/resnet50-mobilenet_v1"]
TABLE_4 = ["distill/imagenet/wkd-resnet34-resnet18", "distill/imagenet/wkd-resnet50-mobilenet_v1"]
TABLE_7 = ["distill/imagenet/wkd-born-again-resnet18", "supervised/imagenet/self-distillation"]
STRONG = "distill/imagenet/strong-beitv2_large-resnet50"
TABLE_6 = [
    f"distill/cifar100/{pair}"
    for pair in ("swin_t-resnet18", "vit_s-resnet18", "vit_s-mobilenet_v2", "convnext_t-deit_t", "convnext_t-swin_p")
]
LONG_TAILED = [name for name in recipe_names() if name.split("/")[1] == "imagenet-lt"]

# Per table, per row: the paper's top-1, in the order of the recipes.
FIGURES = {
    "GKL Table V": (
        TABLE_V,
        """
        teacher  73.31 76.16
        student  69.75 68.87
        at       70.69 69.56
        ofd      70.81 71.25
        crd      71.17 71.37
        reviewkd 71.61 72.56
        dkd      71.70 72.05
        kd       71.03 70.50
        ikl      71.91 72.84
        gkl      71.91 72.92
        """,
    ),
    "GKL Table I": (
        ["ablations/imagenet/table-i"],
        """
        kl        71.03
        dkl       71.03
        symmetric 71.60
        smooth    71.80
        class     71.91
        """,
    ),
    "WKD Table 4": (
        TABLE_4,
        """
        teacher  73.31 76.16
        student  69.75 68.87
        kd       71.03 70.50
        dkd      71.70 72.05
        nkd      71.96 72.58
        ctkd     71.51 -
        wttm     72.19 73.09
        wkd_l    72.49 73.17
        fitnet   70.53 70.26
        crd      71.17 71.37
        reviewkd 71.61 72.56
        cat      71.26 72.24
        wkd_f    72.50 73.12
        crd_kd   71.38 -
        dpk      72.51 73.26
        fcfd     72.25 73.26
        kd_zero  72.17 73.02
        wkd_l_f  72.76 73.69
        """,
    ),
    "WKD Table 7": (
        TABLE_7,
        """
        teacher 69.75 -
        student 69.75 69.75
        kl      70.50 -
        wkd_l   71.35 -
        tf_kd   -     70.14
        frskd   -     70.17
        zipf    -     70.30
        uskd    -     70.75
        """,
    ),
    "WKD Table 6": (
        TABLE_6,
        """
        teacher 89.26 92.04 92.04 88.41 88.41
        student 74.01 74.01 73.68 68.00 72.63
        kd      78.74 77.26 72.77 72.99 76.44
        dkd     80.26 78.10 69.80 74.60 76.80
        dist    77.75 76.49 72.54 73.55 76.41
        ofa     80.54 80.15 78.45 75.76 78.32
        wkd_l   81.42 80.81 79.04 76.11 78.94
        fitnet  78.87 77.71 73.54 60.78 24.06
        cc      74.19 74.26 70.67 68.01 72.63
        rkd     74.11 73.72 68.46 69.79 71.73
        crd     77.63 76.60 78.14 65.94 67.09
        wkd_f   81.57 81.12 79.11 73.27 74.80
        """,
    ),
    "GKL Tables II, VI and XXII": (
        [
            f"distill/imagenet-lt/{pair}"
            for pair in ("resnext101_32x4d-resnet18", "resnext101_32x4d-resnet50", "resnet50-resnet50")
        ],
        """
        teacher 48.33 48.33 45.47
        student 41.15 45.47 45.47
        kl      44.32 48.31 47.04
        kl_t1_5 44.51 -     -
        kl_t2   44.07 -     -
        js      -     47.82 46.64
        ikl     45.21 49.29 47.50
        gkl     45.40 49.40 47.50
        """,
    ),
}


def rows_of(name):
    return {row: contender.settings[0] for row, contender in load_recipe(name).compare.contenders.items()}


def options(term, *names):
    return tuple(getattr(term, name) for name in names)


@pytest.mark.parametrize("table", FIGURES)
def test_figures_equal_the_second_transcription(table):
    names, text = FIGURES[table]
    lines = [line.split() for line in text.strip().splitlines()]
    for place, name in enumerate(names, start=1):
        column = {line[0]: float(line[place]) for line in lines if line[place] != "-"}
        published = load_recipe(name).compare.published
        assert (published.teacher, published.student) == (column.pop("teacher", None), column.pop("student", None))
        assert published.rows == column, name


def test_rows_without_a_loss_are_those_that_the_map_of_the_papers_names():
    missing = {row for name in TABLE_4 for row in load_recipe(name).compare.published.rows if row not in rows_of(name)}
    assert missing == {"dpk", "fcfd", "kd_zero"}
    for name in TABLE_V:
        assert load_recipe(name).compare.published.rows.keys() == rows_of(name).keys() - {"ce"}


# DKD's beta, ReviewKD's weight; IKL's and GKL's alpha and beta, GKL's gamma: the public files of the pair.
@pytest.mark.parametrize(
    ("name", "rest", "reviewed", "alpha", "beta", "gamma"),
    [(TABLE_V[0], 0.5, 1.0, 1.0, 0.5, 0.6), (TABLE_V[1], 2.0, 8.0, 4.0, 1.0, 0.5)],
)
def test_weights_of_table_v_equal_the_second_transcription(name, rest, reviewed, alpha, beta, gamma):
    rows = rows_of(name)
    assert [term.weight for term in rows["kd"]] == [0.5, 0.5]
    assert options(rows["kd"][1], "name", "temperature", "scale_by_t2") == ("kl", 1.0, True)
    assert options(rows["dkd"][1], "target_weight", "rest_weight", "temperature") == (1.0, rest, 1.0)
    assert [rows[row][1].weight for row in ("at", "ofd", "crd", "reviewkd")] == [1000.0, 1e-4, 0.8, reviewed]
    assert options(rows["crd"][1], "dim", "negatives", "temperature", "momentum") == (128, 16384, 0.07, 0.5)
    assert rows["reviewkd"][1].features == ("stages:preactivation", "pooled")
    for row, warmup, normalizer in (("ikl", 0, "samples"), ("gkl", 5, "weights")):
        term = rows[row][1]
        assert options(term, "ce_weight", "mse_weight", "temperature", "prior_temperature") == (alpha, beta, 1.0, 1.0)
        assert options(term, "prior", "warmup_epochs", "normalizer") == ("class", warmup, normalizer)
    assert rows["gkl"][1].weight_power == gamma
    assert load_recipe(name).losses == rows["gkl"]


# L: lambda, kappa; F: weight, epoch after which it decays; L+F: lambda, weight.
@pytest.mark.parametrize(
    ("name", "only_l", "only_f", "both"),
    [(TABLE_4[0], (30.0, 1.0), (0.02, 0), (10.0, 1.0)), (TABLE_4[1], (25.0, 2.0), (0.005, 30), (25.0, 0.005))],
)
def test_weights_of_wkds_table_4_equal_the_second_transcription(name, only_l, only_f, both):
    rows = rows_of(name)
    for row, factor in (("wkd_l", only_l[0]), ("wkd_l_f", both[0])):
        transport, target = rows[row][1:3]
        assert options(transport, "transport_weight", "target_weight", "sharpness") == (factor, 0.0, only_l[1])
        assert options(transport, "temperature", "reg", "iterations", "interrelations") == (2.0, 0.05, 10, "cka")
        assert options(target, "transport_weight", "target_weight") == (0.0, 1.0)
        assert [term_weight(target, epoch, 100) for epoch in (1, 100)] == [1.0, 1.0]
        assert term_weight(transport, 50, 100) == pytest.approx(0.5)
        assert term_weight(transport, 100, 100) == 0.0
    for row, (weight, after) in (("wkd_f", only_f), ("wkd_l_f", (both[1], 0))):
        term = rows[row][-1]
        assert options(term, "weight", "mean_weight", "grid", "projector") == (weight, 2.0, 4, "bottleneck")
        assert options(term, "features", "decay", "decay_after_epoch") == (("last",), "cosine", after)
    assert options(rows["nkd"][1], "target_weight", "rest_weight", "temperature") == (1.0, 1.5, 1.0)
    assert [term.weight for term in rows["kd"]] == [0.5, 0.5]
    if "ctkd" in rows:
        assert options(rows["ctkd"][1], "min_temperature", "temperature_range", "ramp_epochs") == (1.0, 20.0, 5.0)
    cat = {TABLE_4[0]: (0.5, 4, False), TABLE_4[1]: (10.0, 2, True)}[name]
    assert options(rows["cat"][1], "weight", "pool", "normalize") == cat
    assert load_recipe(name).losses == rows["wkd_l_f"]


def test_self_distillation_has_the_published_settings_of_imagenet():
    rows = rows_of(TABLE_7[1])
    assert options(rows["uskd"][1], "target_weight", "rest_weight", "weak_weight") == (1.0, 0.1, 0.005)
    assert options(rows["zipf"][1], "weight", "dense", "upsample") == (0.1, True, 1)
    assert [term.weight for term in rows["tf_kd"]] == [0.9, 0.1]
    assert rows_of(TABLE_7[0])["wkd_l"] == rows_of(TABLE_4[0])["wkd_l"]


@pytest.mark.parametrize("name", [*TABLE_V, *TABLE_4, *TABLE_7])
def test_training_on_imagenet_is_gkls_or_wkds(name):
    recipe = load_recipe(name)
    wkd = name not in TABLE_V
    assert options(recipe.train, "epochs", "batch_size") == (100, 256 if wkd else 512)
    assert options(recipe.optimizer, "learning_rate", "nesterov", "momentum") == (0.1 if wkd else 0.2, wkd, 0.9)
    assert recipe.optimizer.weight_decay == 1e-4
    assert options(recipe.schedule, "name", "milestones", "decay_factor") == ("multistep", (30, 60, 90), 0.1)
    assert (recipe.protocol, recipe.data.augment.resized_crop, recipe.data.augment.flip) == ("paper", (0.08, 1.0), True)


# distill_w; IKL's and GKL's alpha and beta.
@pytest.mark.parametrize(
    ("pair", "factor", "alpha", "beta"),
    [
        ("resnext101_32x4d-resnet18", 4.0, 4.0, 4.0),
        ("resnext101_32x4d-resnet50", 3.0, 3.0, 4.0),
        ("resnet50-resnet50", 1.0, 1.0, 1.0),
    ],
)
def test_weights_on_imagenet_lt_equal_the_public_scripts(pair, factor, alpha, beta):
    rows = rows_of(f"distill/imagenet-lt/{pair}")
    for row in rows.keys() & {"kl", "kl_t1_5", "kl_t2", "js"}:
        assert options(rows[row][1], "weight", "scale_by_t2") == (factor, True)
    assert rows["kl"][1].temperature == 1.0
    if "kl_t2" in rows:
        assert (rows["kl_t1_5"][1].temperature, rows["kl_t2"][1].temperature) == (1.5, 2.0)
    for row, prior, softening in (("ikl", "sample", 100.0), ("gkl", "class", 1.0)):
        term = rows[row][1]
        assert options(term, "ce_weight", "mse_weight", "temperature") == (alpha, beta, 1.0)
        assert options(term, "prior", "prior_temperature", "warmup_epochs") == (prior, softening, 0.0)
    assert rows["gkl"][1].weight_power == 0.3


@pytest.mark.parametrize("name", LONG_TAILED)
def test_training_on_imagenet_lt_is_that_of_the_public_scripts(name):
    recipe = load_recipe(name)
    assert options(recipe.train, "epochs", "batch_size", "drop_last") == (90, 128, True)
    assert options(recipe.optimizer, "learning_rate", "weight_decay", "nesterov") == (0.05, 5e-4, False)
    assert options(recipe.schedule, "name", "warmup_epochs") == ("cosine", 10.0)
    assert (recipe.data.name, recipe.data.groups, recipe.data.validation) == ("imagenet_lt", (100, 20), 0)


def test_the_grid_of_powers_is_the_same_for_both_kinds_of_weights():
    rows = rows_of("ablations/imagenet-lt/smoothing")
    found = {(term.prior, term.weight_power) for row, (_, term) in rows.items() if row != "kl"}
    assert found == {(prior, power) for prior in ("sample", "class") for power in (1.0, 0.5, 0.3)}
    assert rows["class_0_3"] == rows_of("distill/imagenet-lt/resnext101_32x4d-resnet18")["gkl"]


@pytest.mark.parametrize("name", TABLE_6)
def test_weights_of_wkds_table_6_are_ofas_or_of_the_papers_grids(name):
    recipe, rows = load_recipe(name), rows_of(name)
    assert [rows[row][1].weight for row in ("kd", "dkd", "dist", "ofa", "fitnet", "cc", "rkd", "crd")] == [
        *(1.0, 1.0, 1.0, 1.0, 1.0, 0.02, 1.0, 1.0)
    ]
    assert {rows[row][1].temperature for row in ("kd", "dkd", "dist", "ofa")} == {1.0}
    assert options(rows["dkd"][1], "target_weight", "rest_weight") == (1.0, 2.0)
    assert options(rows["rkd"][1], "distance_weight", "angle_weight") == (25.0, 50.0)
    assert options(rows["wkd_l"][1], "temperature", "sharpness", "iterations", "target_weight") == (2.0, 1.0, 10, 1.0)
    assert rows["wkd_l"][1].transport_weight in (50, 100, 150, 200)
    assert options(rows["wkd_f"][1], "mean_weight", "grid", "projector", "features") == (2.0, 1, "linear", ("last",))
    assert rows["wkd_f"][1].weight in (0.01, 0.02, 0.04, 0.08)
    assert options(recipe.train, "epochs", "batch_size") == (300, 512)
    convolutional = name.endswith(("resnet18", "mobilenet_v2"))
    assert options(recipe.optimizer, "name", "learning_rate") == (
        ("sgd", 0.025) if convolutional else ("adamw", 2.5e-4)
    )
    assert (recipe.optimizer.weight_decay, recipe.schedule.name, recipe.data.image_size) == (2e-3, "cosine", 224)


def test_the_strong_recipe_is_strategy_a2_of_vanilla_kd():
    recipe, rows = load_recipe(STRONG), rows_of(STRONG)
    optimizer, augment = recipe.optimizer, recipe.data.augment
    assert options(optimizer, "name", "learning_rate", "weight_decay", "clip_norm") == ("lamb", 5e-3, 0.02, 1.0)
    assert not optimizer.decay_norms_and_biases
    assert options(recipe.train, "epochs", "batch_size", "precision") == (300, 2048, "bf16")
    assert options(recipe.schedule, "name", "warmup_epochs", "final_factor") == ("cosine", 5.0, 2e-4)
    assert options(augment, "mixup", "cutmix", "resized_crop", "flip") == (0.1, 1.0, (0.08, 1.0), True)
    strengths = options(augment, "rand_augment_operations", "rand_augment_magnitude", "rand_augment_spread")
    assert strengths == (2, 3 * 7, 3 * 0.5)  # of 30, and timm's 7 and 0.5 of 10
    assert augment.rand_augment_probability == 0.5
    assert options(recipe.data, "repeats", "test_resize") == (3, int(224 / 0.95))
    assert recipe.model.stochastic_depth == 0.05
    for terms in rows.values():
        assert options(terms[0], "name", "binary", "label_smoothing", "weight") == ("cross_entropy", True, 0.0, 1.0)
        assert options(terms[1], "weight", "temperature") == (1.0, 1.0)
    assert recipe.compare.published.rows == {"kd": 80.89, "dkd": 80.77, "dist": 80.70, "ikl": 80.98, "gkl": 80.98}


def test_the_last_row_of_table_i_is_table_vs():
    rows = rows_of("ablations/imagenet/table-i")
    assert rows["class"] == rows_of(TABLE_V[0])["gkl"]
    assert {row[1].warmup_epochs for row in rows.values()} == {5.0}
    assert {options(row[1], "mse_weight", "ce_weight") for row in rows.values() if row[1].name != "kl"} == {(0.5, 1.0)}
