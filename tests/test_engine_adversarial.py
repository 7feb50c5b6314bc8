"""Runs of adversarial training: what resumes, what is averaged, what is chosen and written down."""

import json
import os
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_runs import assert_same_run, merge, recipe
from safetensors.torch import load_file
from torch import nn

import limbeck
from limbeck import cli
from limbeck.config import AdversaryOptions, KLTerm, ScheduleOptions, TrainOptions
from limbeck.engine import loop, run_folder
from limbeck.engine.fit import fit
from limbeck.engine.metrics import ALONE
from limbeck.engine.optimizer import WeightAverage
from limbeck.engine.validation import Validator
from limbeck.errors import Diverged, UserError

GKL = {"name": "gkl", "mse_weight": 5.0, "ce_weight": 4.0, "weight_power": 0.5}


def robust_recipe(**changes):
    """A run in which everything that a checkpoint holds matters: prior, guide, averages, perturbed weights, ramp."""
    base = {
        "task": "adversarial",
        "data": {"standardise": False, "augment": {"crop_padding": 1}, "second_view": {"flip": True}},
        "model": {"name": "convnet", "width": 4, "depth": None},
        "losses": [{"name": "cross_entropy"}, GKL, {"name": "logit_mse", "on": "guide", "weight": 0.1}],
        "adversary": {
            "epsilon": 0.1,
            "epsilon_ramp": True,
            "steps": 2,
            "step_ratio": 1.0,
            "awp": 0.005,
            "awp_from_epoch": 2,
            "guide": {"name": "mlp", "width": 8, "depth": 1},
            "second_view_weight": 0.5,
            "validation_attack": "cw2",
            "attacks": [],
        },
        "train": {"ema_decay": 0.9, "ema_every": "epoch", "accumulate": 2, "epochs": 3},
        "save": {"every_steps": 3},
    }
    return recipe(**merge(base, changes))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    run = tmp_path_factory.mktemp("robust") / "unbroken"
    fit(robust_recipe(), run)
    return run


@pytest.mark.parametrize("step", [2, 6, 9, 14])
def test_killed_robust_run_ends_as_an_unbroken_one_to_the_bit(step, unbroken, tmp_path):
    run = tmp_path / "run"
    child = os.fork()
    if not child:
        try:
            after, calls = loop.Trainer._after_step, iter(range(1, 10**6))

            def dying(self):
                after(self)
                if next(calls) == step:
                    os.kill(os.getpid(), signal.SIGKILL)

            loop.Trainer._after_step = dying
            fit(robust_recipe(), run)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    fit(robust_recipe(), run, resume=True)
    assert_same_run(run, unbroken)


def test_best_epoch_is_the_one_with_the_highest_robust_validation_accuracy(unbroken):
    lines = [json.loads(line) for line in (unbroken / run_folder.METRICS).read_text().splitlines()]
    robust = [line["validation"]["robust"] for line in lines if line["kind"] == "epoch"]
    results = run_folder.read_results(unbroken)
    assert results["reported"] == "best"
    assert results["best"]["epoch"] == 1 + robust.index(max(robust))
    assert results["best"]["validation"]["robust"] == max(robust)  # measured again, with the averaged weights


def test_predictions_of_a_robust_run_are_those_of_the_weights_that_are_reported(unbroken):
    results = run_folder.read_results(unbroken)
    with np.load(unbroken / run_folder.PREDICTIONS) as arrays:
        top1 = float((arrays["test_logits"].argmax(1) == arrays["test_labels"]).mean())
    assert top1 == pytest.approx(results["best"]["test"]["top1"], abs=1e-12)


def test_paper_protocol_reports_the_averaged_weights_of_the_last_epoch(tmp_path):
    options = robust_recipe(protocol="paper", data={"validation": 0.0}, train={"epochs": 2})
    results = fit(options, tmp_path)
    assert results["reported"] == "ema"
    assert results["ema"]["epoch"] == 2
    assert results["optimistic"]["test"]["top1"] >= results["ema"]["test"]["top1"]
    assert "robust" not in results["optimistic"]["test"]  # the test images are attacked once, at the end
    assert 0 <= results["ema"]["test"]["robust"] <= results["ema"]["test"]["top1"]


def test_run_without_average_reports_its_own_weights(tmp_path):
    results = fit(robust_recipe(data={"validation": 0.0}, train={"ema_decay": None, "epochs": 1}), tmp_path)
    assert results["reported"] == "last"


# --- averages ---


