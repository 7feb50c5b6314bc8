"""Linear losses are the functions of logits, value and gradients, without the logits."""

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck import functional

TOKENS, WIDTH, TARGET_WIDTH, CLASSES = 37, 8, 11, 53
TILE = (16, 20)  # neither side is a multiple
LINEAR = {
    "gkl": functional.linear_gkl,
    "kl": functional.linear_kl,
    "js": functional.linear_js,
    "soft_cross_entropy": functional.linear_soft_cross_entropy,
}
OF_LOGITS = {
    "gkl": functional.gkl_divergence,
    "kl": functional.kl_divergence,
    "js": functional.js_divergence,
    "soft_cross_entropy": functional.soft_cross_entropy,
}


class Case:
    """Two sides with everything that takes a gradient."""

    def __init__(self, dtype: torch.dtype = torch.float64, tokens: int = TOKENS, classes: int = CLASSES) -> None:
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

        self.hidden, self.head, self.bias = leaf(tokens, WIDTH), leaf(classes, WIDTH), leaf(classes)
        self.target_hidden, self.target_head = leaf(tokens, TARGET_WIDTH), leaf(classes, TARGET_WIDTH)
        self.target_bias = leaf(classes)
        self.logit_scale = torch.tensor(1.3, dtype=dtype, requires_grad=True)
        self.target_logit_scale = torch.tensor(0.7, dtype=dtype, requires_grad=True)

    def meta(self) -> "Case":
        """Change to tensors without numbers."""
        for name, x in self.leaves().items():
            setattr(self, name, x.detach().to("meta").requires_grad_())
        return self

    def leaves(self) -> dict[str, Tensor]:
        return dict(vars(self))

    def sides(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.hidden, self.head, self.target_hidden, self.target_head

    def rest(self, softcap: float | None = None) -> dict[str, object]:
        keys = ("bias", "target_bias", "logit_scale", "target_logit_scale")
        caps = {"softcap": softcap, "target_softcap": None if softcap is None else 2 * softcap}
        return {key: getattr(self, key) for key in keys} | caps

    def logits(self, softcap: float | None = None) -> tuple[Tensor, Tensor]:
        s = self.logit_scale * (self.hidden @ self.head.T + self.bias)
        t = self.target_logit_scale * (self.target_hidden @ self.target_head.T + self.target_bias)
        if softcap is not None:
            s, t = softcap * torch.tanh(s / softcap), 2 * softcap * torch.tanh(t / (2 * softcap))
        return s, t

    def gradients(self, value: Tensor, factor: float | Tensor = 1.7) -> dict[str, Tensor]:
        leaves = self.leaves()
        found = torch.autograd.grad((value * factor).sum(), leaves.values(), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))


def labels_of(tokens: int = TOKENS, classes: int = CLASSES) -> Tensor:
    """Some are left out."""
    labels = torch.arange(tokens).mul_(5).remainder_(classes)
    labels[3::7] = -100
    return labels


def assert_equal(linear: dict[str, Tensor], dense: dict[str, Tensor], tolerance: float) -> None:
    for name, expected in dense.items():
        scale = expected.abs().max().clamp_min(1e-3)
        error = (linear[name].to(expected.dtype) - expected).abs().max() / scale
        assert error <= tolerance, f"{name}: {error:.1e}"


def of_logits(name: str, s: Tensor, t: Tensor, mask: Tensor, options: dict[str, object]) -> Tensor:
    """The dense form over the tokens that take part."""
    if name == "gkl":
        return functional.gkl_divergence(s, t, mask=mask, **options)
    reduction = options.get("reduction", "mean")
    values = OF_LOGITS[name](s, t, **{**options, "reduction": "none"}).masked_fill(~mask, 0.0)
    return values if reduction == "none" else values.sum() / (mask.sum() if reduction == "mean" else 1)


def plain_options() -> Iterator[tuple[str, dict[str, object]]]:
    for temperature, t2 in ((1.0, False), (3.0, True)):
        tempered = {"temperature": temperature, "scale_by_t2": t2}
        yield "kl", tempered
        yield "soft_cross_entropy", tempered
        for beta in (0.0, 0.3, 0.5, 1.0):
            yield "js", {**tempered, "beta": beta}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_linear_kl_js_and_cross_entropy_equal_the_dense_form(reduction: str, softcap: float | None) -> None:
    case, labels = Case(), labels_of()
    factor = torch.linspace(0.5, 2, TOKENS, dtype=torch.float64) if reduction == "none" else 1.7
    for name, options in plain_options():
        options["reduction"] = reduction
        dense = of_logits(name, *case.logits(softcap), labels != -100, options)
        linear = LINEAR[name](*case.sides(), labels=labels, tile=TILE, **case.rest(softcap), **options)
        torch.testing.assert_close(linear, dense, rtol=1e-12, atol=1e-14)
        assert_equal(case.gradients(linear, factor), case.gradients(dense, factor), 1e-12)


