"""Claims about the modules: options, the class prior, the ramp, presets, the translation of letters."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import twins
from torch import Tensor

import limbeck
from limbeck import (
    ClassPrior,
    DISTLoss,
    DKDLoss,
    DKLLoss,
    GKLLoss,
    IKLLoss,
    JSLoss,
    KLLoss,
    LogitMSELoss,
    MARTLoss,
    NKDLoss,
    ProbabilityMSELoss,
    PseudoLabelLoss,
    ReverseKLLoss,
    StandardizedLoss,
    TTMLoss,
    WKDLogitLoss,
    functional,
    translate,
)
from limbeck.losses import class_prior, gkl, presets

LOSSES = {
    "kl": KLLoss(temperature=2.0, scale_by_t2=True),
    "reverse_kl": ReverseKLLoss(),
    "js": JSLoss(beta=0.3),
    "dkl": DKLLoss(temperature=2.0),
    "dkl_class": DKLLoss(5, prior="class", symmetric=True),
    "ikl": IKLLoss(5, mse_weight=3.0),
    "gkl": GKLLoss(5, weight_power=0.3, temperature=2.0),
    "gkl_sample": GKLLoss(prior="sample", weight_power=0.3, prior_temperature=4.0),
    "mart": MARTLoss(kl_weight=6.0),
    "logit_mse": LogitMSELoss(),
    "pseudo_label": PseudoLabelLoss(),
    "pseudo_label_soft": PseudoLabelLoss(targets="soft", target_temperature=0.5),
    "probability_mse": ProbabilityMSELoss(),
    "wkd_logit": WKDLogitLoss(0.6 * (1 - torch.eye(5)), temperature=2.0, transport_weight=100.0),
    "dist": DISTLoss(inter_weight=0.5, intra_weight=2.0, temperature=3.0),
    "nkd": NKDLoss(target_weight=0.5, temperature=3.0),
    "standardized": StandardizedLoss(GKLLoss(5, weight_power=0.3)),
    "ttm": TTMLoss(power=0.3, weighted=True),
    "dkd": DKDLoss(target_weight=0.5, rest_weight=2.0, temperature=3.0),
}


def batch(samples: int = 9, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, target = (3 * torch.randn(samples, classes, generator=generator) for _ in range(2))
    return student.requires_grad_(), target, torch.randint(classes, (samples,), generator=generator)


def fed_prior(**options: float) -> tuple[ClassPrior, Tensor, Tensor]:
    _, target, labels = batch()
    prior = ClassPrior(5, **options)
    prior.observe(target, labels)
    return prior, target, labels


def class_means(target: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    probabilities = twins.softmax(target.double(), temperature)
    rows = [probabilities[labels == y].mean(0) if (labels == y).any() else torch.full((5,), 0.2) for y in range(5)]
    return torch.stack([row.double() for row in rows])


# --- all losses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_answers_the_same_calls(name: str) -> None:
    loss = copy.deepcopy(LOSSES[name])
    student, target, labels = batch()
    before = copy.deepcopy(loss.state_dict())
    value = loss(student, target, labels)
    value.backward()
    assert value.shape == ()
    assert student.grad.isfinite().all()
    assert all(torch.equal(before[key], loss.state_dict()[key]) for key in before), "forward changed the state"
    loss.observe(target, labels)
    loss.synchronize()
    loss.refresh()
    assert loss(student, target, labels).isfinite()
    assert type(loss).__name__ in repr(loss)


@pytest.mark.parametrize("name", LOSSES)
def test_modules_are_captured_whole(name: str) -> None:
    loss = copy.deepcopy(LOSSES[name])
    student, target, labels = batch()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels), loss(student, target, labels), rtol=1e-5)


def test_modules_are_their_functions() -> None:
    student, target, labels = batch()
    rows = twins.softmax(target, 4.0)
    pairs = [
        (LOSSES["kl"], functional.kl_divergence(student, target, temperature=2.0, scale_by_t2=True)),
        (LOSSES["reverse_kl"], functional.reverse_kl_divergence(student, target)),
        (LOSSES["js"], functional.js_divergence(student, target, beta=0.3)),
        (LOSSES["dkl"], functional.dkl_divergence(student, target, temperature=2.0)),
        (LOSSES["gkl_sample"], functional.gkl_divergence(student, target, rows, weight_power=0.3)),
        (LOSSES["ikl"], functional.ikl_divergence(student, target, torch.full((9, 5), 0.2), mse_weight=3.0)),
        (LOSSES["mart"], functional.mart_loss(student, target, labels, kl_weight=6.0)),
        (LOSSES["logit_mse"], functional.logit_mse(student, target)),
        (LOSSES["pseudo_label"], functional.pseudo_label_cross_entropy(student, target)),
        (LOSSES["probability_mse"], functional.probability_mse(student, target)),
        (
            LOSSES["dkd"],
            functional.dkd_divergence(student, target, labels, target_weight=0.5, rest_weight=2.0, temperature=3.0),
        ),
        (LOSSES["ttm"], functional.ttm_divergence(student, target, power=0.3, weighted=True)),
        (LOSSES["nkd"], functional.nkd_loss(student, target, labels, target_weight=0.5, temperature=3.0)),
        (
            LOSSES["dist"],
            functional.dist_loss(student, target, inter_weight=0.5, intra_weight=2.0, temperature=3.0),
        ),
    ]
    for loss, expected in pairs:
        assert torch.isclose(loss(student, target, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("prior", ["class", "sample"])
def test_gkl_loss_powers_the_rows_that_it_read(power: float, prior: str) -> None:
    student, target, labels = batch()
    loss = GKLLoss(5, prior=prior, weight_power=power, temperature=2.0, prior_temperature=3.0, mse_weight=4.0)
    loss.observe(target, labels)
    loss.refresh()
    rows = class_means(target, labels, 3.0)[labels] if prior == "class" else twins.softmax(target.double(), 3.0)
    expected = twins.gkl(student.double(), target.double(), rows, mse_weight=4.0, weight_power=power, temperature=2.0)
    assert torch.isclose(loss(student, target, labels).double(), expected, rtol=1e-5)


@pytest.mark.parametrize("prior", ["class", "sample"])
@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("normalizer", ["weights", "row"])
@pytest.mark.parametrize(("classes", "power"), [(1000, 10.0), (1000, 20.0), (10, 40.0)])
def test_gkl_loss_stays_finite_at_large_powers(
    classes: int, power: float, normalizer: str, refreshed: bool, prior: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    student, target = torch.randn(4, classes, generator=draw), torch.randn(4, classes, generator=draw)
    labels = torch.tensor([0, 1, 1, 9])
    loss = GKLLoss(classes, prior=prior, weight_power=power, prior_temperature=100.0, normalizer=normalizer)
    if refreshed:
        loss.observe(target, labels)
        loss.refresh()
    rows = twins.softmax(target.double(), 100.0) if loss.prior is None else loss.prior.prior[labels].double()
    expected = twins.gkl(student.double(), target.double(), rows, weight_power=power, normalizer=normalizer)
    assert torch.isclose(loss(student, target, labels).double(), expected, rtol=1e-4)


def test_the_powered_table_follows_the_prior() -> None:
    student, target, labels = batch()
    loss = GKLLoss(5, weight_power=0.3)
    uniform = loss(student, target, labels)
    loss.observe(target, labels)
    assert torch.equal(loss(student, target, labels), uniform), "observing must not change the loss before refresh"
    loss.refresh()
    fed = loss(student, target, labels)
    assert not torch.isclose(fed, uniform)
    state = loss.state_dict()
    other = GKLLoss(5, weight_power=0.3)
    assert torch.equal(other(student, target, labels), uniform)
    other.load_state_dict(state)
    assert torch.equal(other(student, target, labels), fed)
    loss.prior.reset()
    assert torch.equal(loss(student, target, labels), uniform)


def test_the_powered_table_follows_a_module_that_was_converted() -> None:
    """A converted buffer is a new tensor whose version starts again."""
    student, target, labels = batch()
    loss = GKLLoss(5, weight_power=0.3)
    loss.observe(target, labels)
    loss.refresh()
    loss(student, target, labels)
    loss.double().float()
    loss.observe(-target, labels)
    loss.refresh()
    fresh = GKLLoss(5, weight_power=0.3)
    fresh.load_state_dict(loss.state_dict())
    assert torch.equal(loss(student, target, labels), fresh(student, target, labels))


def test_the_powered_table_follows_copies_and_options() -> None:
    """A copied buffer's version starts again, so that a version alone would take the old table for the new one."""
    student, target, labels = batch()
    loss = GKLLoss(5, weight_power=0.3)
    for _ in range(3):
        loss.observe(target, labels)
        loss.refresh()
    loss(student, target, labels)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        for _ in range(4):
            copied.observe(-target, labels)
            copied.refresh()
            fresh = GKLLoss(5, weight_power=0.3)
            fresh.load_state_dict(copied.state_dict())
            assert torch.equal(copied(student, target, labels), fresh(student, target, labels))
    loss.prior.prior.copy_(torch.eye(5))
    expected = functional.gkl_divergence(student, target, torch.eye(5), labels=labels, weight_power=0.3)
    assert torch.isclose(loss(student, target, labels), expected)
    loss.weight_power = 0.9
    expected = functional.gkl_divergence(student, target, torch.eye(5), labels=labels, weight_power=0.9)
    assert torch.isclose(loss(student, target, labels), expected)


