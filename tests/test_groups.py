"""Claims about the accuracy on classes with many, medium and few training images, from the metrics to the tables."""

import json
import math

import numpy as np
import pytest
import torch
from engine_runs import recipe
from fake_runs import demo_like, write_json

from limbeck import run_listings
from limbeck.analysis.comparison import summarise
from limbeck.analysis.tables import markdown, notes
from limbeck.config import DataOptions
from limbeck.data import build_data
from limbeck.data.groups import class_groups
from limbeck.engine import run_folder
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.engine.metrics import measure

LONG_TAIL = {"imbalance": 20, "labels_per_class": 40, "groups": [20, 5]}  # 40 28 20 14 10 7 5 3 2 2


def members(groups):
    return {name: classes.tolist() for name, classes in groups.items()}


# --- which classes ----------------------------------------------------------------------------------------


def test_both_bounds_belong_to_the_medium_classes():
    counts = torch.tensor([101, 100, 20, 19, 500, 0])
    assert members(class_groups(counts, (100, 20))) == {"many": [0, 4], "medium": [1, 2], "few": [3, 5]}


def test_every_class_is_in_one_group_and_groups_without_a_class_are_left_out():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        counts = torch.randint(0, 60, (12,), generator=generator)
        few, many = sorted(torch.randint(0, 60, (2,), generator=generator).tolist())
        groups = class_groups(counts, (many, few))
        assert sorted(c for classes in members(groups).values() for c in classes) == list(range(12))
        for name, classes in members(groups).items():
            for c in classes:
                assert name == ("many" if counts[c] > many else "few" if counts[c] < few else "medium")
    assert members(class_groups(torch.full((3,), 50), (100, 20))) == {"medium": [0, 1, 2]}
    assert class_groups(torch.full((3,), 50), None) == {}


def test_a_long_tail_is_grouped_by_its_training_images_alone():
    data = build_data(DataOptions(**LONG_TAIL))
    assert members(data.groups) == {"many": [0, 1], "medium": [2, 3, 4, 5, 6], "few": [7, 8, 9]}


def test_bounds_that_rise_are_refused():
    with pytest.raises(
        ValueError, match=r"`groups` expected numbers that do not rise, as \[100, 20\], got \[20, 100\]"
    ):
        DataOptions(groups=(20, 100))


# --- how accurate -----------------------------------------------------------------------------------------


def accuracy_twin(logits, labels, groups):
    """Float64, one image at a time."""
    right = {c: [] for c in range(logits.shape[1])}
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        right[label].append(float(row.index(max(row)) == label))
    found = {}
    for name, classes in members(groups).items():
        accuracies = [math.fsum(right[c]) / len(right[c]) for c in classes if right[c]]
        if accuracies:
            found[name] = math.fsum(accuracies) / len(accuracies)
    return found


def test_groups_average_over_classes_and_all_is_over_samples():
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(torch.tensor([30.0, 9, 5, 3, 2, 1]), 400, replacement=True, generator=generator)
    logits = torch.randn(400, 6, generator=generator) + 1.5 * torch.eye(6)[labels]
    groups = class_groups(torch.tensor([300, 120, 90, 20, 19, 4]), (100, 20))
    metrics = measure(logits, labels, groups=groups)
    assert metrics["groups"] == pytest.approx(accuracy_twin(logits, labels, groups), abs=1e-15)
    assert metrics["top1"] == pytest.approx((logits.argmax(1) == labels).double().mean().item(), abs=1e-15)
    in_samples = {name: (logits.argmax(1) == labels)[torch.isin(labels, classes)] for name, classes in groups.items()}
    assert abs(metrics["groups"]["many"] - in_samples["many"].double().mean().item()) > 1e-3  # classes differ in size


def test_a_class_without_samples_does_not_count_and_a_group_of_such_is_left_out():
    groups = {"many": torch.tensor([0, 1]), "few": torch.tensor([2])}
    logits, labels = torch.eye(3)[[0, 0, 2]], torch.tensor([0, 0, 0])
    assert measure(logits, labels, groups=groups)["groups"] == {"many": pytest.approx(2 / 3)}
    assert "groups" not in measure(logits, labels)