@pytest.mark.parametrize("source", ["sample", "vector", "table"])
@pytest.mark.parametrize("normalizer", ["weights", "row", "samples", 5.0])
def test_linear_gkl_equals_the_dense_form(source: str, normalizer: str | float) -> None:
    case, labels = Case(), labels_of()
    generator = torch.Generator().manual_seed(1)
    table = torch.rand(CLASSES, CLASSES, generator=generator, dtype=torch.float64)
    prior = {"sample": None, "vector": table[0], "table": table}[source]
    rows = {"sample": None, "vector": table[0].expand(TOKENS, -1), "table": table}[source]
    read = labels.clamp_min(0) if source == "table" else None
    divisor = normalizer if isinstance(normalizer, str) else torch.tensor(normalizer)
    for power, prior_temperature, temperature, mse_weight, ce_weight, reduction in (
        (1.0, 1.0, 1.0, 1.0, 1.0, "mean"),
        (0.3, 4.0, 4.0, 1.5, 0.5, "none"),
        (0.3, 2.0, 4.0, 1.5, 0.5, "sum"),
        (2.0, 1.0, 4.0, 1.0, 0.0, "mean"),
        (0.0, 1.0, 2.0, 1.0, 1.0, "mean"),
        (0.5, 1.0, 1.0, 0.0, 1.0, "mean"),
    ):
        options = {
            "weight_power": power,
            "prior_temperature": prior_temperature,
            "temperature": temperature,
            "mse_weight": mse_weight,
            "ce_weight": ce_weight,
            "reduction": reduction,
            "normalizer": divisor,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "samples" with a power scales with the classes
            dense = of_logits("gkl", *case.logits(), labels != -100, {**options, "prior": rows, "labels": read})
            linear = functional.linear_gkl(*case.sides(), prior, labels=labels, tile=TILE, **case.rest(), **options)
        torch.testing.assert_close(linear, dense, rtol=1e-12, atol=1e-14)
        factor = torch.linspace(0.5, 2, TOKENS, dtype=torch.float64) if reduction == "none" else 1.7
        assert_equal(case.gradients(linear, factor), case.gradients(dense, factor), 1e-12)


@pytest.mark.parametrize("tile", [(1, 1), (TOKENS, CLASSES), (1000, 1000), (5, 53), None])
@pytest.mark.parametrize("name", LINEAR)
def test_the_tile_changes_nothing(name: str, tile: tuple[int, int] | None) -> None:
    case = Case()
    linear = LINEAR[name](*case.sides(), tile=tile, **case.rest())
    dense = OF_LOGITS[name](*case.logits())
    torch.testing.assert_close(linear, dense, rtol=1e-12, atol=1e-14)
    assert_equal(case.gradients(linear), case.gradients(dense), 1e-12)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return out


@pytest.mark.parametrize("name", LINEAR)
def test_no_tensor_of_tokens_times_classes_exists(name: str) -> None:
    case = Case(torch.float32, tokens=64, classes=1000)
    with Largest() as largest:
        value = LINEAR[name](*case.sides(), tile=(16, 125), **case.rest())
        value.backward()
    assert largest.elements == case.target_head.numel() < 64 * 1000  # the largest gradient that is returned


@pytest.mark.parametrize("name", LINEAR)
def test_a_token_left_out_may_be_nan_and_leaves_zero_gradients(name: str) -> None:
    case, kept = Case(), torch.arange(TOKENS).remainder(3) != 0
    expected = LINEAR[name](case.hidden[kept], case.head, case.target_hidden[kept], case.target_head, **case.rest())
    gradients = case.gradients(expected)
    with torch.no_grad():
        case.hidden[~kept] = torch.nan
        case.target_hidden[~kept] = torch.nan
    masked = LINEAR[name](*case.sides(), mask=kept, tile=TILE, **case.rest())
    torch.testing.assert_close(masked, expected, rtol=1e-12, atol=0)
    found = case.gradients(masked)
    assert found["hidden"][~kept].eq(0).all()
    assert found["target_hidden"][~kept].eq(0).all()
    assert_equal(found, gradients, 1e-12)


@pytest.mark.parametrize("name", LINEAR)
def test_without_any_token_the_value_and_gradients_are_zero(name: str) -> None:
    case = Case()
    value = LINEAR[name](*case.sides(), labels=torch.full((TOKENS,), -100), tile=TILE, **case.rest())
    assert value == 0
    assert all(x.eq(0).all() for x in case.gradients(value).values())


@pytest.mark.parametrize("name", LINEAR)
def test_a_class_excluded_by_both_biases_is_absent(name: str) -> None:
    case, absent = Case(), torch.arange(CLASSES) % 4 == 1
    present = [x[~absent] for x in (case.head, case.bias, case.target_head, case.target_bias)]
    scales = {"logit_scale": case.logit_scale, "target_logit_scale": case.target_logit_scale}
    biases = {"bias": present[1], "target_bias": present[3]}
    expected = LINEAR[name](case.hidden, present[0], case.target_hidden, present[2], **biases, **scales)
    gradients = case.gradients(expected)
    with torch.no_grad():
        case.bias[absent] = case.target_bias[absent] = -torch.inf
    value = LINEAR[name](*case.sides(), tile=(16, 4), **case.rest())
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    found = case.gradients(value)
    assert found["head"][absent].eq(0).all()
    assert found["bias"][absent].eq(0).all()
    assert_equal(found, gradients, 1e-12)


@pytest.mark.parametrize("name", ["gkl", "kl", "soft_cross_entropy"])
def test_a_class_excluded_by_the_student_alone_is_infinitely_far(name: str) -> None:
    case = Case()
    with torch.no_grad():
        case.bias[7] = -torch.inf
    assert LINEAR[name](*case.sides(), tile=(16, 4), **case.rest()) == torch.inf


def test_a_class_excluded_by_the_student_alone_leaves_jensen_shannon_finite() -> None:
    case = Case()
    with torch.no_grad():
        case.bias[7] = -torch.inf
    linear, dense = functional.linear_js(*case.sides(), tile=TILE, **case.rest()), None
    dense = functional.js_divergence(*case.logits())
    torch.testing.assert_close(linear, dense, rtol=1e-12, atol=0)
    assert torch.isfinite(case.gradients(linear)["hidden"]).all()


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("name", LINEAR)
def test_one_token_and_one_class(name: str, tokens: int) -> None:
    case = Case(tokens=tokens, classes=1)
    value = LINEAR[name](*case.sides(), **case.rest())
    assert value.abs() < 1e-15
    assert all(x.abs().max() < 1e-14 for x in case.gradients(value).values())


def test_leading_axes_are_tokens() -> None:
    case = Case(tokens=6)
    split = case.hidden.view(2, 3, -1), case.head, case.target_hidden.view(2, 3, -1), case.target_head
    flat = functional.linear_gkl(*case.sides(), reduction="none", normalizer="row")
    values = functional.linear_gkl(*split, reduction="none", normalizer="row")
    assert values.shape == (2, 3)
    assert values.flatten().equal(flat)


def test_micro_batches_with_the_sum_of_normalizers_add_up_to_the_whole() -> None:
    case, labels = Case(), labels_of()
    options = {"weight_power": 0.4, "prior_temperature": 2.0}
    whole = functional.linear_gkl(*case.sides(), labels=labels, **case.rest(), **options)
    expected = case.gradients(whole)
    of_target = {key: x for key, x in case.rest().items() if key.startswith("target")}
    parts = [(slice(i, i + 10), (labels[i : i + 10] != -100).sum()) for i in range(0, TOKENS, 10)]
    total = sum(
        functional.linear_gkl_normalizer(
            case.target_hidden[i], case.target_head, labels=labels[i], tile=(4, 7), **of_target, **options
        )
        for i, _ in parts
    )
    tokens = sum(count for _, count in parts)
    values = []
    for i, count in parts:
        sides = case.hidden[i], case.head, case.target_hidden[i], case.target_head
        share = count / tokens
        value = functional.linear_gkl(*sides, labels=labels[i], normalizer=total * share, **case.rest(), **options)
        values.append(value * share)
    torch.testing.assert_close(sum(values), whole, rtol=1e-6, atol=0)  # the shares are float32
    assert_equal(case.gradients(sum(values)), expected, 1e-6)


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("source", ["sample", "vector", "table"])
def test_the_linear_normalizer_equals_that_of_the_rows(source: str, power: float) -> None:
    case, labels = Case(), labels_of()
    table = torch.rand(CLASSES, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = case.logits()[1].detach()
    rows = {
        "sample": torch.softmax(t / 3, -1),
        "vector": table[0].expand(TOKENS, -1),
        "table": table[labels.clamp_min(0)],
    }[source]
    expected = functional.gkl_normalizer(rows, weight_power=power, mask=labels != -100)
    prior = {"sample": None, "vector": table[0], "table": table}[source]
    of_target = {key: x for key, x in case.rest().items() if key.startswith("target")}
    found = functional.linear_gkl_normalizer(
        case.target_hidden, case.target_head, prior, labels=labels, weight_power=power, prior_temperature=3.0,
        tile=TILE, **of_target,
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