def test_a_teacher_under_inference_mode_is_welcome() -> None:
    student, target, labels = batch()
    with torch.inference_mode():
        inferred = target * 1.0
    for loss in (GKLLoss(5, weight_power=0.3), GKLLoss(prior="sample", weight_power=0.3), DKLLoss(), IKLLoss(5)):
        expected, got = (torch.autograd.grad(loss(student, t, labels), student)[0] for t in (target, inferred))
        assert torch.equal(got, expected)
        loss.observe(inferred, labels)
        loss.refresh()


def test_the_teachers_buffer_may_be_used_again_before_backward() -> None:
    student, target, labels = batch()
    loss = GKLLoss(5)
    expected = torch.autograd.grad(loss(student, target, labels), student)[0]
    buffer = target.clone()
    value = loss(student, buffer, labels)
    buffer.zero_()
    assert torch.equal(torch.autograd.grad(value, student)[0], expected)


def test_samples_left_out_may_be_nan_or_unlabelled() -> None:
    student, target, labels = batch()
    mask = torch.arange(9) != 2
    broken, unlabelled = target.clone(), labels.clone()
    broken[2], unlabelled[2] = torch.nan, -100
    for loss in (GKLLoss(5, weight_power=0.3), GKLLoss(prior="sample", weight_power=0.3, normalizer="row")):
        value = loss(student, broken, unlabelled, mask=mask)
        expected = loss(student[mask], target[mask], labels[mask])
        got, wanted = (torch.autograd.grad(x, student)[0] for x in (value, expected))
        assert torch.isclose(value, expected)
        assert torch.allclose(got, wanted, atol=1e-7)


