"""Claims about the modules between feature maps: their trained parts, their layers, their shapes, their terms."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.config import ModelOptions
from limbeck.config_terms import FeatureTerm
from limbeck.config_terms_maps import MAPS_TERMS, CATTerm
from limbeck.functional.attention import attention_transfer
from limbeck.functional.hint import hint_mse
from limbeck.functional.inter_channel import inter_channel_correlation
from limbeck.functional.overhaul import partial_l2
from limbeck.functional.review import hierarchical_context_loss
from limbeck.functional.selectivity import neuron_selectivity
from limbeck.functional.variational import variational_information
from limbeck.losses.attention import ATLoss
from limbeck.losses.class_attention import CATLoss
from limbeck.losses.feature import FeatureLoss
from limbeck.losses.hint import FitNetLoss
from limbeck.losses.inter_channel import ICKDLoss
from limbeck.losses.overhaul import OFDLoss
from limbeck.losses.review import ReviewKDLoss
from limbeck.losses.selectivity import NSTLoss
from limbeck.losses.variational import VIDLoss
from limbeck.models import build_model
from limbeck.models.stages import layer_paths
from limbeck.models.taps import FeatureTaps

Shapes = list[tuple[int, ...]]

OWN: Shapes = [(4, 8, 8), (6, 4, 4)]
TARGET: Shapes = [(5, 8, 8), (7, 4, 4)]
OTHER_SIZE: Shapes = [(5, 4, 8), (7, 4, 4)]  # the larger map is pooled
MARGINS = [-torch.linspace(0.1, 1.0, 5), -torch.linspace(0.2, 2.0, 7)]


class Case(NamedTuple):
    loss: type[FeatureLoss]
    knows: int = 2  # of shapes, target_shapes, margins
    shapes: Shapes = OWN
    target_shapes: Shapes = TARGET

    def __call__(self, **options: object) -> FeatureLoss:
        torch.manual_seed(0)
        return self.loss(*(self.shapes, self.target_shapes, MARGINS)[: self.knows], **options)


CASES = {
    "fitnet": Case(FitNetLoss),
    "at": Case(ATLoss, 0),
    "nst": Case(NSTLoss, 0),
    "ickd": Case(ICKDLoss, target_shapes=OTHER_SIZE),
    "cat": Case(CATLoss, 0, OWN[1:], TARGET[1:]),
    "vid": Case(VIDLoss, target_shapes=OTHER_SIZE),
    "review_kd": Case(ReviewKDLoss, shapes=[*OWN, (6,)], target_shapes=[(5, 8, 8), (7, 2, 2), (7,)]),
    "ofd": Case(OFDLoss, 3, target_shapes=OTHER_SIZE),
}
every_loss = pytest.mark.parametrize("name", CASES)


def layers(shapes: Shapes, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, *shape, generator=generator).requires_grad_() for shape in shapes]


def given(name: str) -> tuple[object, ...]:
    """What the term's loss is called with: `inputs`."""
    torch.manual_seed(1)
    sides = layers(CASES[name].shapes, 2), layers(CASES[name].target_shapes, 3)
    return (*sides, nn.Linear(6, 10), nn.Linear(7, 10)) if name == "cat" else sides


@every_loss
def test_gradients_reach_the_student_and_what_trains_and_never_the_teacher(name: str) -> None:
    loss, inputs = CASES[name](), given(name)
    loss(*inputs).backward()
    assert all(x.grad is not None and x.grad.any() for x in inputs[0])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
    assert all(p.grad.any() for p in loss.parameters() if p.dim() == 4)
    assert all(x.grad is None for x in inputs[1])
    if name == "cat":
        assert inputs[2].weight.grad.any()
        assert inputs[3].weight.grad is None


