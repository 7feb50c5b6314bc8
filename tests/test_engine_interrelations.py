"""Interrelations of a teacher's classes: streamed equals all at once, whatever the batches; files; the command."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from engine_runs import recipe
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import limbeck.engine.class_features as class_features
from limbeck.cli import main
from limbeck.config import DataOptions
from limbeck.data import build_data, normalise
from limbeck.data.user import UserTraining, first_two
from limbeck.engine import build_interrelations
from limbeck.engine.fit import fit
from limbeck.engine.interrelations import compute_interrelations
from limbeck.engine.run_folder import read_results
from limbeck.errors import UserError
from limbeck.functional import interrelations as similarities
from limbeck.interrelation_files import KINDS, PAIRED, InterrelationRequest, read_interrelations
from limbeck.models.mlp import mlp

EXACT = {"rtol": 0, "atol": 1e-6}  # of float32
NEEDS_DATA = [kind for kind in KINDS if kind not in ("classifier", "uniform")]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return mlp((1, 8, 8), 10, width=12, depth=1).train()


@pytest.fixture(scope="module")
def train():
    return build_data(DataOptions(name="digits")).train


def loader_of(train, batch_size, **options):
    tensors = TensorDataset(normalise(train.images, train.pixels), train.labels)
    return UserTraining(DataLoader(tensors, batch_size=batch_size, **options), first_two, 10)


@torch.no_grad()
def by_class(model, train, per_class=None, which="penultimate"):
    """Features of each class, all at once; of `per_class` samples, those with the smallest draws, in their order."""
    from limbeck.draws import uniform

    images = normalise(train.images, train.pixels)
    features = model.eval().forward_features(images) if which == "penultimate" else model.eval()(images)
    draws = uniform(0, 0, torch.arange(len(train)), "interrelations")
    groups = []
    for c in range(10):
        places = (train.labels == c).nonzero().squeeze(1)
        groups.append(features[places[draws[places].argsort()]][:per_class])
    return groups


def expected(kind, model, train, which="penultimate"):
    smallest = int(train.labels.bincount().min())
    groups = by_class(model, train, smallest if kind in PAIRED else None, which)
    if kind in PAIRED:
        function = {"cka": "linear_cka", "rbf": "rbf_cka", "polynomial": "polynomial_cka"}[kind]
        return getattr(similarities, function)(torch.stack(groups))
    if kind == "centroid":
        return similarities.centroid_cosine(torch.stack([group.double().mean(0) for group in groups]))
    return similarities.covariance_alignment(torch.stack([torch.cov(group.double().mT) for group in groups]))


# --- streamed equals all at once ---


@pytest.mark.parametrize("which", ["penultimate", "logits"])
@pytest.mark.parametrize("kind", NEEDS_DATA)
def test_streamed_is_all_at_once(kind, which, model, train):
    result = compute_interrelations(model, train, kind=kind, num_classes=10, features=which)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected(kind, model, train, which), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", NEEDS_DATA)
def test_batches_change_nothing(kind, model, train, monkeypatch):
    whole = compute_interrelations(model, train, kind=kind, num_classes=10)
    monkeypatch.setattr(class_features, "EVALUATION_BATCH", 7)
    torch.testing.assert_close(compute_interrelations(model, train, kind=kind, num_classes=10), whole, **EXACT)


@pytest.mark.parametrize("kind", NEEDS_DATA)
@pytest.mark.parametrize("batch_size", [5, 300])
def test_a_loader_of_ones_own_gives_what_the_images_in_memory_give(kind, batch_size, model, train):
    in_memory = compute_interrelations(model, train, kind=kind, num_classes=10)
    loaded = compute_interrelations(model, loader_of(train, batch_size), kind=kind, num_classes=10)
    torch.testing.assert_close(loaded, in_memory, **EXACT)


@pytest.mark.parametrize("kind", ["centroid", "covariance"])
def test_a_shuffling_loader_gives_the_same_sums(kind, model, train):
    in_memory = compute_interrelations(model, train, kind=kind, num_classes=10)
    loaded = compute_interrelations(model, loader_of(train, 64, shuffle=True), kind=kind, num_classes=10)
    torch.testing.assert_close(loaded, in_memory, **EXACT)


def test_fewer_samples_are_the_first_of_the_draw_and_another_seed_draws_others(model, train):
    result = compute_interrelations(model, train, kind="cka", num_classes=10, per_class=20)
    torch.testing.assert_close(
        result.double(), similarities.linear_cka(torch.stack(by_class(model, train, 20))), **EXACT
    )
    for source in (train, loader_of(train, 64)):
        other = compute_interrelations(model, source, kind="cka", num_classes=10, per_class=20, seed=1)
        assert (other - result).abs().max() > 0.05


@pytest.mark.parametrize("in_memory", [True, False])
def test_no_more_samples_are_kept_than_the_default_allows(in_memory, model, train, monkeypatch):
    monkeypatch.setattr(class_features, "MOST", 30)
    source = train if in_memory else loader_of(train, 64)
    result = compute_interrelations(model, source, kind="cka", num_classes=10)
    expected = similarities.linear_cka(torch.stack(by_class(model, train, 30)))
    torch.testing.assert_close(result.double(), expected, **EXACT)
    assert compute_interrelations(model, source, kind="cka", num_classes=10, per_class=40)[0, 1] != result[0, 1]


def test_classifier_and_uniform_need_no_data(model):
    result = compute_interrelations(model, None, kind="classifier", num_classes=10)
    torch.testing.assert_close(result, similarities.classifier_cosine(model.head.weight).float(), **EXACT)
    assert not result.requires_grad
    assert torch.equal(compute_interrelations(model, None, kind="uniform", num_classes=10), torch.eye(10))


def test_the_options_reach_their_kinds(model, train):
    for kind, option in (
        ("rbf", {"bandwidth": 0.2}),
        ("polynomial", {"power": 4}),
        ("centroid", {"center": False}),
        ("centroid", {"negative": "clip"}),
        ("classifier", {"negative": "clip"}),
        ("covariance", {"features": "logits"}),
    ):
        plain = compute_interrelations(model, train, kind=kind, num_classes=10)
        assert not torch.equal(compute_interrelations(model, train, kind=kind, num_classes=10, **option), plain)
        assert option.keys() <= InterrelationRequest(kind).options().keys()


# --- any network ---


class Net(nn.Module):
    """A user's network, whose classifier has a name of its own; dropout would show in training mode."""

    def __init__(self, size=12, classes=10, extra=None):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, size), nn.ReLU(), nn.Dropout(0.5))
        self.last = nn.Linear(size, classes)
        if extra:
            self.add_module(extra, nn.Linear(size, classes))

    def forward(self, images):
        return self.last(self.body(images))