def test_soft_labels_mix_rows_before_the_power() -> None:
    student, target, labels = batch()
    loss = GKLLoss(5, weight_power=0.3)
    loss.observe(target, labels)
    loss.refresh()
    soft = torch.softmax(torch.randn(9, 5), -1)
    expected = twins.gkl(student.double(), target.double(), (soft @ loss.prior.prior).double(), weight_power=0.3)
    assert torch.isclose(loss(student, target, soft).double(), expected, rtol=1e-5)


def test_class_weights_of_dkl_share_its_temperature() -> None:
    student, target, labels = batch()
    loss = DKLLoss(5, prior="class", temperature=3.0)
    loss.observe(target, labels)
    loss.refresh()
    assert torch.allclose(loss.prior.prior.double(), class_means(target, labels, 3.0), atol=1e-7)
    expected = functional.dkl_divergence(student, target, loss.prior.prior[labels], temperature=3.0)
    assert torch.isclose(loss(student, target, labels), expected)


def test_uniform_power_leaves_out_absent_classes() -> None:
    student, target, _ = batch()
    absent = torch.tensor([False, True, False, False, False])
    sides = [x.detach().masked_fill(absent, -torch.inf) for x in (student, target)]
    loss = GKLLoss(prior="sample", weight_power=0.0)
    assert torch.isclose(loss(*sides), loss(*(x[:, ~absent] for x in sides)))