def weights(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()


def test_average_over_epochs_equals_averaging_a_file_of_each_epoch():
    files = [weights(seed).state_dict() for seed in range(5)]
    model = weights(0)
    average = WeightAverage(model, 0.9, constant=True)
    for epoch, file in enumerate(files, start=1):
        model.load_state_dict(file)
        average.update(epoch)
    expected = files[0]
    for file in files[1:]:
        expected = {name: 0.9 * old + 0.1 * file[name] for name, old in expected.items()}
    for name, value in average.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-15)


def test_average_is_the_weights_themselves_until_its_warm_up_ends():
    model = weights(0)
    average = WeightAverage(model, 0.999, warmup_steps=2)
    for update in (1, 2):
        model.load_state_dict(weights(update).state_dict())
        average.update(update)
        assert torch.equal(average.model[0].weight, model[0].weight)
    before = model[0].weight.clone()
    model.load_state_dict(weights(3).state_dict())
    average.update(3)  # the first after the warm-up: min(.999, 2 / 11)
    torch.testing.assert_close(average.model[0].weight, 2 / 11 * before + 9 / 11 * model[0].weight, rtol=0, atol=1e-15)


# --- one step ---


def plain_network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 3)).double()


def loader(batch_size=8):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(16, 1, 4, 4, generator=generator, dtype=torch.float64)
    samples = torch.utils.data.TensorDataset(images, torch.arange(16) % 3)
    return torch.utils.data.DataLoader(samples, batch_size=batch_size)


def test_accumulated_step_is_the_whole_batchs_where_no_layer_couples_the_samples(tmp_path):
    """Attack, loss and update, and the weight perturbation, which is of the whole step."""
    adversary = AdversaryOptions(epsilon=0.1, steps=2, awp=0.01, attacks=())
    states = []
    for parts in (1, 2):
        model = plain_network()
        limbeck.fit(
            model,
            loader(),
            losses=["ce", KLTerm(weight=6.0)],
            objective=adversary,
            epochs=2,
            loop=TrainOptions(accumulate=parts, threads=1),
            folder=tmp_path / str(parts),
            progress=False,
        )
        states.append(model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-12)


def test_own_network_is_trained_robustly_and_reports_the_epoch_of_the_best_robust_accuracy(tmp_path):
    adversary = AdversaryOptions(epsilon=0.05, steps=2, validation_attack="cw2", attacks=("pgd2",))
    model = plain_network()
    run = limbeck.fit(
        model,
        loader(),
        val=loader(),
        test=loader(5),
        losses="gkl",
        objective=adversary,
        epochs=3,
        folder=tmp_path,
        progress=False,
    )
    results = run.results
    assert results["task"] == "adversarial"
    assert 0 <= results["best"]["test"]["robust"] <= results["best"]["test"]["top1"] == run.test
    for name, value in load_file(run.weights).items():
        assert torch.equal(model.state_dict()[name], value)  # the reported weights, not the last
    assert run.robustness["rows"][0]["attack"] == "pgd2"
    assert f"pgd2 {run.robustness['rows'][0]['accuracy']:.2%}" in str(run)


def test_weight_perturbation_leaves_the_guides_statistics_alone(tmp_path):
    """The guide's BatchNorm sees each batch once, with weight perturbation and without."""
    counts = {}
    for awp in (0.0, 0.005):
        options = robust_recipe(
            adversary={"awp": awp, "awp_from_epoch": 1, "guide": {"name": "convnet", "width": 4}}, train={"epochs": 1}
        )
        fit(options, tmp_path / str(awp))
        guide = torch.load(tmp_path / str(awp) / run_folder.CHECKPOINT, weights_only=True)["guide"]
        counts[awp] = [int(value) for name, value in guide.items() if name.endswith("num_batches_tracked")]
    assert counts[0.0] == counts[0.005] != []


def test_guide_trains_and_starts_from_a_seed_of_its_own(unbroken):
    state = torch.load(unbroken / run_folder.CHECKPOINT, weights_only=True)
    assert state["guide"] is not None
    assert len(state["optimizer"]["param_groups"][0]["params"]) == len(
        [name for part in ("model", "guide") for name in state[part] if "running" not in name and "num_b" not in name]
    )


def test_onecycle_run_with_batch_statistics_in_the_attack_works(tmp_path):
    options = robust_recipe(
        adversary={"bn_mode": "batch", "start": "uniform", "loss": "gkl"},
        schedule=ScheduleOptions(name="onecycle", warmup_fraction=0.1).model_dump(),
        train={"ema_every": "step", "ema_warmup_epochs": 0.5},
        optimizer={"decay_norms_and_biases": False},
    )
    assert fit(options, tmp_path)["reported"] == "best"


# --- mistakes ---