def test_a_network_is_left_as_it_was(train):
    net = Net()
    net.body[3].eval()
    compute_interrelations(net, train, kind="centroid", num_classes=10)
    assert net.training
    assert not net.body[3].training
    assert not net.last._forward_pre_hooks


def test_the_last_layer_with_the_outputs_is_the_classifier_whatever_its_name(train):
    net = Net()
    result = compute_interrelations(net, train, kind="centroid", num_classes=10)
    with torch.no_grad():
        features = net.eval().body(normalise(train.images, train.pixels)).double()
    means = torch.stack([features[train.labels == c].mean(0) for c in range(10)])
    torch.testing.assert_close(result.double(), similarities.centroid_cosine(means), **EXACT)


class Broken(Net):
    """Returns what it is told to."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(self, images)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (
            Net(classes=7),
            "expected a network that ends with a linear layer of 10 outputs, got Net without one; the fea",
        ),
        (Net(extra="unused"), "once in a batch of 256, got nothing; take the features `logits`"),
        (
            Broken(lambda net, x: net.last(net.body(x)).unsqueeze(1)),
            "a network that returns logits (256, 10), got (256, 1",
        ),
        (Broken(lambda net, x: (net.last(net.body(x)),)), "a network that returns logits (256, 10), got tuple"),
        (
            Broken(lambda net, x: net.last(net.body(x)) + net.last(net.body(x))),
            "once in a batch of 256, got (256, 12), (2",
        ),
        (Broken(lambda net, x: net.last(net.body(x).unsqueeze(1))[:, 0]), "once in a batch of 256, got (256, 1, 12)"),
        (Broken(lambda net, x: net.last(net.body(x) * torch.nan)), "expected finite features of all images"),
    ],
)
def test_a_network_without_such_features_is_told(net, words, train):
    with pytest.raises(UserError) as caught:
        compute_interrelations(net, train, kind="centroid", num_classes=10)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


# --- too few samples ---


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("kind", "labels", "options", "words"),
    [
        ("cka", [0] * 40 + [1] * 40 + [2] * 9, {}, "at least 10 training images of each class, got 9 of class 2"),
        ("rbf", [0] * 40 + [1] * 19 + [2] * 40, {"per_class": 20}, "at least 20 training images of each class, got 19"),
        ("cka", [0] * 9, {"per_class": 1}, "`per_class` expected at least 2 samples of each class, got 1"),
        ("centroid", [0] * 9 + [2] * 9, {}, "at least 1 training images of each class, got 0 of class 1"),
        ("covariance", [0] * 9 + [1] * 9 + [2], {}, "at least 2 training images of each class, got 1 of class 2"),
        ("centroid", [0, 1, 2, 3], {}, "labels from 0 to 2"),
    ],
)
def test_too_few_samples_are_told_with_class_and_count(kind, labels, options, words, in_memory, train):
    images, labels = train.images[: len(labels)], torch.tensor(labels)
    part = class_features.Source(images, labels, train.pixels)
    net = Net(classes=3)
    source = part if in_memory else UserTraining(loader_of(part, 16).loader, first_two, 3)
    with pytest.raises(UserError) as caught:
        compute_interrelations(net, source, kind=kind, num_classes=3, **options)
    assert words in str(caught.value)


def test_samples_that_are_all_alike_are_told(train):
    images = train.images.clone()
    images[train.labels == 3] = images[0].clone()
    part = class_features.Source(images, train.labels, train.pixels)
    for kind in ("cka", "rbf", "polynomial", "covariance"):
        with pytest.raises(UserError, match="class 3 expected samples that differ"):
            compute_interrelations(Net(), part, kind=kind, num_classes=10)


def test_what_would_not_fit_is_refused_before_it_is_kept(train, monkeypatch):
    monkeypatch.setattr(class_features, "LIMIT", 8 * 10 * 12 * 12 - 1)
    for kind in ("cka", "covariance"):
        with pytest.raises(UserError, match=rf"kind {kind} would keep .* GiB"):
            compute_interrelations(Net(), train, kind=kind, num_classes=10)
    compute_interrelations(Net(), train, kind="centroid", num_classes=10)


def test_an_unknown_kind_and_missing_data_are_told(train):
    with pytest.raises(UserError, match=r"`kind` expected one of cka, rbf, .*, got 'cca'"):
        compute_interrelations(Net(), train, kind="cca", num_classes=10)
    with pytest.raises(UserError, match="the kind cka expected training images, got none"):
        compute_interrelations(Net(), None, kind="cka", num_classes=10)


# --- the command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    fit(recipe(data={"labels_per_class": 30}), folder)
    return folder


@pytest.fixture
def limbeck_says(capsys, monkeypatch, tmp_path):
    """Run `limbeck interrelations` in an empty folder; return its exit code, what it printed, and its errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def say(*words):
        code = main(["interrelations", *map(str, words)])
        return code, *capsys.readouterr()

    return say


