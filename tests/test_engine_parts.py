"""The engine's parts: learning rate, optimizer, averaged weights, metrics, running means."""

from __future__ import annotations

import json
import math
import os
import stat

import numpy as np
import pytest
import torch
from torch import nn

from limbeck.config import OptimizerOptions, ScheduleOptions
from limbeck.data import Pixels, Source
from limbeck.engine import run_folder
from limbeck.engine.checkpoint import save_checkpoint
from limbeck.engine.log import LineFile, NotFinite, RunningMeans
from limbeck.engine.metrics import _calibration_error, accuracy_by_teacher_score, measure, predict
from limbeck.engine.optimizer import WeightAverage, build_optimizer
from limbeck.engine.results import class_means
from limbeck.engine.schedule import ONECYCLE_START, learning_rate_factor
from limbeck.errors import UserError

# --- schedule ---------------------------------------------------------------------------------------------


def factors(steps_per_epoch: int = 10, epochs: int = 4, **options) -> list[float]:
    schedule = ScheduleOptions.model_validate(options)
    return [
        learning_rate_factor(schedule, step, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for step in range(1, steps_per_epoch * epochs + 1)
    ]


def test_constant_is_the_peak_after_a_linear_warm_up():
    values = factors(name="constant", warmup_epochs=0.5)
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(values[5:]) == {1.0}


def test_cosine_falls_from_the_peak_to_the_final_factor_at_the_last_step():
    values = factors(name="cosine", final_factor=0.1)
    assert values[0] == 1.0
    assert values[-1] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)
    assert factors(name="cosine", steps_per_epoch=41, epochs=1)[20] == pytest.approx(0.5)


def test_cosine_with_warm_up_peaks_once():
    values = factors(name="cosine", warmup_epochs=1.0)
    assert values[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[-1] == pytest.approx(0.0)


def test_multistep_decays_after_its_milestones_and_between_no_steps():
    values = factors(name="multistep", milestones=(1, 3), decay_factor=0.5, warmup_epochs=0.2)
    assert values[:2] == [0.5, 1.0]
    assert values[2:] == [1.0] * 8 + [0.5] * 20 + [0.25] * 10


def test_onecycle_rises_to_the_peak_at_its_fraction_and_ends_at_the_final_factor():
    values = factors(name="onecycle", warmup_fraction=0.25, final_factor=0.02)
    assert values[0] == pytest.approx(ONECYCLE_START)
    assert values.index(max(values)) == 9
    assert values[9] == 1.0
    assert values[-1] == pytest.approx(0.02)
    assert values[:10] == sorted(values[:10])


def test_onecycle_is_torchs_up_to_where_it_ends():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=40, pct_start=0.25, final_div_factor=1e9, cycle_momentum=False
    )
    expected = []
    for _ in range(40):
        expected.append(torchs.get_last_lr()[0])
        optimizer.step()
        torchs.step() if len(expected) < 40 else None
    assert factors(name="onecycle", warmup_fraction=0.25) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["constant", "multistep", "cosine", "onecycle"])
@pytest.mark.parametrize("extreme", [{}, {"warmup_epochs": 9.0}, {"warmup_fraction": 0.0}, {"warmup_fraction": 1.0}])
def test_runs_of_one_step_and_extreme_warm_ups_have_a_learning_rate(name, extreme):
    options = {"name": name, "milestones": (0.5,)} | extreme
    for steps in (1, 2, 3):
        assert all(0 <= value <= 1 for value in factors(steps, 1, **options))


# --- optimizer --------------------------------------------------------------------------------------------


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))


def decays(model: nn.Module, options: OptimizerOptions) -> dict[str, float]:
    groups = build_optimizer(model, options).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    return {name: decay[id(parameter)] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
def test_norms_and_biases_are_left_out_of_the_decay_if_asked(name):
    options = OptimizerOptions(name=name, weight_decay=0.1, decay_norms_and_biases=False)
    assert decays(network(), options) == {
        "0.weight": 0.1, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.1, "3.bias": 0.0
    }  # fmt: skip
    everything = options.model_copy(update={"decay_norms_and_biases": True})
    assert set(decays(network(), everything).values()) == {0.1}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum):
    options = OptimizerOptions(learning_rate=0.1, momentum=momentum, weight_decay=0.01)
    models = network().double(), network().double()
    ours = build_optimizer(models[0], options)
    theirs = torch.optim.SGD(
        models[1].parameters(), lr=0.1, momentum=momentum, weight_decay=0.01, nesterov=momentum > 0
    )
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    for _ in range(3):
        for model, optimizer in zip(models, (ours, theirs), strict=True):
            optimizer.zero_grad()
            model(images).square().sum().backward()
            optimizer.step()
    for parameter, twin in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(parameter, twin)


