"""Class-incremental learning: phases, growing heads, old classes compared alone, and what is measured of forgetting."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from cifar_archives import write_cifar
from engine_runs import Hook, assert_same_run, recipe
from pydantic import ValidationError
from recipe_steps import SHORT, as_texts, assert_two_finite_steps, terms_of
from torch import nn

from limbeck import GKLLoss, KLLoss
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import comparison_pictures, draw_run
from limbeck.config import DataOptions, PhaseOptions, Recipe
from limbeck.config_files import load_recipe
from limbeck.data import build_data, class_order
from limbeck.engine import run_folder
from limbeck.engine.compare import compare
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.engine.generations import train_generations
from limbeck.engine.phases import measure_forgetting, measure_phases, measure_within, phase_ends
from limbeck.errors import Interrupted, UserError
from limbeck.models.growing import UNKNOWN, FewerClasses, grow
from limbeck.objectives import Facts, Incremental
from limbeck.objectives.supervised import Outcome

ENDS = [4, 7, 10]


def chain(**changes):
    base = {
        "task": "distill",
        "losses": [{"name": "cross_entropy"}, {"name": "gkl", "prior_temperature": 2.0}],
        "incremental": {"phases": 3},
        "data": {"class_order": "drawn"},
        "train": {"epochs": 1},
    }
    return recipe(**{**base, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("incremental") / "run"
    return folder, fit(chain(), folder)


# --- the images of a phase ---


def test_phases_part_the_training_images_and_share_none():
    whole = build_data(DataOptions(class_order="drawn"))
    phases = [
        build_data(DataOptions(class_order="drawn", phase=PhaseOptions(old=old, seen=seen)))
        for old, seen in zip([0, *ENDS], ENDS, strict=False)
    ]
    assert sum(len(phase.train) for phase in phases) == len(whole.train)
    for (first, end), phase in zip(zip([0, *ENDS], ENDS, strict=False), phases, strict=True):
        assert phase.train.labels.unique().tolist() == list(range(first, end))
        assert phase.test.labels.unique().tolist() == list(range(end))
        assert phase.num_classes == end
    assert torch.equal(phases[-1].test.images, whole.test.images)
    assert torch.equal(phases[-1].test.labels, whole.test.labels)


def test_an_order_of_classes_numbers_them_anew_and_moves_no_image():
    plain, drawn = (build_data(DataOptions(class_order=order, split_seed=3)) for order in (None, "drawn"))
    order = torch.tensor(class_order(DataOptions(class_order="drawn", split_seed=3), 10))
    assert torch.equal(order[drawn.test.labels], plain.test.labels)
    assert torch.equal(drawn.test.images, plain.test.images)
    assert sorted(order.tolist()) == list(range(10)) != order.tolist()


def test_a_memory_is_the_same_few_images_of_each_old_class():
    keep = [
        build_data(DataOptions(phase=PhaseOptions(old=4, seen=7, memory_per_class=count))).train for count in (3, 5)
    ]
    assert [keep[0].labels.bincount()[:4].tolist(), keep[1].labels.bincount()[:4].tolist()] == [[3] * 4, [5] * 4]
    few = {image.numpy().tobytes() for image in keep[0].images}
    assert few <= {image.numpy().tobytes() for image in keep[1].images}


def test_classes_that_do_not_divide_make_the_first_phases_larger():
    assert phase_ends(chain(), 10) == ENDS
    assert phase_ends(chain(incremental={"phases": 10}), 10) == list(range(1, 11))


# --- the loss ---


def test_a_divergence_compares_the_old_classes_alone_and_its_gradient_leaves_new_rows():
    old, student = nn.Linear(6, 4), nn.Linear(6, 7)
    terms = [{"name": "cross_entropy"}, {"name": "kl", "temperature": 2.0}, {"name": "gkl"}]
    options = chain(losses=terms, data={"phase": {"old": 4, "seen": 7}}, teachers=[{"run": "x"}])
    objective = Incremental(student, [FewerClasses(old, 7)], options, facts=Facts(num_classes=7))
    images, labels = torch.randn(5, 6), torch.tensor([4, 6, 5, 4, 6])
    batch = type("B", (), {"images": images, "labels": labels, "indices": torch.arange(5)})()
    outcome: Outcome = objective(batch)
    logits, target = student(images), old(images).detach()
    assert torch.isclose(outcome.parts["kl"], KLLoss(temperature=2.0)(logits[:, :4], target))
    own = nn.functional.cross_entropy(logits[:, 4:], labels - 4)
    assert torch.isclose(outcome.parts["cross_entropy"], own)
    (gradient,) = torch.autograd.grad(outcome.parts["kl"] + outcome.parts["gkl"], student.weight)
    assert gradient.isfinite().all()
    assert (gradient[4:] == 0).all()
    assert (gradient[:4] != 0).any()


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("prior", ["class", "sample"])
def test_ranks_divide_by_the_weights_of_old_classes_alone(prior, power):
    loss = GKLLoss(5, prior=prior, weight_power=power)
    absent = torch.arange(5) >= 3
    logits, target = torch.randn(2, 6, 5, dtype=torch.float64).masked_fill(absent, -torch.inf)
    labels = torch.tensor([3, 4] * 3)
    share = loss.denominator(target, labels) / 2
    parts = [loss(logits[part], target[part], labels[part], normalizer=share) for part in (slice(0, 3), slice(3, 6))]
    assert torch.isclose(sum(parts) / 2, loss(logits, target, labels), rtol=1e-6)


def test_the_prior_of_a_new_class_is_what_the_old_network_takes_it_for():
    loss, old = GKLLoss(num_classes=5, prior_temperature=2.0), nn.Linear(6, 3)
    images, labels = torch.randn(8, 6), torch.tensor([3, 4] * 4)
    loss.observe(FewerClasses(old, 5)(images), labels)
    loss.refresh()
    expected = (old(images) / 2.0).double().softmax(-1)[labels == 4].mean(0)
    assert torch.allclose(loss.prior.prior[4, :3].double(), expected, atol=1e-6)
    assert (loss.prior.prior[3:, 3:] == 0).all()


def test_a_grown_network_says_of_old_classes_what_it_said_before():
    before, student = (nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, classes)) for classes in (2, 5))
    own = student[2].weight[2:].clone()
    grow(student, before)
    images = torch.randn(4, 6)
    assert torch.equal(student(images)[:, :2], before(images))
    assert torch.equal(student[2].weight[2:], own)
    assert (FewerClasses(before, 5)(images)[:, 2:] == UNKNOWN).all()
    with pytest.raises(ValueError, match="rows of its head alone"):
        grow(nn.Linear(3, 2), nn.Linear(4, 2))


# --- a run ---


def test_a_chain_is_a_finished_run_of_all_classes(run):
    folder, results = run
    assert results == run_folder.read_results(folder)
    phases = [run_folder.read_results(folder / f"phase{number}") for number in range(3)]
    assert [each["num_classes"] for each in phases] == ENDS
    assert results["num_classes"] == 10
    assert results["last"]["test"]["top1"] == phases[-1]["last"]["test"]["top1"]
    assert results["incremental"]["after_phase"] == [each["last"]["test"]["top1"] for each in phases]
    assert results["epochs"] == sum(each["epochs"] for each in phases)
    lines = [json.loads(line) for line in (folder / run_folder.METRICS).read_text().splitlines()]
    assert [(line["epoch"], line["phase"]) for line in lines if line["kind"] == "epoch"] == [(1, 0), (2, 1), (3, 2)]
    assert results["class_counts"] == [10] * 10


def test_each_phase_starts_from_the_one_before_and_learns_from_it(run):
    folder, _ = run
    recipes = [load_recipe(str(folder / f"phase{number}" / run_folder.CONFIG)) for number in range(3)]
    assert [each.task for each in recipes] == ["supervised", "distill", "distill"]
    assert [term.name for term in recipes[0].losses] == ["cross_entropy"]
    assert [each.teachers[0].run for each in recipes[1:]] == [str(folder / f"phase{number}") for number in (0, 1)]
    teacher = run_folder.read_results(folder / "phase2")["teachers"][0]
    assert teacher["test"]["top1"] == run_folder.read_results(folder / "phase1")["last"]["test"]["top1"]


def test_a_phase_is_the_run_alone(run, tmp_path):
    folder, _ = run
    fit(load_recipe(str(folder / "phase1" / run_folder.CONFIG)), tmp_path / "alone")
    assert_same_run(folder / "phase1", tmp_path / "alone")


def test_the_whole_run_and_its_phases_can_be_evaluated(run):
    folder, results = run
    for each, expected in ((folder, results), (folder / "phase1", run_folder.read_results(folder / "phase1"))):
        assert evaluate(each)["test"]["top1"] == expected["last"]["test"]["top1"]


def test_an_interrupted_chain_goes_on_to_the_same_bits(run, tmp_path):
    steps = []

    def interrupt(step: int) -> None:
        steps.append(step)
        if len(steps) == 5:  # within the second phase
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted, match=r"continue with: limbeck train .*run/config\.yaml"):
        fit(chain(), tmp_path / "run", reporter=Hook(interrupt))
    assert not (tmp_path / "run" / run_folder.RESULTS).exists()
    resumed = fit(chain(), tmp_path / "run", resume=True)
    for name in ("last", "incremental"):
        assert resumed[name] == run[1][name]
    assert_same_run(tmp_path / "run" / "phase2", run[0] / "phase2")


def test_one_phase_is_ordinary_training_on_all_classes(tmp_path):
    together = fit(chain(incremental={"phases": 1}, data={}), tmp_path / "one")
    plain = fit(recipe(train={"epochs": 1}), tmp_path / "plain")
    assert together["last"]["test"]["top1"] == plain["last"]["test"]["top1"]
    assert together["last"]["test"]["forgetting"] == 0


# --- what is measured ---


def test_forgetting_and_average_are_what_the_matrix_says(run):
    folder, results = run
    arrays = np.load(folder / run_folder.PREDICTIONS)
    matrix, test = arrays["test_phase_accuracy"], results["last"]["test"]
    for number in range(3):
        with np.load(folder / f"phase{number}" / run_folder.PREDICTIONS) as said:
            right = said["test_logits"].argmax(1) == said["test_labels"]
            for before, (first, end) in enumerate(zip([0, *ENDS], ENDS[: number + 1], strict=False)):
                its = (said["test_labels"] >= first) & (said["test_labels"] < end)
                assert matrix[number, before] == pytest.approx(right[its].mean())
    worst = [max(matrix[0, 0], matrix[1, 0]) - matrix[2, 0], matrix[1, 1] - matrix[2, 1]]
    assert test["forgetting"] == pytest.approx(np.mean(worst))
    assert test["average_incremental"] == pytest.approx(np.mean(results["incremental"]["after_phase"]))
    assert test["within_phase"] >= test["top1"]


def test_measures_of_two_phases_by_hand():
    labels = np.array([0, 1, 2, 2])
    logits = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0], [3.0, 0.0, 1.0]])
    matrix = measure_phases([logits[:2, :2], logits], [labels[:2], labels], [2, 3])
    assert np.array_equal(matrix, [[0.5, np.nan], [0.0, 0.5]], equal_nan=True)
    assert measure_within(logits, labels, [2, 3]) == 0.75
    assert measure_forgetting(matrix, [0.5, 0.25]) == {"average_incremental": 0.375, "forgetting": 0.5}


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "supervised", "losses": [{"name": "cross_entropy"}]}, "`incremental` expected task `distill`"),
        ({"teachers": [{"run": "x"}]}, "`teachers` expected none"),
        ({"losses": [{"name": "cross_entropy"}, {"name": "dkd"}]}, "got `dkd`"),
        ({"losses": [{"name": "kl"}]}, "`losses` expected a cross_entropy"),
        ({"incremental": {"memory_per_class": 2}}, "expected `classification: seen`"),
        ({"data": {"name": "imagenet"}}, "expected one of digits"),
        ({"data": {"generated": "file.npz"}}, "expected null for `data.generated`"),
    ],
)
def test_what_does_not_go_with_phases_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        chain(**changes)


def test_more_phases_than_classes_and_a_wrong_order_are_said_in_a_line(tmp_path):
    with pytest.raises(UserError, match="at most the 10 classes of the data, got 11"):
        fit(chain(incremental={"phases": 11}), tmp_path / "r")
    with pytest.raises(UserError, match="each of the classes 0 to 9 of `digits` once"):
        build_data(DataOptions(class_order=(0, 1)))


def test_phases_of_a_row_are_checked_where_the_recipe_has_none():
    row = {"options": {"incremental": {"phases": 2}}, "settings": [[{"name": "cross_entropy"}]]}
    with pytest.raises(ValidationError, match="`teachers` expected none"):
        chain(incremental=None, teachers=[{"run": "x"}], compare={"baseline": "none", "contenders": {"none": row}})


def test_phases_are_no_generations(tmp_path):
    with pytest.raises(UserError, match="--generations expected a recipe without `incremental`"):
        train_generations(chain(), tmp_path / "f", 2)


def test_a_recipe_without_phases_asks_for_teachers_as_before():
    with pytest.raises(ValidationError, match="expected at least one entry in `teachers`"):
        Recipe.model_validate({"task": "distill"})


# --- tables and pictures ---


def test_a_comparison_shows_what_is_forgotten_and_draws_it(tmp_path):
    rows = {"none": [{"name": "cross_entropy"}], "kl": [{"name": "cross_entropy"}, {"name": "kl"}]}
    contenders = {name: {"settings": [terms]} for name, terms in rows.items()}
    content = compare(chain(compare={"baseline": "none", "contenders": contenders}), tmp_path / "c", seeds=1)
    assert content["rows"]["kl"]["runs"] == [["kl/setting0/seed0"]]
    table = summarise(tmp_path / "c").table()
    assert all(title in table for title in ("over phases", "phase told", "forgotten"))
    drawn = {picture.name for picture in comparison_pictures(summarise(tmp_path / "c"))}
    assert {"phases", "phase_matrices"} <= drawn
    assert (tmp_path / "c" / "kl" / "setting0" / "seed0" / "phase2" / run_folder.RESULTS).is_file()


def test_a_run_of_phases_is_drawn_and_a_run_without_is_not(run, tmp_path):
    assert {path.stem for path in draw_run(run[0], tmp_path)} >= {"phases", "phase_matrices", "curves"}
    fit(recipe(train={"epochs": 1}), tmp_path / "plain")
    assert not {path.stem for path in draw_run(tmp_path / "plain", tmp_path / "drawn")} & {
        "phases",
        "phase_matrices",
        "corruptions",
    }


# --- the recipe at paper size ---


def test_the_recipe_of_cifar100_takes_two_steps_a_phase_with_every_loss(tmp_path):
    write_cifar(tmp_path / "data", "cifar100", train=200, test=100)
    few = {"incremental.phases": 2, "train.batch_size": 50, "train.epochs": 1, "data.validation": 0}
    changes = {**SHORT, **few, "data.folder": tmp_path / "data", "optimizer.learning_rate": 1e-3}
    recipe = load_recipe("incremental/cifar100/lwf", as_texts(changes))
    terms = terms_of("incremental/cifar100/lwf")
    results = fit(recipe.model_copy(update={"losses": tuple(terms)}), tmp_path / "run")
    assert results["steps"] == 4
    assert_two_finite_steps(tmp_path / "run" / "phase1", len(terms))
    assert {term.name for term in terms} == {"cross_entropy", "kl", "js", "gkl"}
    assert load_recipe("incremental/cifar100/lwf").of_row("joint").incremental.phases == 1
