"""Options of adversarial training: what belongs together, and what a mistake says."""

import pytest

from limbeck.config import AdversaryOptions, CrossEntropyTerm, GKLTerm, KLTerm, MARTTerm, Recipe
from limbeck.config_files import load_recipe
from limbeck.errors import UserError

METHODS = "robust/digits/methods"


def mistake(*overrides, recipe=METHODS):
    """The line that loading ends with."""
    with pytest.raises(UserError) as raised:
        load_recipe(recipe, overrides)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ("terms", "climbed"),
    [
        ([CrossEntropyTerm(on="adversarial")], "cross_entropy"),
        ([MARTTerm()], "cross_entropy"),
        ([CrossEntropyTerm(), KLTerm()], "kl"),
        ([CrossEntropyTerm(), GKLTerm()], "kl"),
    ],
    ids=["pgd-at", "mart", "trades", "gkl-at"],
)
def test_attack_climbs_what_the_method_is_known_for(terms, climbed):
    assert AdversaryOptions().climbs(terms) == climbed
    assert AdversaryOptions(loss="margin").climbs(terms) == "margin"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["adversary.start=none"], ("adversary.start", "gaussian or uniform", "rounding noise")),
        (["adversary.loss=gkl", "adversary.start=none"], ("start: none", "rounding noise")),
        (["losses=[{name: cross_entropy}]"], ("a term of the adversarial images", "on: adversarial")),
        (["losses.1.on=guide"], ("adversary.guide", "got null")),
        (["losses.1.on=adversarial"], ("clean or guide",)),
        (["losses=[{name: cross_entropy, on: adversarial}, {name: tf_kd}]"], ("tf_kd", "makes its own target")),
        (["data.standardise=true"], ("data.standardise", "expected false")),
        (["data.augment.mixup=1"], ("mixup",)),
        (["adversary.attacks=[pgdx]"], ("pgd20, cw20 or aa", "pgdx")),
        (["adversary.validation_attack=aa"], ("validation_attack", "pgd10 or cw10", "aa")),
        (["adversary.epsilon=0"], ("adversary.epsilon",)),
        (["adversary.step_ration=0.5"], ("step_ratio",)),
        (["compare.contenders.trades.adversary.stepz=3"], ("stepz", "steps")),
        (["teachers=[{run: there}]"], ("adversary.guide",)),
    ],
)
def test_mistake_in_adversarial_training_is_one_line_with_the_way_out(overrides, words):
    line = mistake(*overrides)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["losses.0.on=adversarial"], ("on: adversarial", "task `adversarial`")),
        (["losses.1={name: mart}"], ("mart", "task `adversarial`")),
        (["data.second_view={auto_augment: true}", "data.augment.mixup=0"], ("second_view", "task `adversarial`")),
    ],
)
def test_option_of_adversarial_training_is_refused_elsewhere(overrides, words):
    line = mistake(*overrides, recipe="distill/digits/few-labels")
    for word in words:
        assert word in line


def test_row_of_a_comparison_may_have_another_adversary():
    recipe = load_recipe(METHODS, ["compare.contenders.trades.adversary={steps: 3}"])
    assert recipe.adversary_of("trades") == recipe.adversary.model_copy(update={"steps": 3})
    assert recipe.adversary_of("gkl") == recipe.adversary


def test_second_view_and_generated_images_refuse_mixed_labels():
    for key in ("mixup", "cutmix"):
        with pytest.raises(ValueError, match="mixup"):
            Recipe.model_validate({"data": {"generated": "file.npz", "augment": {key: 1.0}}})