def test_the_file_holds_matrices_and_where_they_come_from(limbeck_says, run, tmp_path):
    code, output, _ = limbeck_says(run, "--kind", "cka", "--per-class", 12, "--seed", 5, "--out", "new/a.safetensors")
    assert code == 0
    file = read_interrelations(tmp_path / "new" / "a.safetensors")
    assert file.kind == "cka"
    assert file.options == {"features": "penultimate", "per_class": 12, "seed": 5}
    assert (file.teacher, file.data, file.split, file.samples) == ("teacher", "digits", "training", (12,) * 10)
    assert file.data_fingerprint == read_results(run)["data_fingerprint"]
    assert len(file.teacher_fingerprint) == 64
    np.testing.assert_allclose(file.cost, -np.expm1(file.interrelations - 1), atol=1e-6)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]
    off = file.interrelations[~np.eye(10, dtype=bool)]
    for value in (off.min(), off.max(), off.mean(), off.std()):
        assert f"{value:.3f}" in output
    nearest = int(np.argsort(-(file.interrelations - 2 * np.eye(10))[3])[0])
    (row,) = (line.split() for line in output.splitlines() if line.split()[:1] == ["3"])
    assert row[1] == str(nearest)
    assert output.count("WARNING: ") == 1
    assert "it tells almost nothing" in output


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_makes_a_cost_that_the_loss_takes(kind, limbeck_says, run, tmp_path):
    code, output, error = limbeck_says(run, "--kind", kind)
    assert (code, "limbeck:" in error) == (0, False)
    cost = torch.from_numpy(read_interrelations(tmp_path / f"{kind}.safetensors").cost)
    from limbeck import WKDLogitLoss

    loss = WKDLogitLoss(cost, temperature=4.0)
    assert loss(torch.zeros(2, 10), torch.ones(2, 10), torch.tensor([0, 1])).isfinite()
    assert ("WARNING" in output) == (kind in PAIRED)


