"""Consistency: AugMix views, corrupted tests, and divergences between an image and its views."""

from __future__ import annotations

import itertools
import signal

import numpy as np
import pytest
import torch
from cifar_archives import write_cifar
from engine_runs import Hook, assert_same_run, recipe
from pydantic import ValidationError
from recipe_steps import SHORT, as_texts, assert_two_finite_steps, terms_of
from torch import nn

from limbeck import GKLLoss, KLLoss, MultiJSLoss
from limbeck.analysis.pictures import draw_run
from limbeck.config import AugmentOptions, AugMixOptions, ConsistencyOptions, DataOptions
from limbeck.config_files import load_recipe
from limbeck.data import Pixels, Source, build_data
from limbeck.data.augmix import AugMixed, augmix
from limbeck.data.corrupted import MadeHere, open_corrupted
from limbeck.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from limbeck.data.loader import Batch
from limbeck.data.sources import normalise
from limbeck.data.streams import Order
from limbeck.engine import run_folder
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.engine.views import ViewStore
from limbeck.errors import Interrupted, UserError
from limbeck.objectives import Consistency, Facts

TERMS = [{"name": "cross_entropy"}, {"name": "multi_js", "weight": 4.0}, {"name": "gkl"}]


def options(**changes):
    base = {
        "task": "consistency",
        "data": {"name": "mnist5k", "labels_per_class": 5, "test": 0.05, "validation": 0.01, "augmix": {"views": 2}},
        "losses": TERMS,
        "train": {"epochs": 2},
    }
    data = {**base["data"], **changes.pop("data", {})}
    return recipe(**{**base, **changes, "data": data})


def pictures(samples: int = 12, channels: int = 1, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(samples, channels, 4, 4, generator=generator)
    return (nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 255).to(torch.uint8)


# --- views ---


def test_a_view_depends_on_its_sample_its_number_and_the_epoch_alone():
    images, places = pictures(), torch.arange(12)
    make = {"seed": 1, "epoch": 2, "view": 0, "indices": places}
    views = augmix(images, AugMixOptions(), **make)
    some = torch.tensor([7, 2])
    assert torch.equal(augmix(images[some], AugMixOptions(), **{**make, "indices": some}), views[some])
    for other in ({"seed": 2}, {"epoch": 3}, {"view": 1}):
        assert not torch.equal(augmix(images, AugMixOptions(), **{**make, **other}), views)


def test_a_view_is_a_convex_mixture_of_the_image_and_its_chains():
    images = torch.full((64, 1, 8, 8), 100, dtype=torch.uint8)
    still = AugMixOptions(severity=0.1, width=2, depth=1)  # nothing moves but what solarize and posterize change
    views = augmix(images, still, view=0, seed=0, epoch=1, indices=torch.arange(64))
    assert views.min() >= 0
    assert views.max() <= 255
    inside = views[..., 3:5, 3:5]  # geometry lets black come in at the border only
    assert ((inside - 100).abs() <= 100 - 96 + 1e-3).all()  # four bits keep 96 of 100


def test_more_severity_moves_images_further():
    images, places = pictures(48), torch.arange(48)
    moved = [
        (augmix(images, AugMixOptions(severity=s), view=0, seed=0, epoch=1, indices=places) - images).abs().mean()
        for s in (1.0, 3.0, 10.0)
    ]
    assert moved[0] < moved[1] < moved[2]


def test_the_depth_of_a_chain_is_drawn_from_one_to_three_or_given():
    images, places = pictures(6), torch.arange(6)
    deep = [augmix(images, AugMixOptions(depth=d, width=1), view=0, seed=0, epoch=1, indices=places) for d in (1, 2, 3)]
    drawn = augmix(images, AugMixOptions(width=1), view=0, seed=0, epoch=1, indices=places)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(deep))
    assert drawn.shape == images.shape


def test_views_share_the_crop_of_their_image():
    source = Source(pictures(8), torch.arange(8), Pixels(255, (0.0,), (1.0,)))
    part = AugMixed(source, AugMixOptions(severity=0.1, depth=1, width=1))
    order = Order(AugmentOptions(crop_padding=6), batch_size=8, drop_last=False, seed=3)
    batch = next(iter(part.open(order).batches(1)))
    shifted = batch.images - torch.stack(batch.views)
    assert len(batch.views) == 2
    assert shifted.abs().mean() < 0.1 < (batch.images - normalise(source.take(batch.indices)[0], source.pixels)).std()