# --- a run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("groups") / "run"
    fit(recipe(data=LONG_TAIL), folder)
    return folder


def test_a_run_keeps_its_groups_in_every_split_and_evaluate_finds_them_again(run):
    results = run_folder.read_results(run)
    assert results["group_classes"] == {"many": 2, "medium": 5, "few": 3}
    with np.load(run / run_folder.PREDICTIONS) as arrays:
        logits, labels = torch.from_numpy(arrays["test_logits"]), torch.from_numpy(arrays["test_labels"])
        groups = class_groups(torch.from_numpy(arrays["train_class_counts"]), (20, 5))
    assert results["last"]["test"]["groups"] == pytest.approx(accuracy_twin(logits, labels, groups), abs=1e-15)
    again = evaluate(run)
    for split in ("validation", "test"):
        assert again[split]["groups"] == results["last"][split]["groups"]
    epochs = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    assert epochs[-1]["validation"]["groups"] == results["last"]["validation"]["groups"]


def test_a_student_has_its_teacher_measured_on_the_same_groups(run, tmp_path):
    options = recipe(data=LONG_TAIL, task="distill", teachers=[{"run": str(run)}], losses=[{"name": "kl"}])
    teacher = fit(options, tmp_path / "student")["teachers"][0]
    assert teacher["test"]["groups"] == run_folder.read_results(run)["last"]["test"]["groups"]


def test_the_closing_lines_have_a_column_per_group_and_say_what_they_are(run, capsys):
    results = run_folder.read_results(run)
    run_listings.print_results(results, run)
    said = " ".join(capsys.readouterr().out.split())
    for name, accuracy in results["last"]["test"]["groups"].items():
        assert f"{100 * accuracy:.2f}" in said
        assert name in said
    assert "Classes by training images: many 2 (more than 20), medium 5 (5 to 20), few 3 (fewer than 5)." in said
    run_listings.print_metrics(evaluate(run), "last")
    assert f"{100 * results['last']['test']['groups']['few']:.2f}" in capsys.readouterr().out


# --- a comparison -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = demo_like(tmp_path_factory.mktemp("comparison"))
    for path in folder.glob("*/setting*/seed*/results.json"):
        results = json.loads(path.read_text())
        top1 = results["last"]["test"]["top1"]
        results["last"]["test"]["groups"] = {"many": top1, "few": top1**2}
        results["teachers"][0]["test"]["groups"] = {"many": 0.99, "few": 0.5 + 0.1 * (results["seed"] % 2)}
        results |= {"data": {"name": "digits", "groups": [40, 15]}, "group_classes": {"many": 4, "few": 2}}
        write_json(path, results)
    return summarise(folder)


def test_rows_have_the_groups_of_their_runs_paired_by_seed(comparison):
    gkl, kl = comparison.row("gkl"), comparison.row("kl")
    few = {name: np.array(row.main.values) ** 2 / 100 for name, row in (("gkl", gkl), ("kl", kl))}
    assert gkl.groups["few"].accuracy.values == pytest.approx(few["gkl"])
    assert gkl.groups["few"].judged.difference.values == pytest.approx(few["gkl"] - few["kl"])
    assert kl.groups["few"].judged.difference is None


def test_groups_stand_in_the_table_in_place_of_head_and_tail(comparison):
    header = markdown(comparison).splitlines()[0]
    assert "| many, % | many vs kl, points [95 % CI] | few, % | few vs kl, points [95 % CI] |" in header
    assert "head" not in header
    few = comparison.row("gkl").groups["few"]
    assert f"| {few.accuracy.mean:.2f} ± {few.accuracy.std:.2f} | {few.judged.difference.mean:+.2f} [" in markdown(
        comparison
    )
    assert "The teachers: many 99.00, few 54.00 %, means over the seeds." in notes(comparison)[-2]
    assert "many 4 (more than 40), few 2 (fewer than 15); training images per class from 100 to 10" in " ".join(
        notes(comparison)
    )