def test_presets_belong_to_gkl() -> None:
    with pytest.raises(TypeError, match=r"expected `GKLLoss.preset`, got `IKLLoss.preset`"):
        IKLLoss.preset("imagenet", 10)


def test_a_ramp_that_nobody_steps_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gkl, "CALLS_BEFORE_WARNING", 2)
    student, target, _ = batch()
    loss = GKLLoss(prior="sample", ramp_epochs=5)
    loss(student, target)
    with pytest.warns(UserWarning, match=r"`ramp_epochs=5`.*loss.refresh\(\)"):
        loss(student, target)


def test_soft_labels_reach_the_class_prior_and_the_rows() -> None:
    student, target, labels = batch()
    soft = torch.nn.functional.one_hot(labels, 5).float()
    hard_loss, soft_loss = GKLLoss(5, weight_power=0.3), GKLLoss(5, weight_power=0.3)
    hard_loss.observe(target, labels)
    soft_loss.observe(target, soft)
    for loss in (hard_loss, soft_loss):
        loss.refresh()
    assert torch.allclose(hard_loss.prior.prior, soft_loss.prior.prior)
    assert torch.isclose(hard_loss(student, target, labels), soft_loss(student, target, soft))


def test_the_ramp_rises_with_each_refresh_and_survives_a_checkpoint() -> None:
    student, target, _ = batch()
    full = GKLLoss(prior="sample")(student, target)
    loss = GKLLoss(prior="sample", ramp_epochs=4)
    shares = []
    for _ in range(6):
        shares.append((loss(student, target) / full).item())
        loss.refresh()
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    again = GKLLoss(prior="sample", ramp_epochs=4)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again(student, target), loss(student, target))


def test_a_mask_and_a_summed_normalizer_reach_the_function() -> None:
    student, target, labels = batch()
    loss = GKLLoss(5, weight_power=0.3)
    mask = labels != labels[0]
    masked = loss(student, target, labels, mask=mask)
    assert torch.isclose(masked, loss(student[mask], target[mask], labels[mask]))
    doubled = loss(
        student, target, labels, normalizer=2 * functional.gkl_normalizer(loss.prior.prior**0.3, labels=labels)
    )
    ce = functional.soft_cross_entropy(student, target)
    assert torch.isclose(doubled - ce, (loss(student, target, labels) - ce) / 2, rtol=1e-4)


# --- the class prior ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_prior_rows_are_class_means_of_the_last_epoch(temperature: float) -> None:
    prior, target, labels = fed_prior(temperature=temperature)
    assert torch.equal(prior.prior, torch.full((5, 5), 0.2)), "uniform until refreshed"
    prior.refresh()
    assert torch.allclose(prior.prior.double(), class_means(target, labels, temperature), atol=1e-7)
    assert torch.allclose(prior.prior.sum(-1), torch.ones(5))
    _, other, other_labels = batch(samples=60, seed=1)
    prior.observe(other, other_labels)
    prior.refresh()
    assert torch.allclose(prior.prior.double(), class_means(other, other_labels, temperature), atol=1e-7)


def test_a_class_never_seen_keeps_its_prior() -> None:
    prior, target, labels = fed_prior()
    prior.refresh()
    kept = prior.prior[labels[0]].clone()
    others = labels != labels[0]
    prior.observe(target[others], labels[others])
    prior.refresh()
    assert torch.equal(prior.prior[labels[0]], kept)
    empty = ClassPrior(5)
    empty.refresh()
    assert torch.equal(empty.prior, torch.full((5, 5), 0.2))


def test_momentum_mixes_old_and_new_rows() -> None:
    slow, target, labels = fed_prior(momentum=0.25)
    slow.refresh()
    seen = torch.isin(torch.arange(5), labels)
    expected = 0.25 * class_means(target, labels) + 0.75 * 0.2
    assert torch.allclose(slow.prior.double()[seen], expected[seen], atol=1e-7)