def test_a_stream_can_begin_at_any_step_and_ranks_part_a_batch():
    part = AugMixed(Source(pictures(10), torch.arange(10), Pixels(255, (0.5,), (0.5,))), AugMixOptions())
    order = Order(AugmentOptions(), batch_size=4, drop_last=False, seed=0)
    batches = list(part.open(order).batches(2))
    again = list(part.open(order).batches(2, 1))
    assert [batch.step for batch in again] == [1, 2]
    assert all(torch.equal(a, b) for a, b in zip(batches[1].views, again[0].views, strict=True))
    halves = [next(iter(part.open(Order(AugmentOptions(), 4, False, 0, rank=r, world=2)).batches(2))) for r in (0, 1)]
    for view in range(2):
        assert torch.equal(torch.cat([half.views[view] for half in halves]), batches[0].views[view])


# --- the loss ---


def test_terms_are_those_of_the_losses_alone_and_both_sides_are_moved():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    terms = options(losses=[{"name": "cross_entropy"}, {"name": "multi_js"}, {"name": "kl"}]).losses
    generator = torch.Generator().manual_seed(0)
    clean, *views = torch.randn(3, 5, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    batch = Batch(clean, labels, torch.arange(5), 0, tuple(views))
    outcome = Consistency(network, terms, ConsistencyOptions(), epochs=1, facts=Facts(num_classes=3))(batch)
    logits = torch.stack([network(each) for each in (clean, *views)])
    expected = {
        "cross_entropy": nn.functional.cross_entropy(logits[0], labels),
        "multi_js": MultiJSLoss()(logits),
        "kl": (KLLoss()(logits[1], logits[0]) + KLLoss()(logits[2], logits[0])) / 2,
    }
    for name, value in expected.items():
        assert torch.isclose(outcome.parts[name], value, rtol=1e-12), name
    ours, whole = (torch.autograd.grad(each, network[1].weight)[0] for each in (outcome.parts["kl"], expected["kl"]))
    assert torch.allclose(ours, whole)


def test_detached_clean_logits_are_targets_alone():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    terms = options(losses=[{"name": "cross_entropy"}, {"name": "kl"}]).losses
    clean, view = torch.randn(2, 5, 1, 4, 4)
    batch = Batch(clean, torch.zeros(5, dtype=torch.long), torch.arange(5), 0, (view,))
    chosen = ConsistencyOptions(detached="clean")
    kl = Consistency(network, terms, chosen, epochs=1, facts=Facts(num_classes=3))(batch).parts["kl"]
    (ours,) = torch.autograd.grad(kl, network[1].weight)
    (expected,) = torch.autograd.grad(KLLoss()(network(view), network(clean).detach()), network[1].weight)
    assert torch.allclose(ours, expected, atol=1e-7)


@pytest.mark.parametrize(("classified", "rows"), [("clean", [0]), ("views", [1, 2]), ("all", [0, 1, 2])])
def test_what_is_classified_is_an_option(classified, rows):
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    terms = options(losses=[{"name": "cross_entropy"}]).losses
    images = torch.randn(3, 5, 1, 4, 4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    batch = Batch(images[0], labels, torch.arange(5), 0, (images[1], images[2]))
    chosen = ConsistencyOptions(classified=classified)
    outcome = Consistency(network, terms, chosen, epochs=1, facts=Facts(num_classes=3))(batch)
    each = torch.stack([nn.functional.cross_entropy(network(images[row]), labels) for row in rows])
    assert torch.isclose(outcome.loss, each.mean())


def test_views_that_no_term_asks_for_move_no_statistics():
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3))
    images = torch.randn(3, 5, 1, 4, 4)
    batch = Batch(images[0], torch.tensor([0, 1, 2, 0, 1]), torch.arange(5), 0, (images[1], images[2] + 9))
    terms = options(losses=[{"name": "cross_entropy"}]).losses
    plain = Consistency(network, terms, ConsistencyOptions(), epochs=1, facts=Facts(num_classes=3))(batch)
    assert torch.allclose(network[1].running_mean, 0.1 * images[0].flatten(1).mean(0))
    assert torch.equal(plain.loss, nn.functional.cross_entropy(network(images[0]), batch.labels))


def test_the_prior_observes_clean_logits():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    terms = options(losses=[{"name": "cross_entropy"}, {"name": "gkl"}]).losses
    objective = Consistency(network, terms, ConsistencyOptions(), epochs=1, facts=Facts(num_classes=3))
    images, labels = torch.randn(2, 6, 1, 4, 4), torch.tensor([0, 1, 2] * 2)
    batch = Batch(images[0], labels, torch.arange(6), 0, (images[1],))
    objective.after_step(batch, objective(batch))
    objective.refresh()
    twin = GKLLoss(num_classes=3)
    twin.observe(network(images[0]).detach(), labels)
    twin.refresh()
    assert torch.allclose(objective.class_prior(), twin.prior.prior)


