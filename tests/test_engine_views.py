"""What runs of one seed share is what each would have made for itself."""

from __future__ import annotations

import pytest
import torch
from engine_runs import assert_same_run, recipe, student_recipe
from torch import nn

from limbeck.engine import views
from limbeck.engine.fit import fit, open_device, train_run
from limbeck.engine.progress import Reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources
from limbeck.engine.views import KeptStream, RememberingTeacher, ViewStore, open_run_stream

VIEWS = recipe(data={"augment": {"crop_padding": 1, "mixup": 0.5}})


def train_both(options, folder, resources):
    for seed_of_losses in ("first", "second"):
        train_run(
            options,
            folder / seed_of_losses,
            resume=False,
            reporter=Reporter(),
            stop=StopRequest(),
            resources=resources,
        )


@pytest.mark.parametrize("room", [views.KEPT_BYTES, 20_000, 0])  # for all batches, some, none
def test_a_run_with_the_views_of_another_is_the_run_alone(room, tmp_path):
    fit(recipe(), tmp_path / "teacher")
    options = student_recipe(tmp_path / "teacher")
    fit(options, tmp_path / "alone")
    train_both(options, tmp_path, Resources(ViewStore(room)))
    assert_same_run(tmp_path / "first", tmp_path / "alone")
    assert_same_run(tmp_path / "second", tmp_path / "alone")


def test_the_second_run_of_a_seed_draws_nothing_and_asks_no_teacher(tmp_path, monkeypatch):
    fit(recipe(), tmp_path / "teacher")
    drawn, asked = [], []
    monkeypatch.setattr(views, "open_stream", counted(views.open_stream, drawn))
    monkeypatch.setattr(RememberingTeacher, "forward", remembered(RememberingTeacher.forward, asked))
    train_both(student_recipe(tmp_path / "teacher"), tmp_path, Resources(ViewStore()))
    assert len(drawn) == 1
    assert asked == [True] * (len(asked) // 2) + [False] * (len(asked) // 2)
    assert asked


def counted(function, calls):
    return lambda *arguments, **options: (calls.append(1), function(*arguments, **options))[1]


def remembered(forward, calls):
    """Note for each batch whether the network itself had to be asked."""

    def noting(self, images):
        calls.append(images not in self._said)
        return forward(self, images)

    return noting


@pytest.mark.parametrize("start", [0, 3])
def test_batches_are_those_of_the_stream_from_any_step_on(start):
    data = Resources().data(VIEWS.data, open_device("cpu"))
    plain, kept = open_run_stream(VIEWS, data), KeptStream(open_run_stream(VIEWS, data), views.KEPT_BYTES)
    for step in (5, start, 0, start):  # an interrupted run may have left a later part behind
        for expected, got in zip(plain.batches(1, step), kept.batches(1, step), strict=True):
            assert expected.step == got.step
            assert torch.equal(expected.images, got.images)
            assert torch.equal(expected.labels, got.labels)


@pytest.mark.parametrize(
    "changes",
    [{"seed": 1}, {"train": {"batch_size": 8}}, {"train": {"threads": 2}}, {"data": {"augment": {"flip": True}}}],
)
def test_runs_that_see_other_views_share_none(changes):
    store = ViewStore()
    data = Resources().data(VIEWS.data, open_device("cpu"))
    assert store.stream(VIEWS, data) is store.stream(VIEWS, data)
    first = store.stream(VIEWS, data)
    assert store.stream(recipe(**changes), data) is not first


def test_a_teacher_forgets_the_images_that_are_gone():
    teacher = RememberingTeacher(nn.Conv2d(1, 1, 2).requires_grad_(False))
    images = torch.ones(2, 1, 2, 2)
    assert teacher(images) is teacher(images)
    del images
    assert len(teacher._said) == 0
