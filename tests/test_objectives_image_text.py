"""A step in parts is the step of one batch; the terms are the losses that they stand for."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from limbeck import contrastive_cross_entropy, contrastive_divergence
from limbeck.config import CrossEntropyTerm, GKLTerm, JSTerm, KLTerm, Recipe
from limbeck.config_image_text import ImageTextOptions
from limbeck.data import Batch
from limbeck.models.image_text import SmallImageText
from limbeck.objectives import Facts, ImageText

GKL = GKLTerm(prior="sample", normalizer="row", temperature=2.0, weight_power=0.5, prior_temperature=2.0)
TERMS = [CrossEntropyTerm(weight=0.5), KLTerm(temperature=2.0, scale_by_t2=True), JSTerm(), GKL]


def network(seed, width=4, dropout=0.0):
    torch.manual_seed(seed)
    return SmallImageText((3, 8, 8), width, 1, dropout, (5.0, -1.0)).double()


def batch(count=10):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, 50, (count, 6), generator=generator)
    return Batch(images, tokens, torch.arange(count), 0)


def objective(terms=TERMS, form="softmax", tile=None, teachers=2, dropout=0.0):
    networks = [network(10 + number, width=6) for number in range(teachers)]
    options = ImageTextOptions(form=form, tile=tile)
    return ImageText(network(0, dropout=dropout), networks, terms, options, epochs=2, facts=Facts(num_classes=3))


def cut(whole, sizes):
    pieces = [torch.split(tensor, sizes) for tensor in (whole.images, whole.labels, whole.indices)]
    return [Batch(*piece, 0) for piece in zip(*pieces, strict=True)]


def step(made, parts):
    """Loss, parts and gradients as the loop adds them up."""
    made.zero_grad()
    samples = sum(len(part.labels) for part in parts)
    loss, values = 0.0, dict.fromkeys(made.terms, 0.0)
    for part in made.prepare_step(parts):
        outcome = made(part)
        share = len(part.labels) / samples
        (share * outcome.loss).backward()
        loss += share * outcome.loss.detach()
        for name, value in outcome.parts.items():
            values[name] += share * value.detach()
    gradients = {name: value.grad for name, value in made.student.named_parameters()}
    return loss, values, gradients


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_step_in_unequal_parts_is_that_of_one_batch(form, tile):
    whole = batch()
    expected = step(objective(form=form, tile=tile), [whole])
    found = step(objective(form=form, tile=tile), cut(whole, [4, 5, 1]))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    for name, value in expected[1].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-12, atol=1e-12)
    for name, gradient in expected[2].items():
        torch.testing.assert_close(found[2][name], gradient, rtol=1e-10, atol=1e-12, msg=name)


def test_dropout_draws_the_same_in_both_passes_and_goes_on_behind_them():
    whole, made = batch(), objective(dropout=0.5)
    torch.manual_seed(3)
    parts = made.prepare_step(cut(whole, [5, 5]))
    after = torch.get_rng_state()
    seen = []
    for part in parts:
        taken = []
        handle = made.student.image_projection.register_forward_hook(lambda *call, into=taken: into.append(call[-1]))
        made(part)
        handle.remove()
        seen.append(taken[0])
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(3)
    again = []
    for part in cut(whole, [5, 5]):
        handle = made.student.image_projection.register_forward_hook(lambda *call: again.append(call[-1]))
        made.student(part.images, part.labels)
        handle.remove()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(seen, again, strict=True))


def test_a_batch_norm_takes_in_each_part_once():
    whole, made, plain = batch(), objective(), objective()
    for each in (made, plain):
        each.student.image_projection = torch.nn.Sequential(
            torch.nn.BatchNorm1d(each.student.image_projection[-1].in_features, dtype=torch.float64),
            each.student.image_projection,
        )
    parts = cut(whole, [6, 4])
    for part in parts:
        plain.student(part.images, part.labels)
    step(made, parts)
    ours, theirs = made.student.image_projection[0], plain.student.image_projection[0]
    assert int(ours.num_batches_tracked) == len(parts)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)


def test_the_terms_are_the_functions_that_they_stand_for():
    whole, made = batch(), objective()
    outcome = made(whole)
    ours = made.student(whole.images, whole.labels)
    theirs = [teacher(whole.images, whole.labels) for teacher in made.teachers]

    def mean(**options):
        values = [
            contrastive_divergence(
                *ours[:2],
                *target[:2],
                logit_scale=ours.scale,
                target_logit_scale=target.scale,
                logit_bias=ours.bias,
                target_logit_bias=target.bias,
                **options,
            )
            for target in theirs
        ]
        return sum(values) / len(values)

    expected = {
        "cross_entropy": contrastive_cross_entropy(*ours[:2], logit_scale=ours.scale, logit_bias=ours.bias),
        "kl": mean(temperature=2.0, scale_by_t2=True),
        "js": mean(divergence="js"),
        "gkl": mean(divergence="gkl", temperature=2.0, weight_power=0.25),
    }
    for name, value in expected.items():
        torch.testing.assert_close(outcome.parts[name], value, rtol=1e-12, atol=1e-12)
    total = 0.5 * expected["cross_entropy"] + expected["kl"] + expected["js"] + expected["gkl"]
    torch.testing.assert_close(outcome.loss, total, rtol=1e-12, atol=1e-12)


def test_the_score_is_the_share_of_images_nearest_to_their_own_text():
    whole, made = batch(), objective([CrossEntropyTerm()], teachers=0)
    outcome = made(whole)
    ours = made.student(whole.images, whole.labels)
    right = (ours.images @ ours.texts.T).argmax(1) == torch.arange(10)
    assert float(made.score(whole, outcome)) == pytest.approx(float(right.float().mean()))


def test_teachers_neither_train_nor_belong_to_the_parameters():
    made = objective()
    made.train()
    made(batch()).loss.backward()
    assert not any(teacher.training for teacher in made.teachers)
    assert all(parameter.grad is None for teacher in made.teachers for parameter in teacher.parameters())
    assert sum(1 for _ in made.parameters()) == sum(1 for _ in made.student.parameters())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"name": "gkl"}, "expected `prior: sample` and `normalizer: row`, got class and weights"),
        ({"name": "gkl", "prior": "sample", "normalizer": "row", "ramp_epochs": 2}, "expected 0 for `ramp_epochs`"),
        ({"name": "js", "beta": 0.3}, "`js` of task `image_text` expected `beta` 0.5, got 0.3"),
        ({"name": "kl", "standardize": True}, "expected `standardize: false`, got true"),
        ({"name": "cross_entropy", "label_smoothing": 0.1}, "SigLIP's is `image_text.form: sigmoid`"),
        ({"name": "dkd"}, "task `image_text` expected losses among cross_entropy, kl, js, gkl, got `dkd`"),
    ],
)
def test_what_has_no_meaning_between_similarities_is_refused(term, message):
    content = {"task": "image_text", "data": {"name": "emoji"}, "model": {"name": "image_text"}}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({**content, "teachers": [{"run": "there"}], "losses": [term]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "timm:vit_tiny_patch16_224"}}, "expected a network hf:NAME or open_clip:NAME, got `timm:"),
        ({"model": {"name": "resnet8"}}, "task `image_text` expected a network among image_text"),
        ({"model": {"name": "hf:clip"}}, "`data.captions.tokenizer` expected that of `hf:clip`, .* got words"),
        ({"task": "supervised", "model": {"name": "open_clip:ViT-B-16"}, "data": {}}, "belongs to task `image_text`"),
        ({"data": {"name": "digits"}}, "task `image_text` expected data among emoji, captioned_shards, got `digits`"),
    ],
)
def test_networks_and_data_of_other_tasks_are_refused(changes, message):
    content = {"task": "image_text", "data": {"name": "emoji"}, "model": {"name": "image_text"}}
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate({**content, **changes})
