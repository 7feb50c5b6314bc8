"""`limbeck.fit` and `limbeck.compare` on modules and loaders of a user's own: to the bit, and mistakes in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
import torch
from engine_runs import Hook, assert_same_run
from torch import nn
from torch.utils.data import DataLoader, Dataset

import limbeck
from limbeck import api_inputs
from limbeck.config import GKLTerm, KLTerm, OptimizerOptions, SaveOptions, ScheduleOptions, TrainOptions
from limbeck.engine import run_folder
from limbeck.errors import Interrupted, UserError

STEPS = 8  # two epochs of 50 samples in batches of 16


class Noisy(Dataset):
    """Fifty points around the corners of a simplex, another view each time."""

    def __init__(self, noise=0.1, classes=4):
        self.noise, self.classes = noise, classes

    def __len__(self):
        return 50

    def __getitem__(self, index):
        label = index % self.classes
        return torch.eye(self.classes)[label].repeat(2) + self.noise * torch.randn(2 * self.classes), label


class Net(nn.Module):
    """With what a checkpoint has to keep: dropout, running statistics, a tied weight."""

    def __init__(self, width=6, classes=4):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(width, classes)
        self.again = self.head

    def forward(self, x):
        return self.head(self.body(x))


def train_loader(**options):
    return DataLoader(Noisy(), **{"batch_size": 16, "shuffle": True, **options})


def held_out():
    return DataLoader(Noisy(0.0), batch_size=20)


def seeded(build=Net, seed=0):
    torch.manual_seed(seed)
    return build()


def fit(folder, model=None, train=None, **options):
    common = {"epochs": 2, "folder": folder, "progress": False, "save": SaveOptions(log_every=3, tensorboard=False)}
    return limbeck.fit(
        seeded() if model is None else model, train_loader() if train is None else train, **{**common, **options}
    )


def compare(folder, student=lambda: Net(), teacher=None, **options):
    common = {"epochs": 2, "folder": folder, "progress": False, "save": SaveOptions(tensorboard=False)}
    common |= {"losses": ["ce", "kl", "gkl"], "seeds": 2, "val": held_out()}
    return limbeck.compare(student, teacher or seeded(seed=9), train_loader(), **{**common, **options})


# --- fit --------------------------------------------------------------------------------------------------


def test_fit_trains_the_module_in_place_and_writes_its_weights(tmp_path):
    model = seeded()
    before = [parameter.clone() for parameter in model.parameters()]
    result = fit(tmp_path / "run", model, val=held_out(), test=held_out(), epochs=15)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    other = Net()
    from safetensors.torch import load_file

    other.load_state_dict(load_file(result.weights))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))
    assert not model.training
    assert result.validation == result.test == 1.0
    assert str(result) == f"top-1 validation 100.00%, test 100.00% ({tmp_path / 'run'})"
    assert run_folder.read_results(tmp_path / "run") == result.results


def test_without_held_out_loaders_there_is_nothing_to_report(tmp_path):
    result = fit(tmp_path / "run")
    assert (result.validation, result.test) == (None, None)
    assert str(result) == f"trained ({tmp_path / 'run'})"


def test_the_program_keeps_its_random_state_and_the_teacher_its_modes_gradients_and_weights(tmp_path):
    teacher = seeded(seed=9)
    teacher.body.eval()
    teacher.head.bias.requires_grad_(False)
    modes = [part.training for part in teacher.modules()]
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    model = seeded()
    state = torch.get_rng_state()
    fit(tmp_path / "run", model, val=held_out(), teacher=teacher, losses="gkl")
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in teacher.modules()] == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == [True] * 5 + [False]
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())


def test_a_teacher_is_given_back_though_training_fails(tmp_path):
    teacher = seeded(seed=9)
    with pytest.raises(UserError):
        fit(tmp_path / "run", seeded(), train=[], teacher=teacher, losses="gkl")
    assert teacher.training
    assert all(parameter.requires_grad for parameter in teacher.parameters())


def test_dict_batches_and_loaders_without_length_for_validation_are_read(tmp_path):
    batches = [{"x": x, "y": y} for x, y in held_out()]
    result = fit(tmp_path / "run", train=batches, val=batches, unpack=lambda batch: (batch["x"], batch["y"]))
    assert result.results["last"]["validation"]["samples"] == 50


def distil(folder, *, workers=0, **options):
    """A distillation in which everything matters: views, order, dropout, BatchNorm, prior, average, micro-batches."""
    arguments = {
        "val": held_out(),
        "teacher": [seeded(seed=9), seeded(seed=10)],
        "losses": ["ce", GKLTerm(ramp_epochs=2)],
        "optimizer": OptimizerOptions(name="adamw", learning_rate=0.01),
        "schedule": ScheduleOptions(name="cosine", warmup_epochs=1),
        "loop": TrainOptions(ema_decay=0.9, accumulate=2, threads=1),
    }
    train = train_loader(num_workers=workers)
    return fit(folder, train=train, **{**arguments, **options})


def killed(monkeypatch, folder, step, **options):
    """Stop a run with a signal after a step."""

    def kill(number):
        if number == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(api_inputs, "Reporter", lambda: Hook(kill))
        with pytest.raises(Interrupted, match=r"call limbeck\.fit again with resume=True"):
            distil(folder, **options)


@pytest.mark.parametrize("step", [1, 3, 4, 6])
def test_a_run_that_was_killed_ends_as_an_unbroken_one_to_the_bit(monkeypatch, tmp_path, step):
    distil(tmp_path / "whole")
    killed(monkeypatch, tmp_path / "broken", step)
    torch.rand(step)  # whatever the new process drew before
    model = seeded(seed=77)
    distil(tmp_path / "broken", model=model, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.slow
def test_a_run_with_workers_resumes_to_the_bit(monkeypatch, tmp_path):
    distil(tmp_path / "whole", workers=2)
    killed(monkeypatch, tmp_path / "broken", 3, workers=2)
    distil(tmp_path / "broken", workers=2, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_finished_run_is_not_trained_again_but_loaded(tmp_path):
    model, other = seeded(), seeded(seed=5)
    first = fit(tmp_path / "run", model, val=held_out())
    again = fit(tmp_path / "run", other, val=held_out(), resume=True)
    assert first.results == again.results
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_finished_run_answers_for_its_own_data_teacher_and_network_only(tmp_path):
    def again(**options):
        arguments = {"val": held_out(), "teacher": seeded(seed=9), "losses": "kl", "resume": True}
        return fit(tmp_path / "run", **{**arguments, **options})

    again()
    with pytest.raises(UserError, match="finished runs of other data"):
        again(val=DataLoader(Noisy(0.0), batch_size=20, shuffle=True))
    with pytest.raises(UserError, match="finished runs of another teacher"):
        again(teacher=seeded(seed=8))
    with pytest.raises(UserError, match="expected weights of `model`, got another network's"):
        again(model=Net(width=7))
    with pytest.raises(UserError, match=r"`optimizer.learning_rate` was 0.05 when the run began, got 0.1"):
        again(learning_rate=0.1)
    with pytest.raises(UserError, match="holds a finished run; pass resume=True"):
        again(resume=False)


def test_an_unfinished_run_goes_on_with_its_own_network_only(monkeypatch, tmp_path):
    killed(monkeypatch, tmp_path / "run", 3)
    with pytest.raises(UserError, match="was written with other network than now"):
        distil(tmp_path / "run", model=Net(width=7), resume=True)
    with pytest.raises(UserError, match="holds an unfinished run; pass resume=True"):
        distil(tmp_path / "run")


class Images(nn.Module):
    def forward(self, x):
        return x.view(len(x), 2, 4)


def shared():
    teacher = seeded()
    return {"model": nn.Sequential(teacher), "teacher": teacher, "losses": "kl"}


MISTAKES = {
    "not (N, C)": (
        lambda: {"model": nn.Sequential(nn.Linear(8, 8), Images())},
        r"`model` expected to return logits of shape \(N, C\) for a batch of N = 16, got \(16, 2, 4\)",
    ),
    "wrong inputs": (lambda: {"model": nn.Linear(9, 4)}, r"`model` cannot read inputs of torch.float32 \(16, 8\): "),
    "too few outputs": (lambda: {"model": Net(classes=3)}, "expected labels from 0 to 2, as the network has 3 outputs"),
    "teacher's outputs": (
        lambda: {"teacher": Net(classes=5), "losses": "kl"},
        "`teacher` expected 4 outputs, as the student has, got 5",
    ),
    "meta": (lambda: {"model": nn.Linear(8, 4, device="meta")}, "`model` expected weights, got a module on the meta"),
    "no parameters": (lambda: {"model": nn.Identity()}, "`model` expected parameters that train, got none"),
    "no module": (lambda: {"model": lambda x: x}, "`model` expected a torch.nn.Module, got function"),
    "teacher a function": (
        lambda: {"teacher": lambda x: x},
        "`teacher` expected a torch.nn.Module, or several, got function",
    ),
    "teacher no module": (lambda: {"teacher": [3]}, "`teacher` expected a torch.nn.Module, or several, got int"),
    "shared": (shared, "`model` expected parameters of its own, got some of the teacher's"),
    "unused teacher": (lambda: {"teacher": Net()}, "`teacher` was given, but no loss to learn from it with"),
    "no teacher": (lambda: {"losses": "gkl"}, "the loss `gkl` expected a network to learn from in `teacher`, got none"),
    "unknown loss": (lambda: {"losses": "glk"}, "unknown loss `glk`; did you mean `gkl`"),
    "loss module": (lambda: {"losses": nn.CrossEntropyLoss()}, "expected the name of a loss, .* got CrossEntropyLoss"),
    "epochs": (lambda: {"epochs": 0}, "`train.epochs` expected at least 1, got 0"),
    "optimizer": (lambda: {"optimizer": "adam"}, "`optimizer.name` expected 'sgd', 'adamw' or 'lamb', got adam"),
    "options as a dict": (
        lambda: {"optimizer": {"name": "sgd"}},
        r"`optimizer` expected a name or limbeck.config.OptimizerOptions\(...\), got dict",
    ),
    "objective as a dict": (
        lambda: {"objective": {"epsilon": 0.1}, "losses": "gkl"},
        r"`objective` expected limbeck.config.AdversaryOptions\(...\) or None, got dict",
    ),
    "device": (lambda: {"device": "nowhere"}, "expected a device that torch can use here, got 'nowhere'"),
    "loader's option": (
        lambda: {"loop": TrainOptions(batch_size=3)},
        "`loop.batch_size`: the training loader decides on it",
    ),
    "own option": (lambda: {"loop": TrainOptions(epochs=3)}, "`loop.epochs`: it is an argument of its own"),
    "dict": (lambda: {"train": [{"x": torch.zeros(2, 8)}]}, "got a dict with keys 'x'; pass `unpack`"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_fit_is_one_clear_line_and_leaves_no_folder(tmp_path, mistake):
    build, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        fit(tmp_path / "run", **build())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_is_not_installed_is_named_with_the_way_out():
    code = "import sys; sys.modules['pydantic'] = None; import limbeck; limbeck.fit"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "UserError: limbeck.fit needs `pydantic`: pip install"
    assert message in run.stderr.splitlines()[-1]


# --- compare ----------------------------------------------------------------------------------------------


def first_weights(monkeypatch):
    """Record the weights that each run starts from, by title."""
    seen = {}

    class Watching(Hook):
        def __init__(self):
            super().__init__(lambda step: None)

        def begin_run(self, title, *, steps, done):
            seen[title] = [value.clone() for value in built[-1].state_dict().values()]

    built = []

    def build():
        built.append(Net())
        return built[-1]

    monkeypatch.setattr(api_inputs, "Reporter", Watching)
    return build, seen


def test_every_loss_starts_from_the_same_weights_of_a_seed(monkeypatch, tmp_path):
    build, seen = first_weights(monkeypatch)
    comparison = compare(tmp_path / "all", build)
    assert [row.name for row in comparison.rows] == ["ce", "kl", "gkl"]
    assert (comparison.split, comparison.baseline, comparison.seeds) == ("validation", "kl", (0, 1))
    assert len(seen) == 6
    for seed in (0, 1):
        ours = [seen[f"{row}, seed {seed}"] for row in ("ce", "kl", "gkl")]
        for other in ours[1:]:
            assert all(torch.equal(a, b) for a, b in zip(ours[0], other, strict=True))
    assert not torch.equal(seen["ce, seed 0"][0], seen["ce, seed 1"][0])
    assert "validation top-1, %" in comparison.table()
    assert (tmp_path / "all" / "report.html").is_file()


def test_a_run_of_a_comparison_is_what_fit_makes_of_its_student(tmp_path):
    compare(tmp_path / "all", losses={"soft": KLTerm(temperature=2.0)}, seeds=1, baseline="soft")
    fit(
        tmp_path / "one",
        seeded(),
        val=held_out(),
        teacher=seeded(seed=9),
        losses=KLTerm(temperature=2.0),
        save=SaveOptions(tensorboard=False),
    )
    ours, theirs = ((tmp_path / run / "weights.safetensors").read_bytes() for run in ("all/soft/setting0/seed0", "one"))
    assert ours == theirs


def test_the_same_call_goes_on_where_a_comparison_was_stopped(monkeypatch, tmp_path):
    compare(tmp_path / "whole")
    count = []

    def kill(step):
        count.append(step)
        if len(count) == 3 * STEPS + 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(api_inputs, "Reporter", lambda: Hook(kill))
        with pytest.raises(Interrupted, match=r"the same call of limbeck.compare continues"):
            compare(tmp_path / "broken")
        done = len(count)
        count.clear()
        patch.setattr(api_inputs, "Reporter", lambda: Hook(count.append))
        compare(tmp_path / "broken")
    assert (done, len(count)) == (3 * STEPS + 3, 3 * STEPS - 3)
    for seed in (0, 1):
        for row in ("ce", "kl", "gkl"):
            run = f"{row}/setting0/seed{seed}"
            assert_same_run(tmp_path / "whole" / run, tmp_path / "broken" / run)


def test_a_student_may_ask_for_its_seed(tmp_path):
    asked = []

    def build(width=6, *, seed):
        asked.append(seed)
        return Net(width)

    compare(tmp_path / "all", build, losses=["ce"])
    assert set(asked) == {0, 1}


def test_a_comparison_without_a_teacher_compares_losses_of_labels(tmp_path):
    from limbeck.config import CrossEntropyTerm

    losses = {"plain": "ce", "smooth": CrossEntropyTerm(label_smoothing=0.1)}
    comparison = limbeck.compare(
        lambda: Net(),
        None,
        train_loader(),
        test=held_out(),
        losses=losses,
        seeds=1,
        epochs=1,
        folder=tmp_path,
        progress=False,
    )
    assert (comparison.baseline, comparison.split, comparison.teachers) == ("plain", "test", ())


NET = Net()
COMPARE_MISTAKES = {
    "module": ({"student": NET}, "`student` expected a function, got a module .Net.; pass a function that builds"),
    "same module": ({"student": lambda: NET}, "`student` expected to return a new network each time, got the same"),
    "other argument": (
        {"student": lambda width: Net(width)},
        "expected a function of nothing or of `seed`, got one of",
    ),
    "no module": ({"student": lambda: 3}, "`student` expected to return a torch.nn.Module, got int"),
    "nothing held out": ({"val": None}, "`compare` expected images to compare on in `val` or `test`, got neither"),
    "seeds": ({"seeds": 0}, "`seeds` expected at least 1, got 0"),
    "one string": ({"losses": "kl"}, "`losses` expected a list or a mapping name -> loss, got 'kl'"),
    "baseline": ({"baseline": "klx"}, "`baseline` expected a row of `losses`, got `klx`; did you mean `kl`"),
    "row name": ({"losses": {"a/b": "ce"}}, "expected letters, digits, `-` and `_`"),
}


def test_a_comparison_goes_into_no_folder_of_a_run(tmp_path):
    fit(tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"got that of a run; choose another `folder`$"):
        compare(tmp_path / "run", losses=["kl"], seeds=1)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("call", [fit, compare])
def test_messages_of_the_engine_speak_of_arguments(tmp_path, call):
    place = tmp_path / "all"
    run = place if call is fit else place / "ce" / "setting0" / "seed0"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("")
    with pytest.raises(UserError, match=r"got one with other files; choose another `folder`$"):
        call(place)


def test_messages_that_name_a_command_name_the_call(tmp_path):
    fit(tmp_path / "run")
    (tmp_path / "run" / run_folder.RESULTS).write_text("{")
    with pytest.raises(UserError, match=r"; delete it and call limbeck\.fit again with resume=True$"):
        fit(tmp_path / "run", resume=True)


@pytest.mark.parametrize("mistake", COMPARE_MISTAKES)
def test_a_mistake_in_compare_is_one_clear_line(tmp_path, mistake):
    arguments, message = COMPARE_MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        compare(tmp_path / "all", **arguments)
    assert "\n" not in str(caught.value)


def test_a_student_that_forgets_its_seed_is_a_mistake(tmp_path):
    own = torch.Generator().manual_seed(0)

    def build():
        model = Net()
        nn.init.normal_(model.head.weight, generator=own)
        return model

    with pytest.raises(UserError, match="expected the same first weights whenever it is called for seed 0, got others"):
        compare(tmp_path / "all", build)


def test_a_comparison_is_of_one_teacher_and_one_set_of_data(tmp_path):
    compare(tmp_path / "all", losses=["kl"], seeds=1)
    with pytest.raises(UserError, match="finished runs of another teacher"):
        compare(tmp_path / "all", losses=["kl"], seeds=1, teacher=seeded(seed=8))