# --- corruptions ---


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_takes_more_away_with_each_strength_and_is_the_same_for_an_image_in_any_batch(name):
    images, places = pictures(24, channels=3), torch.arange(24)
    changed = [corrupt(images, name, severity, places) for severity in range(1, SEVERITIES + 1)]
    distances = [(each.float() - images.float()).abs().mean().item() for each in changed]
    assert all(weak < 1.1 * strong for weak, strong in itertools.pairwise(distances))
    assert 0 < distances[0] < distances[-1]
    some = torch.tensor([20, 3])
    assert torch.equal(corrupt(images[some], name, 3, some), changed[2][some])
    assert changed[0].shape == images.shape


def test_gaussian_noise_has_the_deviation_that_is_written_down():
    grey = torch.full((40, 1, 16, 16), 128, dtype=torch.uint8)
    noise = corrupt(grey, "gaussian_noise", 1, torch.arange(40)).float() / 255 - 128 / 255
    assert noise.std().item() == pytest.approx(CORRUPTIONS["gaussian_noise"][1][0], rel=0.03)
    assert abs(noise.mean().item()) < 3e-3


def test_blur_and_contrast_keep_an_even_image():
    grey = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    for name in ("gaussian_blur", "motion_blur", "zoom_blur", "contrast", "pixelate", "elastic"):
        assert (corrupt(grey, name, 5, torch.arange(2)).int() - 77).abs().max() <= 1, name


def test_corrupted_samples_are_those_of_the_function_whatever_the_batches():
    source = Source(pictures(11), torch.arange(11) % 3, Pixels(255, (0.2,), (0.4,)))
    samples = MadeHere(source).samples("elastic", 4)
    together = torch.cat(list(samples.batches(4)))
    assert torch.equal(together, normalise(corrupt(source.images, "elastic", 4, torch.arange(11)), source.pixels))
    shared = [list(samples.batches(4, first, 2)) for first in (0, 1)]
    assert torch.equal(torch.cat([shared[0][0], shared[1][0], shared[0][1]]), together)


def archive(folder, labels=range(6), names=("fog", "jpeg_compression", "speckle_noise"), side: int = 32):
    folder.mkdir()
    images = len(labels)
    generator = np.random.default_rng(0)
    for name in names:
        np.save(folder / f"{name}.npy", generator.integers(0, 256, (5 * images, side, side, 3), dtype=np.uint8))
    np.save(folder / "labels.npy", np.tile(np.array(labels, dtype=np.uint8), 5))
    return folder


def test_arrays_of_an_archive_are_read_strength_by_strength_without_the_validation_kinds(tmp_path):
    folder = archive(tmp_path / "CIFAR-10-C")
    like = Source(pictures(6, channels=3, side=32), torch.arange(6), Pixels(255, (0.5,) * 3, (0.5,) * 3))
    found = open_corrupted(folder, like)
    assert found.names == ("fog", "jpeg_compression")
    array = np.load(folder / "fog.npy")
    samples = found.samples("fog", 2)
    assert np.array_equal(samples.source.images.permute(0, 2, 3, 1).numpy(), array[6:12])
    assert samples.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert samples.image(1).shape == (3, 32, 32)