def test_adamws_betas_are_momentum_and_beta2():
    optimizer = build_optimizer(network(), OptimizerOptions(name="adamw", momentum=0.8, beta2=0.95))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def test_average_follows_its_recursion_and_leaves_the_model_alone():
    model = network()
    average = WeightAverage(model, decay=0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 12):
        model(torch.randn(4, 1, 4, 4))  # moves the running statistics
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        current = {name: value.clone() for name, value in model.state_dict().items()}
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in current.items():
            mixed = decay * expected[name] + (1 - decay) * value
            expected[name] = mixed if value.is_floating_point() else value
        assert all(torch.equal(value, current[name]) for name, value in model.state_dict().items())
    for name, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert not average.model.training
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


# --- metrics ----------------------------------------------------------------------------------------------


def sample(samples: int = 500, classes: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    logits = 2 * torch.randn(samples, classes, generator=generator)
    logits[torch.arange(samples), labels] += 2
    return logits, labels, torch.randn(samples, classes, generator=generator)


def test_metrics_equal_a_loop_over_the_samples():
    logits, labels, teacher = sample()
    top1 = top5 = agreement = nll = 0.0
    bins = [[0.0, 0.0, 0] for _ in range(15)]
    for row, label, target in zip(logits.double().numpy(), labels.tolist(), teacher.numpy(), strict=True):
        scores = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
        order = np.argsort(-row)
        top1 += order[0] == label
        top5 += label in order[:5]
        agreement += order[0] == target.argmax()
        nll -= math.log(scores[label])
        place = min(math.ceil(scores.max() * 15), 15) - 1
        bins[place] = [bins[place][0] + (order[0] == label), bins[place][1] + scores.max(), bins[place][2] + 1]
    ece = sum(abs(correct / count - confidence / count) * count for correct, confidence, count in bins if count) / 500
    expected = {"top1": top1 / 500, "top5": top5 / 500, "nll": nll / 500, "ece": ece, "agreement": agreement / 500}
    assert measure(logits, labels, teacher) == pytest.approx(expected | {"samples": 500})


def test_top5_is_left_out_below_ten_classes_and_agreement_without_a_teacher():
    logits, labels, _ = sample(classes=9)
    assert measure(logits, labels).keys() == {"top1", "nll", "ece", "samples"}


def test_a_model_sure_of_what_is_right_has_no_calibration_error():
    logits = 1e4 * torch.eye(10)
    assert measure(logits, torch.arange(10))["ece"] == 0.0
    assert measure(logits, torch.arange(10).flip(0))["ece"] == 1.0


@pytest.mark.parametrize(
    ("confidences", "error"),
    [
        ((0.6, 0.55), abs(0.4 - 0.55) / 2),  # both in (8/15, 9/15]
        ((0.6, 0.62), (0.4 + 0.62) / 2),  # 0.62 is in (9/15, 10/15]
        ((0.8, 0.74), abs(0.2 - 0.74) / 2),  # both in (11/15, 12/15]
        ((0.8, 0.81), (0.2 + 0.81) / 2),
    ],
)
def test_a_bin_of_the_calibration_error_has_its_upper_edge(confidences, error):
    """The first prediction is right, the second wrong; together in a bin they cancel in part."""
    confidence = torch.tensor(confidences, dtype=torch.float64)
    assert _calibration_error(confidence, torch.tensor([True, False])) == pytest.approx(error)


def test_quarters_run_from_the_samples_the_teacher_is_least_sure_of():
    labels = torch.zeros(8, dtype=torch.int64)
    teacher = torch.stack([torch.tensor([6.0, 3, 0, 7, 1, 5, 2, 4]), torch.zeros(8)], dim=1)
    right = torch.tensor([1, 0, 0, 1, 0, 1, 1, 0])  # by rising score of the teacher: 0 0 1 0 0 1 1 1
    logits = torch.stack([right, 1 - right], dim=1).float()
    assert accuracy_by_teacher_score(logits, labels, teacher) == [0.0, 0.5, 0.5, 1.0]
    assert accuracy_by_teacher_score(logits[:3], labels[:3], teacher[:3]) == []


def test_predict_is_in_eval_mode_without_a_trace_on_the_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(256, (2500, 1, 2, 2), dtype=torch.uint8)
    source = Source(images, torch.zeros(2500, dtype=torch.int64), Pixels(255, (0.5,), (0.25,)))
    logits = predict(model, source)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits, model.eval()((images / 255 - 0.5) / 0.25).detach())