@every_loss
def test_reductions_are_of_one_value_per_sample(name: str) -> None:
    inputs = given(name)
    none, mean, total = (CASES[name](reduction=word)(*inputs) for word in ("none", "mean", "sum"))
    assert none.shape == (3,)
    assert mean.item() == pytest.approx(none.mean().item())
    assert total.item() == pytest.approx(none.sum().item())
    with pytest.raises(ValueError, match="`reduction`"):
        CASES[name](reduction="batchmean")


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_dtype_meet_parameters_in_float32(name: str, dtype: torch.dtype) -> None:
    loss, inputs = CASES[name](), given(name)
    own, target = ([x.detach().to(dtype).requires_grad_() for x in side] for side in inputs[:2])
    value = loss(own, target, *inputs[2:])
    value.backward()
    assert value.item() == pytest.approx(loss(*inputs).item(), rel=0.05)
    assert all(x.grad.dtype == dtype and x.grad.isfinite().all() for x in own)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(*inputs)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(loss(*inputs).item(), rel=0.05)


@every_loss
def test_trained_parts_are_in_the_state_and_copies_agree(name: str) -> None:
    loss, inputs = CASES[name](), given(name)
    expected = loss(*inputs)
    torch.manual_seed(9)
    other = CASES[name].loss(*(CASES[name].shapes, CASES[name].target_shapes, MARGINS)[: CASES[name].knows])
    if list(loss.parameters()):
        assert not torch.equal(other(*inputs), expected)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(*inputs), expected)
    assert torch.equal(copy.deepcopy(loss)(*inputs), expected)


@every_loss
def test_student_and_trained_parts_learn(name: str) -> None:
    loss, inputs = CASES[name](), given(name)
    optimizer = torch.optim.Adam([*inputs[0], *loss.parameters()], lr=0.05)
    first = loss(*inputs).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss(*inputs).backward()
        optimizer.step()
    assert loss(*inputs).item() < 0.7 * first


@every_loss
def test_layers_that_do_not_fit_are_refused_in_one_line(name: str) -> None:
    loss, (own, target, *heads) = CASES[name](), given(name)
    wrong: list[tuple[object, object, type[Exception]]] = [
        (own[:1] + own, target, ValueError),
        (own[0][:2], target[:1], ValueError),
        (own, None, TypeError),
        ([x.flatten(2) for x in map(_as_map, own)], target, ValueError),
    ]
    if name not in ("at", "nst", "cat"):
        wrong += [(own[:1], target[:1], ValueError)]
        wrong += [([x[:, 1:] for x in own], target, ValueError), (own, [x[:, 1:] for x in target], ValueError)]
    for features, targets, error in wrong:
        with pytest.raises(error, match=r"`(features|target_features)`") as caught:
            loss(features, targets, *heads)
        assert "\n" not in str(caught.value)


