"""Projected gradient descent: foolbox's and a literal loop's images, one sample at a time, and nothing else moved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.adversary import ToClean, clean_logits, cross_entropy, margin, pgd, start_points

LABELS = torch.arange(12) % 10
RADIUS = {"linf": 0.1, "l2": 0.8}
ORDER = {"linf": torch.inf, "l2": 2}
LOSSES = {"cross_entropy": cross_entropy, "margin": margin}


def network(dtype=torch.float64):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(384, 10)
    )
    for _ in range(3):
        net(1 + torch.randn(16, 1, 8, 8))  # statistics of their own
    return net.to(dtype)


def images(dtype=torch.float64):
    return torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def attack(net, x, loss, norm="linf", **options):
    radius = RADIUS[norm]
    return pgd(net, x, loss, **{"epsilon": radius, "steps": 5, "step_size": radius / 2, "norm": norm, **options})


def squares(logits, clean):
    return (logits - clean).square().sum(-1)


# --- what is computed ---------------------------------------------------------------------------------------------


def twin(net, x, loss, start, *, norm, steps):
    """One sample after the other, from the definition; the gradient by `backward`."""
    epsilon, attacked = RADIUS[norm], []
    for i in range(len(x)):
        point = start[i : i + 1].clone()
        for _ in range(steps):
            point.requires_grad_()
            loss(net(point), i).backward()
            gradient = point.grad
            direction = gradient.sign() if norm == "linf" else gradient / gradient.square().sum().sqrt()
            offset = point.detach() + epsilon / 2 * direction - x[i]
            if norm == "linf":
                offset = offset.clamp(-epsilon, epsilon)
            else:
                offset = offset * min(1.0, epsilon / float(offset.square().sum().sqrt()))
            point = (x[i] + offset).clamp(0, 1)
        attacked.append(point)
    return torch.cat(attacked)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["none", "uniform", "gaussian"])
@pytest.mark.parametrize("steps", [1, 3])
def test_pgd_is_its_definition_taken_sample_by_sample(norm, start, steps):
    net, x = network().eval(), images()
    begin = start_points(x, start, epsilon=RADIUS[norm], norm=norm, seed=3, epoch=2, indices=torch.arange(12))
    begin = begin.clamp(0, 1) if start == "uniform" else begin
    expected = twin(copy.deepcopy(net), x, lambda z, i: -z[0].log_softmax(0)[LABELS[i]], begin, norm=norm, steps=steps)
    attacked = attack(net, x, cross_entropy(LABELS), norm, start=start, steps=steps, seed=3, epoch=2)
    torch.testing.assert_close(attacked, expected, atol=1e-12, rtol=0)


def foolboxs(name, norm, net, x, start):
    """Foolbox's attack from the same start; its margin loss is written here, as it has none for gradient descent."""
    foolbox, eagerpy = pytest.importorskip("foolbox"), pytest.importorskip("eagerpy")
    base = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]

    class Attack(base):
        def get_random_start(self, x0, epsilon):
            return eagerpy.astensor(start)

        def get_loss_fn(self, model, labels):
            if name == "cross_entropy":
                return super().get_loss_fn(model, labels)

            def gap(inputs):
                logits, own = model(inputs).raw, nn.functional.one_hot(labels.raw, 10).bool()
                rest = logits.masked_fill(own, -torch.inf)
                return eagerpy.astensor((rest.max(-1).values - logits[own]).sum())

            return gap

    steps = Attack(abs_stepsize=RADIUS[norm] / 2, steps=5, random_start=start is not None)
    model = foolbox.PyTorchModel(net.eval(), bounds=(0, 1), device="cpu")
    return steps(model, x, LABELS, epsilons=RADIUS[norm])[1]


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", ["cross_entropy", "margin"])
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_pgd_and_cw_equal_foolboxs(norm, name, start):
    net, x = network(), images()
    begin = start_points(x, "uniform", epsilon=RADIUS[norm], norm=norm, seed=0, epoch=0, indices=torch.arange(12))
    expected = foolboxs(name, norm, copy.deepcopy(net), x, None if start == "none" else begin)
    attacked = attack(net, x, LOSSES[name](LABELS), norm, start=start)
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)
    assert (attacked - x).abs().max() > 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_images_of_a_sample_do_not_depend_on_its_batch(norm):
    net, x = network(), images()
    whole = attack(net, x, cross_entropy(LABELS), norm, indices=torch.arange(100, 112))
    part = torch.tensor([7, 2, 9])
    alone = attack(net, x[part], cross_entropy(LABELS[part]), norm, indices=part + 100)
    torch.testing.assert_close(alone, whole[part], atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", ["none", "uniform", "gaussian"])
@pytest.mark.parametrize("keep", ["last", "strongest"])
def test_the_result_lies_in_the_ball_and_in_the_range_of_the_pixels(norm, start, keep):
    x = images(torch.float32).round()  # half of the pixels at either end
    attacked = attack(network(torch.float32), x, cross_entropy(LABELS), norm, start=start, keep=keep)
    offsets = torch.linalg.vector_norm((attacked - x).flatten(1), ORDER[norm], dim=1)
    assert (offsets <= RADIUS[norm] + 1e-6).all()
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_an_attack_repeats_and_other_seeds_and_epochs_begin_elsewhere():
    net, x = network(), images()

    def run(**options):
        return attack(net, x, cross_entropy(LABELS), steps=1, **options)

    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = run(seed=1, epoch=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    assert torch.equal(run(seed=1, epoch=2), first)
    assert not torch.equal(run(seed=2, epoch=2), first)
    assert not torch.equal(run(seed=1, epoch=3), first)


def test_a_sum_over_the_samples_is_climbed_like_one_value_per_sample():
    net, x = network(), images()
    summed = attack(net, x, lambda z: nn.functional.cross_entropy(z, LABELS, reduction="sum"))
    torch.testing.assert_close(summed, attack(net, x, cross_entropy(LABELS)), atol=1e-12, rtol=0)


def test_an_attack_on_the_distance_to_the_clean_logits_is_the_definitions():
    net, x = network(), images()
    clean = clean_logits(net, x)
    begin = start_points(x, "gaussian", epsilon=0.1, norm="linf", seed=0, epoch=0, indices=torch.arange(12))
    frozen = copy.deepcopy(net).eval()
    expected = twin(frozen, x, lambda z, i: (z[0] - clean[i]).square().sum(), begin, norm="linf", steps=5)
    attacked = attack(net, x, ToClean(squares, clean), start="gaussian")
    torch.testing.assert_close(attacked, expected, atol=1e-12, rtol=0)


def test_a_sample_without_a_gradient_stays_where_it_is():
    x = torch.full((2, 2), 0.5)
    seen = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    attacked = pgd(
        lambda z: z * seen, x, lambda z: z.sum(-1), epsilon=0.1, steps=2, step_size=0.1, norm="l2", start="none"
    )
    assert torch.equal(attacked[1], x[1])
    torch.testing.assert_close(attacked[0], 0.5 + 0.1 / 2**0.5 * seen[0])


# --- the strongest point ------------------------------------------------------------------------------------------


def peak(z):
    """Largest where the pixel is .56; one value per sample."""
    return -(z - 0.56).square().sum(-1)


def test_the_strongest_point_is_kept_of_each_sample():
    """A step of .1 from .5 passes the peak at .56 and comes back; from .45 it meets .55 and passes it too."""
    x = torch.tensor([[0.50], [0.45]], dtype=torch.float64)
    options = {"epsilon": 0.3, "step_size": 0.1, "start": "none"}
    last = pgd(lambda z: z, x, peak, steps=2, **options)
    strongest = pgd(lambda z: z, x, peak, steps=2, keep="strongest", **options)
    torch.testing.assert_close(last, torch.tensor([[0.50], [0.65]], dtype=torch.float64))
    torch.testing.assert_close(strongest, torch.tensor([[0.60], [0.55]], dtype=torch.float64))


@pytest.mark.parametrize(("values", "kept"), [((3, 1, 2), 0), ((1, 3, 2), 1), ((1, 2, 3), 2), ((2, 2, 1), 0)])
def test_the_strongest_point_may_be_the_start_or_the_last_and_of_equals_is_the_first(values, kept):
    x, coming = torch.full((1, 1), 0.5), iter(values)

    def loss(z):
        return next(coming) + (z - z.detach()).sum(-1)

    strongest = pgd(lambda z: z, x, loss, epsilon=0.3, steps=2, step_size=0.1, start="none", keep="strongest")
    torch.testing.assert_close(strongest, x + 0.1 * kept)


def test_a_gaussian_start_outside_of_the_ball_is_not_kept():
    x = torch.full((12, 5), 0.5, dtype=torch.float64)

    def far(z):
        return -(z - 0.5).abs().sum(-1).reciprocal()

    def near(z):
        return (z - 0.5).abs().sum(-1)

    options = {"epsilon": 1e-6, "steps": 3, "step_size": 1e-6, "start": "gaussian", "keep": "strongest"}
    for loss in (far, near):
        assert (pgd(lambda z: z, x, loss, **options) - x).abs().max() <= 1e-6 + 1e-15


def test_the_strongest_point_needs_one_value_per_sample():
    with pytest.raises(ValueError, match=r"`loss` expected one value per sample, shape \(12,\)"):
        attack(network(), images(), lambda z: cross_entropy(LABELS)(z).sum(), keep="strongest")


@pytest.mark.parametrize(("keep", "forwards"), [("last", 5), ("strongest", 6)])
def test_a_step_costs_one_forward_and_the_strongest_point_one_more(keep, forwards):
    net, calls = network(), []
    net.register_forward_hook(lambda *_: calls.append(1))
    attack(net, images(), cross_entropy(LABELS), keep=keep)
    assert len(calls) == forwards


# --- what is left alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bn_mode", ["eval", "batch"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_modes_and_buffers_are_what_they_were(bn_mode, momentum):
    net = network()
    net[1].momentum = momentum
    net[3].eval()
    modes = [module.training for module in net.modules()]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    attack(net, images(), cross_entropy(LABELS), bn_mode=bn_mode, keep="strongest")
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_gradients_of_the_weights_are_not_touched():
    net = network()
    net[0].weight.grad = torch.full_like(net[0].weight, 7)
    net[5].bias.requires_grad_(False)
    attack(net, images(), cross_entropy(LABELS))
    assert (net[0].weight.grad == 7).all()
    assert net[5].weight.grad is None
    assert [name for name, weight in net.named_parameters() if not weight.requires_grad] == ["5.bias"]


@pytest.mark.filterwarnings("error")
def test_neither_the_images_nor_their_gradient_are_touched():
    x = images().requires_grad_()
    before = x.detach().clone()
    attacked = attack(network(), x, cross_entropy(LABELS))
    assert torch.equal(x, before)
    assert x.grad is None
    assert not attacked.requires_grad


def test_the_mode_comes_back_after_an_exception():
    net = network()

    def fail(_):
        raise KeyError("inside")

    with pytest.raises(KeyError):
        attack(net, images(), fail)
    assert all(module.training and getattr(module, "track_running_stats", True) for module in net.modules())


def test_in_batch_mode_batch_norm_uses_the_statistics_of_the_attacked_batch():
    net = network()
    stateless = copy.deepcopy(net)
    stateless[1] = nn.BatchNorm2d(6, track_running_stats=False).double()
    stateless[1].load_state_dict(net[1].state_dict(), strict=False)
    by_batch = attack(net, images(), cross_entropy(LABELS), bn_mode="batch")
    torch.testing.assert_close(by_batch, attack(stateless, images(), cross_entropy(LABELS)), atol=0, rtol=0)
    assert not torch.equal(by_batch, attack(net, images(), cross_entropy(LABELS)))


# --- where it runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("keep", ["last", "strongest"])
def test_channels_last_stays_channels_last_at_each_step(norm, keep):
    formats = []

    def model(z):
        formats.append(z.is_contiguous(memory_format=torch.channels_last))
        return (z * torch.arange(48.0).view(3, 4, 4).sin()).flatten(1)

    x = torch.rand(12, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    attacked = attack(model, x, cross_entropy(LABELS), norm, keep=keep)
    assert formats == [True] * (5 + (keep == "strongest"))
    assert attacked.is_contiguous(memory_format=torch.channels_last)


def test_under_autocast_the_network_runs_in_bfloat16_and_the_images_do_not():
    net, x, seen = network(torch.float32), images(torch.float32), []
    net[5].register_forward_hook(lambda module, taken, given: seen.append(given.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        attacked = attack(net, x, cross_entropy(LABELS), start="none")
    assert seen == [torch.bfloat16] * 5
    assert attacked.dtype == torch.float32
    assert (attacked - x).abs().max() <= 0.1 + 1e-6
    in_float32 = attack(net, x, cross_entropy(LABELS), start="none")
    assert ((attacked - in_float32).abs() < 1e-6).double().mean() > 0.9  # few signs differ


def test_an_attack_runs_where_gradients_are_off():
    net, x = network(), images()
    with torch.no_grad():
        attacked = attack(net, x, cross_entropy(LABELS))
    assert torch.equal(attacked, attack(net, x, cross_entropy(LABELS)))


def test_pixels_may_have_any_range_or_none():
    x = 3 * images() - 1.5
    within = attack(network(), x, cross_entropy(LABELS), clip=(-1.5, 1.5))
    assert within.min() >= -1.5
    assert within.max() <= 1.5
    free = attack(network(), x, cross_entropy(LABELS), clip=(-torch.inf, torch.inf))
    assert (free - x).abs().max() > 0.09
    assert (free.min() < -1.5) | (free.max() > 1.5)