def test_the_numbers_are_those_of_the_function(limbeck_says, run, tmp_path):
    from limbeck.engine.evaluate import open_run

    limbeck_says(run, "--kind", "centroid", "--sharpness", 0, "--no-center", "--features", "logits")
    file = read_interrelations(tmp_path / "centroid.safetensors")
    opened = open_run(run, None)
    ours = compute_interrelations(
        opened.model, opened.data.train, kind="centroid", num_classes=10, center=False, features="logits"
    )
    np.testing.assert_array_equal(file.interrelations, ours.numpy())
    np.testing.assert_allclose(file.cost, 1 - ours.numpy(), atol=1e-7)
    assert file.options == {"features": "logits", "center": False, "negative": "shift"}


def test_a_file_of_weights_a_name_and_a_recipe_are_taken(limbeck_says, run, tmp_path):
    weights = run / "weights.safetensors"
    (tmp_path / "mine.yaml").write_text((run / "config.yaml").read_text())
    limbeck_says(run, "--out", "run.st")
    assert limbeck_says(run, "mine.yaml", "--out", "recipe.st")[0] == 0
    own, other = (read_interrelations(tmp_path / name) for name in ("run.st", "recipe.st"))
    assert other.data == "mine"
    np.testing.assert_array_equal(own.interrelations, other.interrelations)
    assert limbeck_says(run, "mine.yaml", "--set", "data.labels_per_class=12", "--out", "set.st")[0] == 0
    assert read_interrelations(tmp_path / "set.st").samples == (12,) * 10
    code, _, error = limbeck_says(
        weights, "digits", "--model", "mlp", "--set", "model.width=8", "--set", "model.depth=1"
    )
    assert (code, error.count("limbeck:")) == (0, 0)