def test_logits_that_are_not_finite_are_an_error():
    images = torch.zeros(3, 1, 1, 1, dtype=torch.uint8)
    source = Source(images, torch.zeros(3, dtype=torch.int64), Pixels(255, (float("inf"),), (1.0,)))
    with pytest.raises(UserError, match="not finite"):
        predict(nn.Sequential(nn.Flatten(), nn.Linear(1, 2)), source)


def test_class_means_of_a_class_without_samples_are_nan():
    logits, labels, _ = sample(classes=3)
    means = class_means(logits, labels.clamp(max=1))
    torch.testing.assert_close(means[0], logits.softmax(1)[labels == 0].mean(0))
    assert means[2].isnan().all()


# --- files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_checkpoint(path, {"weight": torch.zeros(1000)}),
        lambda path: run_folder.write_json(path, {"value": 1}),
    ],
    ids=["checkpoint", "json"],
)
def test_a_file_is_whole_on_the_disk_before_it_has_its_name_and_the_name_after(write, tmp_path, monkeypatch):
    fsync, replace = os.fsync, os.replace
    events = []

    def record_fsync(descriptor):
        status = os.fstat(descriptor)
        events.append("folder" if stat.S_ISDIR(status.st_mode) else f"file of {status.st_size}")
        fsync(descriptor)

    def record_replace(source, target):
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    write(tmp_path / "file")
    assert events == [f"file of {(tmp_path / 'file').stat().st_size}", "rename", "folder"]


# --- logs -------------------------------------------------------------------------------------------------


def test_running_means_are_over_samples_whenever_they_are_flushed():
    rows = [(64, 2.0, 1.5, 0.5), (64, 1.0, 0.5, 0.75), (8, 4.0, 4.0, 1.0), (64, 0.1, 0.2, 0.3125)]
    taken = []
    for flush in (False, True):
        means = RunningMeans(("kl",))
        for step, (samples, *values) in enumerate(rows, start=1):
            means.add(step, samples, torch.tensor(values))
            if flush:
                means.load_state_dict(json.loads(json.dumps(means.state_dict())))
        taken.append((means.take("line"), means.take("epoch")))
    assert taken[0] == taken[1]
    assert taken[0][0] == pytest.approx(
        {
            "loss": sum(samples * loss for samples, loss, _, _ in rows) / 200,
            "kl": sum(samples * kl for samples, _, kl, _ in rows) / 200,
            "score": (32 + 48 + 8 + 20) / 200,
        }
    )


def test_correct_predictions_are_counted_whole_and_other_scores_are_kept():
    means = RunningMeans(())
    means.add(1, 60, torch.tensor([0.0, 49.0]) / 60)
    assert means.take("line")["score"] == 49 / 60
    means.add(2, 8, torch.tensor([0.0, 0.3]))
    assert means.take("line")["score"] == pytest.approx(0.3)


def test_spans_start_anew_when_they_are_taken():
    means = RunningMeans(())
    means.add(1, 10, torch.tensor([1.0, 0.5]))
    means.take("line")
    means.add(2, 10, torch.tensor([3.0, 1.0]))
    assert means.take("line") == {"loss": 3.0, "score": 1.0}
    assert means.take("epoch") == {"loss": 2.0, "score": 0.75}


@pytest.mark.parametrize(
    ("values", "term"),
    [((math.nan, math.nan, 1.0), "kl"), ((math.inf, 1.0, 1.0), "loss"), ((1.0, -math.inf, 1.0), "kl")],
)
def test_the_first_step_that_is_not_finite_is_named_with_its_term(values, term):
    means = RunningMeans(("kl",))
    means.add(6, 4, torch.tensor([1.0, 1.0, 0.0]))
    means.add(7, 4, torch.tensor(values))
    means.add(8, 4, torch.tensor([math.nan, math.nan, 0.0]))
    with pytest.raises(NotFinite) as error:
        means.flush()
    assert (error.value.term, error.value.step) == (term, 7)


def test_lines_go_on_where_they_were_cut(tmp_path):
    path = tmp_path / "lines.jsonl"
    file = LineFile(path, 0)
    file.write({"value": 0.1})
    length = file.sync()
    file.write({"value": 2})
    file.close()
    file = LineFile(path, length)
    file.write({"value": 1e-17})
    file.close()
    assert path.read_text() == '{"value": 0.1}\n{"value": 1e-17}\n'


def test_a_file_shorter_than_the_checkpoint_says_is_an_error(tmp_path):
    (tmp_path / "lines.jsonl").write_text("short")
    with pytest.raises(UserError, match="expected at least 6 bytes, got 5"):
        LineFile(tmp_path / "lines.jsonl", 6)