def test_a_sample_that_is_not_finite_does_not_spoil_its_class() -> None:
    _, target, labels = batch()
    spoilt = torch.cat([target, torch.full((1, 5), torch.nan)])
    clean, other = ClassPrior(5), ClassPrior(5)
    clean.observe(target, labels)
    other.observe(spoilt, torch.cat([labels, labels[:1]]))
    soft = ClassPrior(5)
    soft.observe(spoilt, torch.nn.functional.one_hot(torch.cat([labels, labels[:1]]), 5).float())
    for prior in (clean, other, soft):
        prior.refresh()
        assert torch.allclose(prior.prior, clean.prior)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_small_integers_are_indices_everywhere(dtype: torch.dtype) -> None:
    _, target, labels = batch(samples=5)
    table = torch.rand(5, 5)
    small = labels.to(dtype)
    assert torch.equal(functional.gkl_normalizer(table, labels=small), functional.gkl_normalizer(table, labels=labels))
    arguments = (target, target.flip(0), table)
    assert torch.equal(
        functional.gkl_divergence(*arguments, labels=small), functional.gkl_divergence(*arguments, labels=labels)
    )
    priors = [ClassPrior(5), ClassPrior(5)]
    for prior, given in zip(priors, (small, labels), strict=True):
        prior.observe(target, given)
        prior.refresh()
    assert torch.equal(priors[0].prior, priors[1].prior)


def test_batches_add_up_whatever_their_size_and_dtype() -> None:
    _, target, labels = batch(samples=64)
    whole, parts = ClassPrior(5), ClassPrior(5)
    whole.observe(target, labels)
    for logits, given in zip(target.split(7), labels.split(7), strict=True):
        parts.observe(logits, given)
        parts.synchronize()
    whole.synchronize()
    assert torch.allclose(whole.pending, parts.pending, atol=1e-14)
    assert torch.equal(whole.counts, parts.counts)
    half = ClassPrior(5)
    for _ in range(200):
        half.observe(target.half(), labels)
    half.refresh()
    assert torch.allclose(half.prior.double(), class_means(target.half(), labels), atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_converted_module_keeps_its_sums_in_float64(dtype: torch.dtype) -> None:
    prior = fed_prior()[0]
    before = {name: buffer.clone() for name, buffer in prior.named_buffers()}
    prior.to(dtype)
    for name, buffer in prior.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])


def test_a_checkpoint_in_mid_epoch_is_whole() -> None:
    prior, target, labels = fed_prior()
    prior.synchronize()
    other = ClassPrior(5)
    other.load_state_dict(prior.state_dict())
    for each in (prior, other):
        each.observe(target.flip(0), labels)
        each.refresh()
    assert torch.equal(prior.prior, other.prior)


def test_status_and_reset_tell_what_was_seen() -> None:
    prior, _, labels = fed_prior()
    assert prior.status() == (0, 5, 0)
    prior.refresh()
    assert prior.status() == (len(labels.unique()), 5, 1)
    prior.reset()
    assert prior.status() == (0, 5, 0)
    assert torch.equal(prior.prior, torch.full((5, 5), 0.2))


def _observe_on_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    _, target, labels = batch(samples=20)
    prior = ClassPrior(5)
    share = slice(0, 13) if rank == 0 else slice(13, 20)
    prior.observe(target[share], labels[share])
    for buffer in prior.buffers():  # as DDP does before a forward; what was observed must survive it
        torch.distributed.broadcast(buffer, 0)
    prior.synchronize()
    prior.synchronize()  # what was taken in is not taken in again
    prior.refresh()
    prior.observe(target[share], labels[share])
    prior.reset()
    prior.observe(target[share], labels[share])
    prior.refresh()
    torch.save(prior.state_dict(), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_uneven_ranks_make_the_prior_of_one(tmp_path: object) -> None:
    torch.multiprocessing.spawn(_observe_on_rank, (str(tmp_path),), nprocs=2)
    states = [torch.load(f"{tmp_path}/rank{rank}.pt", weights_only=True) for rank in range(2)]
    single = ClassPrior(5)
    single.observe(*batch(samples=20)[1:])
    single.refresh()
    for key, value in single.state_dict().items():
        assert torch.equal(states[0][key], states[1][key])
        assert torch.allclose(states[0][key].double(), value.double(), atol=1e-7)


def test_tables_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_prior, "_free_memory", lambda: 2**30)
    with pytest.raises(
        ValueError, match=r"`num_classes` 1000003 needs 22351.9 GiB .* 1.0 GiB are free.*prior=\"sample\""
    ):
        GKLLoss(1_000_003)