def _as_map(x: Tensor) -> Tensor:
    return x[..., None, None] if x.dim() == 2 else x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ATLoss(power=-1.0), "`power`"),
        (lambda: ATLoss(mode="mean"), "`mode` expected one of 'code', 'paper'"),
        (lambda: FitNetLoss(OWN, TARGET, mode="mean"), "`mode`"),
        (lambda: CATLoss(pool=0), "`pool`"),
        (lambda: ICKDLoss([(4,)], [(5, 8, 8)]), r"`shapes` expected shapes of maps \(D, H, W\), got \(4,\)"),
        (lambda: VIDLoss(OWN, TARGET[:1]), "expected one shape per layer"),
        (lambda: VIDLoss(OWN, TARGET, initial_variance=1e-5), "`initial_variance` expected a number above 1e-05"),
        (
            lambda: OFDLoss(OWN, TARGET, MARGINS[:1]),
            r"`margins` expected one tensor \(D,\) for each of 2 layers, got 1",
        ),
        (lambda: OFDLoss(OWN, TARGET, MARGINS[::-1]), r"`margins` expected the shape \(5,\)"),
        (lambda: OFDLoss(OWN, TARGET, [-MARGINS[0], MARGINS[1]]), "`margins` expected numbers of at most 0, got 1"),
        (lambda: ReviewKDLoss([(4, 8)], [(5, 8)]), r"`shapes` expected shapes of maps \(D, H, W\) or vectors"),
        (lambda: ReviewKDLoss(OWN, TARGET, max_mid_channels=0), "`max_mid_channels`"),
    ],
)
def test_options_are_checked_once(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@every_loss
def test_constructor_takes_the_options_of_the_term(name: str) -> None:
    term = MAPS_TERMS[name]
    options = {key: field.default for key, field in term.model_fields.items() if key not in FeatureTerm.model_fields}
    keywords = [
        p
        for p in inspect.signature(CASES[name].loss).parameters.values()
        if p.name not in ("shapes", "target_shapes", "margins")
    ]
    assert {p.name: p.default for p in keywords} == {**options, "reduction": "mean"}
    assert [p.name for p in keywords] == [*options, "reduction"]
    assert all(f"{key}={value!r}" in repr(CASES[name]()) for key, value in options.items())
    assert term().name == name
    assert term().features


# --- each method ------------------------------------------------------------------------------------------------


def test_losses_without_trained_parts_are_sums_over_the_layers() -> None:
    for loss, function, options in (
        (ATLoss, attention_transfer, {"power": 1.0, "mode": "paper"}),
        (NSTLoss, neuron_selectivity, {}),
    ):
        own, target = layers(OWN, 2), layers(OTHER_SIZE, 3)
        expected = sum(function(s, t, **options) for s, t in zip(own, target, strict=True))
        assert torch.isclose(loss(**options)(own, target), expected)
        assert torch.equal(loss(**options)(own[0], target[0]), function(own[0], target[0], **options))


def test_losses_with_trained_parts_are_those_of_the_connected_maps() -> None:
    """Summed over the layers; OFD halves from the deepest to the shallowest."""
    own, target = layers(OWN, 2), layers(OTHER_SIZE, 3)
    small = [F.adaptive_avg_pool2d(s, t.shape[2:]) for s, t in zip(own, target, strict=True)]

    ickd = CASES["ickd"]()
    expected = [inter_channel_correlation(c(s), t) for c, s, t in zip(ickd.connectors, own, target, strict=True)]
    assert torch.isclose(ickd(own, target), sum(expected))

    vid = CASES["vid"](initial_variance=0.5)
    parts = zip(vid.connectors, small, target, vid.variances(), strict=True)
    assert torch.isclose(vid(own, target), sum(variational_information(c(s), t, v) for c, s, t, v in parts))

    ofd = CASES["ofd"]()
    shallow, deep = (partial_l2(c(s), t, m) for c, s, t, m in zip(ofd.connectors, small, target, MARGINS, strict=True))
    assert torch.isclose(ofd(own, target), shallow / 2 + deep)

    for mode in ("code", "paper"):
        fitnet, equal = CASES["fitnet"](mode=mode), layers(TARGET, 3)
        expected = [hint_mse(c(s), t, mode=mode) for c, s, t in zip(fitnet.projectors, own, equal, strict=True)]
        assert torch.isclose(fitnet(own, equal), sum(expected))


def test_connectors_reach_negative_values_and_the_regressor_of_fitnet_does_not() -> None:
    for name in ("ickd", "ofd"):
        convolution, norm = CASES[name]().connectors[0]
        assert convolution.bias is None
        assert convolution.kernel_size == (1, 1)
        assert isinstance(norm, nn.BatchNorm2d)
    own = layers(OWN, 2)[0]
    assert (CASES["fitnet"]().projectors[0](own) >= 0).all()
    assert (CASES["fitnet"](activation=False).projectors[0](own) < 0).any()


@pytest.mark.parametrize("variance", [2e-5, 0.1, 5.0, 300.0])
def test_variance_begins_where_it_is_told_and_trains(variance: float) -> None:
    loss = CASES["vid"](initial_variance=variance)
    assert all(torch.allclose(v, torch.full_like(v, variance), rtol=1e-4) for v in loss.variances())
    assert sum(scale is p for scale in loss.scales for p in loss.parameters()) == 2


def test_variance_settles_at_the_squared_error() -> None:
    """Its best value given the regressor: VID with a trained variance is not a scaled squared error."""
    loss, (own, target) = VIDLoss(OWN[:1], TARGET[:1]), (layers(OWN, 2)[0], layers(TARGET, 3)[0])
    optimizer = torch.optim.Adam(loss.scales, lr=0.2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(own, target).backward()
        optimizer.step()
    squares = (loss.connectors[0](own) - target).square().mean((0, 2, 3))
    assert torch.allclose(loss.variances()[0], squares, rtol=1e-2)


def test_margins_are_saved_and_do_not_train() -> None:
    loss = CASES["ofd"]()
    assert not any("margin" in name for name, _ in loss.named_parameters())
    assert torch.equal(loss.state_dict()["margin1"], MARGINS[1])


def test_class_attention_takes_one_layer_and_linear_classifiers() -> None:
    own, target, head, target_head = given("cat")
    with pytest.raises(ValueError, match="`features` expected one layer"):
        CATLoss()(own * 2, target * 2, head, target_head)
    with pytest.raises(TypeError, match="`target_head` expected a linear classifier"):
        CATLoss()(own, target, head, nn.Identity())
    assert CATLoss(pool=1)(own, target, head, target_head) < CATLoss(pool=4)(own, target, head, target_head)


@pytest.mark.parametrize("network", ["resnet8", "wrn_16_1", "mobilenet_v2", "shufflenet_v2"])
def test_class_attention_looks_at_the_map_that_the_classifier_averages(network: str) -> None:
    """Behind the last stage there may be another layer; the mean of the class maps is the logits less the bias."""
    model = build_model(ModelOptions(name=network), image_shape=(3, 32, 32), num_classes=10, seed=0).eval()
    with torch.no_grad():
        logits, features = FeatureTaps(model, layer_paths(model, CATTerm().features))(torch.ones(2, 3, 32, 32))
    nothing = nn.Linear(features[0].shape[1], 10)
    nn.init.zeros_(nothing.weight)
    value = CATLoss(pool=1)(features, features, model.head, nothing)
    assert torch.isclose(value, (logits - model.head.bias).square().mean(), rtol=1e-4)


def test_review_takes_a_batch_of_one_in_training() -> None:
    loss = CASES["review_kd"]()
    own, target = ([x[:1] for x in side] for side in given("review_kd"))
    before = copy.deepcopy(loss.blocks[-1].state_dict())
    value = loss(own, target)
    value.backward()
    assert value.isfinite()
    after = loss.blocks[-1].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)


def test_review_fuses_from_deep_to_shallow() -> None:
    """Block by block, in eval mode: norms are affine maps; attention weights the own and the deeper map."""
    loss = CASES["review_kd"]().eval()
    own, target = given("review_kd")
    total, deeper = torch.zeros(()), None
    for level in (2, 1, 0):
        block, t = loss.blocks[level], _as_map(target[level])
        x = F.conv2d(_as_map(own[level]), block.enter[0].weight) / (1 + 1e-5) ** 0.5
        if deeper is not None:
            grown = torch.stack(
                [
                    torch.stack([deeper[:, :, i * deeper.shape[2] // x.shape[2], j * deeper.shape[3] // x.shape[3]]
                        for j in range(x.shape[3])], -1)
                    for i in range(x.shape[2])
                ],
                2,
            )  # fmt: skip
            gates = torch.sigmoid(F.conv2d(torch.cat((x, grown), 1), block.attend.weight, block.attend.bias))
            x = x * gates[:, 0:1] + grown * gates[:, 1:2]
        deeper = x[:, :, ::2, ::2] if level == 1 else x  # the teacher's second map is 2 x 2, the student's 4 x 4
        out = F.conv2d(deeper, block.leave[0].weight, padding=1) / (1 + 1e-5) ** 0.5
        total = total + hierarchical_context_loss(out, t)
    assert torch.isclose(loss(own, target), total)


def test_width_of_the_fused_maps_is_the_deepest_layers_or_the_bound() -> None:
    for bound, expected in ((512, 6), (5, 5)):
        loss = CASES["review_kd"](max_mid_channels=bound)
        assert [block.enter[0].out_channels for block in loss.blocks] == [expected] * 3
        assert [block.leave[0].out_channels for block in loss.blocks] == [5, 7, 7]
        assert [block.attend is None for block in loss.blocks] == [False, False, True]