def test_the_picture_is_drawn_beside_the_file(limbeck_says, run, tmp_path):
    code, output, _ = limbeck_says(run, "--plot", "a.svg")
    assert code == 0
    assert "Picture: a.svg" in output
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["RUN", "--kind", "cca"], "--kind: unknown kind `cca`; did you mean `cka`?"),
        (["RUN", "--power", "3"], "--power belongs to polynomial, got it with --kind centroid; leave it out"),
        (["RUN", "--per-class", "3"], "--per-class belongs to cka, rbf, polynomial, got it with --kind centroid"),
        (["RUN", "--kind", "cka", "--per-class", "1"], "'--per-class'"),
        (["RUN", "--kind", "cka", "--per-class", "31"], "at least 31 training images of each class, got"),
        (["RUN", "--plot", "a.pdf"], "--plot expected a file that ends with .png or .svg, got a.pdf"),
        (["RUN", "--out", "."], ". is a folder; choose another --out"),
        (["RUN", "--out", "taken/a.st"], "taken is a file, not a folder; choose another --out"),
        (["RUN", "--model", "mlp"], "--model mlp names the network of a file of weights; the run"),
        (
            ["RUN", "digit"],
            "DATA expected one of cifar10, cifar100, digits, image_folder, imagenet, imagenet_lt, inaturalist18, "
            "mnist5k, places_lt, or a recipe: unknown recipe `digit`",
        ),
        (["RUN", "mnist5k"], "expected a network for 10 classes of (1, 28, 28) images, as `mnist5k` has"),
        (["nowhere"], "TEACHER expected the folder of a run or a file of weights, got nowhere, which is not there"),
        (["."], "TEACHER expected the folder of a run or a file of weights, got ., which holds no run"),
        (["taken"], "a file of weights expected DATA and --model beside it, got no DATA and no --model"),
        (["taken", "digits"], "got no --model"),
        (["taken", "digits", "--model", "mlq"], "--model: `model.name` expected one of"),
    ],
)
def test_a_mistake_is_one_line(words, expected, limbeck_says, run, tmp_path):
    (tmp_path / "taken").write_text("")
    code, output, error = limbeck_says(*(run if word == "RUN" else word for word in words))
    assert code == 2
    assert output == ""
    (line,) = (line for line in error.splitlines() if line.startswith("limbeck: "))
    assert expected in line
    assert not [path for path in tmp_path.iterdir() if path.name != "taken"]


def test_a_run_is_looked_at_with_the_pixels_it_knows(limbeck_says, run, tmp_path):
    code, _, error = limbeck_says(run, "--set", "data.standardise=false")
    assert code == 2
    assert "expected `data.standardise` false, as the student's, got true" in error
    assert not list(tmp_path.iterdir())


def test_the_weights_are_those_that_the_run_reports(limbeck_says, run, tmp_path):
    folder = tmp_path / "best"
    shutil.copytree(run, folder)
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "reported": "best"}))
    limbeck_says(folder, "--kind", "classifier")
    fingerprint = read_interrelations(tmp_path / "classifier.safetensors").teacher_fingerprint
    assert fingerprint == hashlib.sha256((folder / "best.safetensors").read_bytes()).hexdigest()


def test_a_full_disk_asks_for_another_file_and_leaves_none(limbeck_says, run, tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_interrelations, "encode", refuse)
    code, _, error = limbeck_says(run, "--kind", "classifier")
    assert code == 2
    assert "classifier.safetensors: cannot be written (no space left on device); choose another --out" in error
    assert not list(tmp_path.iterdir())


def test_the_metadata_are_json_that_other_tools_read(limbeck_says, run, tmp_path):
    from safetensors import safe_open

    limbeck_says(run)
    with safe_open(tmp_path / "centroid.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["kind"]) == "centroid"
    assert metadata["format"] == "limbeck interrelations 1"


def test_as_many_samples_of_each_class_are_paired_as_fit(model, train, monkeypatch):
    monkeypatch.setattr(class_features, "LIMIT", 12 * 12 * 10 * 23)  # of 12 features, 10 classes: 23 samples
    found = compute_interrelations(model, train, kind="cka", num_classes=10)
    groups = by_class(model, train, 23)
    torch.testing.assert_close(found, similarities.linear_cka(torch.stack(groups)).float(), **EXACT)