# --- warnings and errors --------------------------------------------------------------------------------------


def test_a_prior_that_nobody_feeds_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gkl, "FORWARDS_BEFORE_WARNING", 3)
    student, target, labels = batch()
    loss = GKLLoss(5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(9):
            loss(student, target, labels)
    assert len(caught) == 1
    assert "loss.observe(target_logits, labels) after each batch and loss.refresh()" in str(caught[0].message)
    fed = GKLLoss(5)
    fed.observe(target, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
            fed(student, target, labels)


def test_a_prior_that_is_never_refreshed_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gkl, "CALLS_BEFORE_WARNING", 3)
    _, target, labels = batch()
    loss = GKLLoss(5)
    loss.observe(target, labels)
    loss.observe(target, labels)
    with pytest.warns(UserWarning, match="never refreshed"):
        loss.observe(target, labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GKLLoss(), "`num_classes` expected a number for `prior='class'`"),
        (lambda: GKLLoss(5, prior="batch"), "'class' or 'sample', got 'batch'"),
        (lambda: GKLLoss(5, weight_power=-1.0), "`weight_power`"),
        (lambda: GKLLoss(5, mse_weight=-1.0), "`mse_weight`"),
        (lambda: GKLLoss(5, temperature=0.0), "`temperature`"),
        (lambda: GKLLoss(5, prior_temperature=0.0), "`prior_temperature`"),
        (lambda: GKLLoss(5, ramp_epochs=-1), "`ramp_epochs`"),
        (lambda: GKLLoss(5, normalizer="batch"), "`normalizer`"),
        (lambda: GKLLoss(5, reduction="batchmean"), "`reduction`"),
        (lambda: GKLLoss.preset("imagenet"), "`num_classes`"),
        (lambda: GKLLoss.preset("cifar", 10), "cifar-distillation, imagenet"),
        (lambda: ClassPrior(0), "`num_classes`"),
        (lambda: ClassPrior(5, momentum=0.0), "`momentum`"),
        (lambda: JSLoss(beta=2.0), "`beta`"),
        (lambda: KLLoss(temperature=-1.0), "`temperature`"),
        (lambda: MARTLoss(kl_weight=-1.0), "`kl_weight`"),
        (lambda: DISTLoss(inter_weight=-1.0), "`inter_weight`"),
        (lambda: DISTLoss(intra_weight=-1.0), "`intra_weight`"),
        (lambda: NKDLoss(target_weight=-1.0), "`target_weight`"),
        (lambda: NKDLoss(rest_weight=-1.0), "`rest_weight`"),
        (lambda: TTMLoss(power=0.0), "`power`"),
        (lambda: DKDLoss(target_weight=-1.0), "`target_weight`"),
        (lambda: DKDLoss(rest_weight=float("nan")), "`rest_weight`"),
    ],
)
def test_options_are_checked_in_the_constructor(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_and_wrong_labels_are_said() -> None:
    student, target, labels = batch()
    with pytest.raises(ValueError, match=r"`labels` expected .* got None; or use `prior='sample'`"):
        GKLLoss(5)(student, target)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        GKLLoss(5)(student, target, labels + 5)
    with pytest.raises(ValueError, match=r"\[0, 4\]"):
        GKLLoss(5).observe(target, labels + 5)
    with pytest.raises(ValueError, match="6 classes as the last axis"):
        GKLLoss(6)(student, target, labels)
    with pytest.raises(ValueError, match=r"\(N, 6\)"):
        GKLLoss(6).observe(target, labels)


def test_dividing_by_samples_with_a_power_warns_at_construction() -> None:
    with pytest.warns(UserWarning, match="C squared"):
        GKLLoss(5, weight_power=0.3, normalizer="samples")


# --- presets and letters ----------------------------------------------------------------------------------------


def test_presets_are_the_published_values_in_our_names() -> None:
    """Each preset against the letters of the code base that it comes from."""
    published = {
        "cifar-distillation": (
            "distillation-v2",
            {"ALPHA": 1, "BETA": 16, "GAMMA": 0.05, "T": 4, "T2": 4, "WARMUP": 20},
        ),
        "imagenet": ("distillation-v2", {"ALPHA": 1, "BETA": 0.5, "GAMMA": 0.6}),
        "long-tailed": ("long-tailed-v2", {"alpha": 4, "beta": 4, "gamma": 0.3}),
        "adversarial": ("paper", {"alpha": 20, "beta": 5, "tau": 4}),
        "consistency": ("semi-supervised", {"alpha": 1.0, "beta": 0.1}),
    }
    assert set(published) == set(presets.PRESETS)
    for name, (code_base, letters) in published.items():
        options = translate(code_base, letters).options
        options.setdefault("weight_power", 1.0)
        made, translated = GKLLoss.preset(name, 10), GKLLoss(10, **options)
        assert repr(made) == repr(translated)
        assert (made.prior is None) == (translated.prior is None)


def test_paper_and_code_swap_alpha_and_beta() -> None:
    paper = translate("paper", {"alpha": 20, "beta": 5, "tau": 4}).options
    code = translate("adversarial-v2", {"alpha": 5, "beta": 20, "T": 4}).options
    assert paper == code


def test_translation_gives_the_published_formula() -> None:
    """The printed loss: alpha/4 times the pairwise sum plus beta times the cross-entropy."""
    student, target, labels = batch()
    options = translate("paper", {"alpha": 20, "beta": 5, "gamma": 0.3}).options
    rows = torch.full((9, 5), 0.2, dtype=torch.float64) ** 0.3
    pairs = 4 * twins.pairwise_mse(student.double(), target.double(), rows).sum() / rows.sum(-1).square().sum()
    ce = twins.soft_cross_entropy(student.double(), twins.softmax(target.double())).mean()
    assert torch.isclose(GKLLoss(5, **options)(student, target, labels).double(), 20 / 4 * pairs + 5 * ce, rtol=1e-5)


def test_defaults_of_the_code_bases_differ() -> None:
    old = translate("distillation-v1", {"ALPHA": 1, "BETA": 8})
    new = translate("distillation-v2", {"ALPHA": 1, "BETA": 8})
    assert (old.loss, old.options["prior"], old.options["prior_temperature"], old.options["ramp_epochs"]) == (
        "ikl",
        "sample",
        100.0,
        0,
    )
    assert (new.loss, new.options["prior"], new.options["prior_temperature"], new.options["ramp_epochs"]) == (
        "gkl",
        "class",
        1.0,
        5,
    )
    IKLLoss(10, **old.options)
    GKLLoss(10, **new.options)


@pytest.mark.parametrize(
    ("code_base", "settings", "message"),
    [
        ("kd", {}, "`code_base` expected one of paper"),
        ("paper", {"alpha": 1}, "'beta', which has no default"),
        ("paper", {"alpha": 1, "beta": 1, "T2": 4}, "got 'T2'"),
        ("adversarial-v1", {"gamma": 0.3}, "AutoAugment"),
        ("semi-supervised", {"alpha": 1, "beta": 0.1, "temperature": 2.0}, "only 1 has a counterpart"),
        ("distillation-v2", {"ALPHA": 1, "BETA": 1, "GI": "False"}, "expected a number for 'GI'"),
        ("distillation-v2", {"ALPHA": 1, "BETA": 1, "WARMUP": 2.5}, "whole epochs"),
    ],
)
def test_letters_without_counterpart_are_refused(code_base: str, settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate(code_base, settings)


def test_every_public_name_resolves() -> None:
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'KLDiv'"):
        limbeck.KLDiv  # noqa: B018
    assert set(limbeck.__all__) <= set(dir(limbeck))
