"""What a task takes, what it is judged by, and how rows of a comparison differ in the options of a task."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import DataOptions, Recipe
from limbeck.config_losses import TERMS
from limbeck.config_tasks import CLASSIFIED, TASK_DATA, TASK_ONLY, TASK_TERMS, TAUGHT
from limbeck.data import Batch
from limbeck.engine.micro_batches import micro_batches
from limbeck.engine.teachers import refuse_seen_test_images
from limbeck.errors import UserError
from limbeck.headlines import HEADLINES, main_measure
from limbeck.measures import JUDGES
from limbeck.models import TASK_MODELS
from limbeck.network_names import TASK_NETWORKS

TASKS = tuple(HEADLINES)


def test_every_task_that_does_not_classify_has_a_judge_of_its_headline():
    assert set(TASKS) - set(CLASSIFIED) >= set(JUDGES)


def test_the_tables_of_tasks_name_losses_networks_and_tasks_that_there_are():
    assert set(TASK_TERMS) <= set(TASKS)
    assert {name for names in TASK_TERMS.values() for name in names} <= set(TERMS)
    assert set(TASK_ONLY) <= set(TERMS)
    assert {name for names in TASK_NETWORKS.values() for name in names} == set(TASK_MODELS)
    for tasks in (*TASK_ONLY.values(), *TASK_DATA.values(), TAUGHT, tuple(TASK_NETWORKS)):
        assert set(tasks) <= set(TASKS)


def test_a_main_measure_is_of_one_task_or_of_tasks_that_share_it():
    mains = {headline.main for headline in HEADLINES.values()}
    assert len({measure.key for measure in mains}) == len(mains)
    for headline in HEADLINES.values():
        metrics = {measure.key: 0.5 for measure in (headline.main, *headline.beside)}
        assert main_measure(metrics) == headline.main


@pytest.mark.parametrize(
    ("task", "given", "match"),
    [
        ("consistency", {"losses": [{"name": "rkd"}]}, "task `consistency` expected losses among .*, got `rkd`"),
        ("segment", {}, "task `segment` expected data among .*, got `digits`"),
        ("consistency", {"teachers": [{"run": "runs/a"}]}, "task `consistency` has no teachers"),
    ],
)
def test_what_is_another_tasks_is_refused_in_one_line(task, given, match):
    with pytest.raises(ValueError, match=match):
        Recipe.model_validate({"task": task, **given})


def test_a_row_may_have_options_of_its_task_and_of_no_other_group():
    rows = {"a": {"settings": [[{"name": "cross_entropy"}]], "options": {"train": {"epochs": 3}}}}
    with pytest.raises(ValueError, match=r"`compare\.contenders\.a\.options` expected a group among semi_supervised"):
        Recipe.model_validate({"compare": {"contenders": rows, "baseline": "a"}})


@pytest.mark.parametrize("name", ["scenes", "scene_boxes", "digits"])
def test_a_teacher_that_has_seen_what_the_students_test_scenes_are_made_of_is_refused(name):
    student = DataOptions(name=name)
    refuse_seen_test_images(student, student, "teacher")
    with pytest.raises(UserError, match=r"expected `data\.split_seed` 0, as the student's, got 1"):
        refuse_seen_test_images(DataOptions(name=name, split_seed=1), student, "teacher")


def test_views_of_another_number_are_cut_into_as_many_parts_as_images():
    images, labels = torch.arange(10.0).view(10, 1), torch.arange(10)
    batch = Batch(images, labels, labels, 0, (images + 100, torch.arange(25)))
    parts = micro_batches(batch, accumulate=4, batch_size=12, world=1)
    assert [len(part.images) for part in parts] == [3, 3, 3, 1]
    assert all(torch.equal(part.views[0], part.images + 100) for part in parts)
    assert torch.equal(torch.cat([part.views[1] for part in parts]), torch.arange(25))
    assert max(len(part.views[1]) for part in parts) - min(len(part.views[1]) for part in parts) <= 1