def test_an_archive_that_is_none_is_said_in_a_line(tmp_path):
    like = Source(pictures(6, channels=3, side=32), torch.arange(6), Pixels(255, (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(UserError, match="unpack CIFAR-10-C or CIFAR-100-C there"):
        open_corrupted(tmp_path / "none", like)
    folder = archive(tmp_path / "other", labels=range(6)[::-1])
    with pytest.raises(UserError, match="the labels of the 6 test images, 5 times over, got others"):
        open_corrupted(folder, like)
    folder = archive(tmp_path / "small", side=16)
    with pytest.raises(UserError, match=r"expected uint8 \(30, 32, 32, 3\), got uint8 \(30, 16, 16, 3\)"):
        open_corrupted(folder, like)
    (folder / "fog.npy").write_text("x")
    with pytest.raises(UserError, match=r"fog\.npy: expected an array of numpy"):
        open_corrupted(folder, like)


# --- a run ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("consistency") / "run"
    return folder, fit(options(data={"corrupted_tests": "generated"}, save={"every_steps": 2}), folder)


def test_a_run_measures_the_corrupted_tests_beside_the_clean_ones(run):
    folder, results = run
    last = results["last"]
    assert set(last["corruptions"]) == set(CORRUPTIONS)
    every = np.array(list(last["corruptions"].values()))
    assert every.shape == (12, 5)
    assert last["test"]["corrupted"] == pytest.approx(every.mean())
    assert evaluate(folder)["test"]["corrupted"] == last["test"]["corrupted"]
    with np.load(folder / run_folder.PREDICTIONS) as arrays:
        assert arrays["view_images"].shape == (6, 3, 1, 28, 28)
        assert arrays["corrupted_images"].shape == (12, 5, 1, 28, 28)


def test_an_interrupted_run_goes_on_to_the_same_bits(run, tmp_path):
    def interrupt(step: int) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    same = options(data={"corrupted_tests": "generated"}, save={"every_steps": 2})
    with pytest.raises(Interrupted):
        fit(same, tmp_path / "run", reporter=Hook(interrupt))
    fit(same, tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", run[0])


def test_micro_batches_make_the_step_of_one_batch(tmp_path):
    same = {
        "losses": [{"name": "cross_entropy"}, {"name": "multi_js"}],
        "model": {"name": "convnet", "width": 8, "norm": "group"},
    }
    whole = fit(options(**same, train={"epochs": 1}), tmp_path / "whole")
    parts = fit(options(**same, train={"epochs": 1, "accumulate": 2}), tmp_path / "parts")
    assert parts["last"]["test"]["nll"] == pytest.approx(whole["last"]["test"]["nll"], rel=1e-4)


# --- mistakes ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"augmix": None}}, "expected options in `data.augmix`"),
        ({"task": "supervised", "losses": [{"name": "cross_entropy"}]}, "`data.augmix` belongs to task `consistency`"),
        ({"task": "supervised", "data": {"augmix": None}, "losses": [{"name": "multi_js"}]}, "`consistency`"),
        ({"losses": [{"name": "dkd"}]}, "task `consistency` expected losses among"),
        ({"data": {"augment": {"cutout": 8}}}, "neither `cutout` nor `repeats`"),
        ({"data": {"name": "imagenet"}}, "expected one of digits"),
    ],
)
def test_what_does_not_go_with_views_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        options(**changes)


def test_images_of_few_levels_have_no_views():
    with pytest.raises(UserError, match=r"`data\.augmix` expected images of 256 levels, got levels of 0 to 16"):
        build_data(DataOptions(augmix=AugMixOptions()))


def test_a_run_draws_views_corruptions_and_what_they_leave(run, tmp_path):
    assert {path.stem for path in draw_run(run[0], tmp_path)} >= {"views", "corrupted_images", "corruptions"}


def test_rows_may_classify_other_views():
    rows = {
        "none": {"settings": [[{"name": "cross_entropy"}]]},
        "views": {"settings": [[{"name": "cross_entropy"}]], "options": {"consistency": {"classified": "all"}}},
    }
    of_row = options(losses=TERMS, compare={"baseline": "none", "contenders": rows}).of_row("views")
    assert of_row.consistency.classified == "all"


# --- the recipe at paper size ---


def test_the_recipe_of_cifar100_takes_two_steps_with_every_loss_and_reads_its_archive(tmp_path):
    name = "consistency/cifar100/wrn_40_2"
    labels = write_cifar(tmp_path, "cifar100", train=100, test=6).test_labels
    archive(tmp_path / "CIFAR-100-C", labels.tolist(), names=("fog", "snow"))
    changes = {**SHORT, "train.epochs": 1, "train.batch_size": 50, "data.folder": tmp_path}
    recipe = load_recipe(name, as_texts({**changes, "optimizer.learning_rate": 1e-3}))
    terms = terms_of(name)
    results = fit(recipe.model_copy(update={"losses": tuple(terms)}), tmp_path / "run")
    assert_two_finite_steps(tmp_path / "run", len(terms))
    assert {term.name for term in terms} == {"cross_entropy", "multi_js", "kl", "gkl"}
    assert list(results["last"]["corruptions"]) == ["fog", "snow"]


def test_rows_of_a_seed_share_their_views():
    store = ViewStore()
    content = options(data={"corrupted_tests": None})
    data = build_data(content.data)
    first, again = (next(iter(store.stream(content, data).batches(1))) for _ in range(2))
    assert all(a is b for a, b in zip(first.views, again.views, strict=True))
    other = content.model_copy(update={"seed": 1})
    assert not torch.equal(next(iter(store.stream(other, data).batches(1))).views[0], first.views[0])