def test_attack_whose_gradient_is_not_finite_ends_the_run_with_the_way_out(tmp_path, monkeypatch):
    prepare = loop.Trainer._optimize

    def poisoned(self, batch):
        if self.step == 3:
            next(self.model.parameters()).data.fill_(float("nan"))
        prepare(self, batch)

    monkeypatch.setattr(loop.Trainer, "_optimize", poisoned)
    with pytest.raises(Diverged, match=r"`attack` is not finite at step 4 (.|\n)*learning_rate"):
        fit(robust_recipe(), tmp_path)


def test_attack_that_fails_in_the_first_step_puts_no_blame_on_the_learning_rate(tmp_path, monkeypatch):
    prepare = loop.Trainer._optimize

    def poisoned(self, batch):
        next(self.model.parameters()).data.fill_(float("nan"))
        prepare(self, batch)

    monkeypatch.setattr(loop.Trainer, "_optimize", poisoned)
    with pytest.raises(Diverged, match="`attack` is not finite at step 1 ") as raised:
        fit(robust_recipe(), tmp_path)
    assert "learning_rate" not in str(raised.value)


def test_pixels_outside_of_the_unit_interval_are_refused_in_one_line(tmp_path, monkeypatch):
    batches = loop.Trainer._batches

    def shifted(self):
        for batch in batches(self):
            yield replace(batch, images=batch.images - 1)

    monkeypatch.setattr(loop.Trainer, "_batches", shifted)
    with pytest.raises(UserError, match=r"\[0, 1\]|\(0\.0, 1\.0\)") as raised:
        fit(robust_recipe(), tmp_path)
    assert "\n" not in str(raised.value)


def test_attack_leaves_running_statistics_alone(tmp_path):
    """BatchNorm counts two forward passes per step, adversarial and clean, however many steps the attack takes."""
    counts = {}
    for steps in (1, 4):
        fit(robust_recipe(adversary={"steps": steps}, train={"epochs": 1, "accumulate": 1}), tmp_path / str(steps))
        model = torch.load(tmp_path / str(steps) / run_folder.CHECKPOINT, weights_only=True)["model"]
        counts[steps] = {int(value) for name, value in model.items() if name.endswith("num_batches_tracked")}
    assert counts[1] == counts[4] == {2 * 7}


@pytest.mark.parametrize(("part", "who"), [("train", "training"), ("val", "validation"), ("test", "test")])
def test_pixels_of_any_loader_are_looked_at_before_the_training(part, who, tmp_path):
    loaders = {"train": loader(), "val": loader(), "test": loader()}
    loaders[part] = [(images - 0.5, labels) for images, labels in loaders[part]]
    with pytest.raises(UserError, match=rf"the {who} loader expected pixels in \[0, 1\], .* got -0.[45]\d* to 0.[45]"):
        limbeck.fit(
            plain_network(),
            **loaders,
            losses="gkl",
            objective=AdversaryOptions(steps=1),
            epochs=1,
            folder=tmp_path / "run",
            progress=False,
        )
    assert not (tmp_path / "run").exists()


class Steep(nn.Module):
    """Finite logits whose gradient is not."""

    def __init__(self):
        super().__init__()
        self.body = plain_network()

    def forward(self, images):
        logits = self.body(images)
        return logits + (logits - logits.detach()).sqrt()


def test_a_gradient_that_is_not_finite_on_validation_images_is_one_line():
    pixels = torch.full((1, 1, 4, 4), 0.5, dtype=torch.float64)
    images = SimpleNamespace(labels=torch.tensor([0]), batches=lambda *which: [pixels])
    data = SimpleNamespace(validation=images, groups=None)
    validator = Validator(robust_recipe(), data, [], lambda split, model: model(pixels).detach(), ALONE)
    with pytest.raises(UserError, match=r"^the validation split under attack: the gradient of `loss` expected finite"):
        validator.measure("validation", Steep())


def test_a_warning_of_the_attacks_is_shown_with_the_run(tmp_path):
    network = nn.Sequential(plain_network(), nn.Softmax(-1))
    run = limbeck.fit(
        network,
        loader(),
        test=loader(),
        losses="gkl",
        objective=AdversaryOptions(steps=1, validation_attack="pgd1", attacks=("pgd1",)),
        epochs=1,
        folder=tmp_path,
        progress=False,
    )
    assert "\nWARNING: the outputs look like probabilities" in str(run)


def test_the_command_prints_what_the_attacks_left_after_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    changes = ["adversary.attacks=[pgd2]", "adversary.validation_attack=pgd1", "train.epochs=1", "model.width=2"]
    words = [word for change in changes for word in ("--set", change)]
    assert cli.main(["train", "robust/digits/methods", "--run", "run", *words]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["pgd2", "0.2"] in [line[:2] for line in lines]
    assert any("under" in line and "attack," in line for line in lines)
