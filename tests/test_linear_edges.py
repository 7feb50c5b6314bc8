"""Linear losses: precision, memory, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from test_linear import LINEAR, OF_LOGITS, Case
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import limbeck
from limbeck import functional
from limbeck.functional import _linear_check

MODULES = {
    "gkl": limbeck.LinearGKLLoss,
    "kl": limbeck.LinearKLLoss,
    "js": limbeck.LinearJSLoss,
    "soft_cross_entropy": limbeck.LinearSoftCrossEntropyLoss,
}


def sides_of(tokens: int, width: int, classes: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Hidden states and heads of both sides, which take gradients; logits of a size of about 4."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((tokens, width), (classes, width)) * 2
    size = 2 / width**0.25
    made = [torch.randn(*shape, generator=generator, dtype=torch.float64) * size for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in made]


def of_logits(name: str, sides: list[Tensor]) -> Tensor:
    hidden, head, target_hidden, target_head = sides
    return OF_LOGITS[name](hidden @ head.T, target_hidden @ target_head.T, temperature=2.0)


def errors(value: Tensor, sides: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of the value and each gradient, over the size of the exact one."""
    found = [value.detach(), *torch.autograd.grad(value, sides)]
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


def exact_of(name: str, sides: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().double().requires_grad_() for x in sides]
    value = of_logits(name, leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_32000_classes_equal_the_dense_form_to_float32_rounding(name: str) -> None:
    sides = sides_of(512, 16, 32_000)
    value = of_logits(name, sides)
    dense = [value.detach().double(), *(x.double() for x in torch.autograd.grad(value, sides))]
    # differences of logarithms cancel digits in gradients to the target, in the dense form more than here
    to_target = 1e-4 if name == "soft_cross_entropy" else 1e-5
    found = errors(LINEAR[name](*sides, temperature=2.0), sides, dense)
    assert all(a <= b for a, b in zip(found, [3e-6] * 3 + [to_target] * 2, strict=True)), found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LINEAR)
def test_half_inputs_lose_no_more_digits_than_in_the_dense_form(name: str, dtype: torch.dtype) -> None:
    sides = sides_of(96, 16, 700, dtype)
    exact = exact_of(name, sides)
    linear = errors(LINEAR[name](*sides, temperature=2.0, tile=(16, 64)), sides, exact)
    dense = errors(of_logits(name, sides), sides, exact)
    assert all(a <= 1.5 * b + 1e-5 for a, b in zip(linear, dense, strict=True)), (linear, dense)
    grads = torch.autograd.grad(LINEAR[name](*sides), sides)
    assert all(x.dtype == dtype for x in grads)


def test_float16_keeps_the_digits_of_gradients_below_its_range() -> None:
    sides = sides_of(512, 8, 300, torch.float16)
    exact = exact_of("kl", sides)
    value = functional.linear_kl(*sides, temperature=2.0) * 2.0**10  # logits' gradients / N lie below 6e-5
    found = torch.autograd.grad(value, sides[:2])
    for x, y in zip(found, exact[1:3], strict=True):
        assert (x.double() / 2**10 - y).norm() / y.norm() < 2e-3


def test_float16_holds_gradients_of_large_logit_scales() -> None:
    sides = sides_of(32, 8, 100, torch.float16)
    leaves = [x.detach().double().requires_grad_() for x in sides]
    scale = torch.tensor(10.0)
    dense = functional.gkl_divergence(*(10 * (h @ w.T) for h, w in (leaves[:2], leaves[2:])))
    exact = torch.autograd.grad(dense, leaves)
    for factor in (10.0, scale):
        value = functional.linear_gkl(*sides, logit_scale=factor, target_logit_scale=factor)
        for x, y in zip(torch.autograd.grad(value, sides), exact, strict=True):
            assert (x.double() - y).norm() / y.norm() < 0.1  # the logits themselves are rounded


def test_dtypes_may_be_mixed() -> None:
    hidden, head, target_hidden, target_head = (x.detach() for x in sides_of(10, 4, 30))
    mixed = [hidden.bfloat16().requires_grad_(), head.requires_grad_(), target_hidden.half(), target_head.double()]
    value = functional.linear_gkl(*mixed)
    expected = functional.gkl_divergence(mixed[0].float() @ mixed[1].T, mixed[2].double() @ mixed[3].T)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    found = torch.autograd.grad(value, mixed[:2])
    assert [x.dtype for x in found] == [torch.bfloat16, torch.float32]
    torch.testing.assert_close(found[1], torch.autograd.grad(expected, mixed[1])[0], rtol=1e-4, atol=1e-6)


def test_a_float16_teacher_leaves_a_float32_student_its_gradients() -> None:
    hidden, head, *target = sides_of(10, 4, 30)
    halved = [x.detach().half() for x in target]
    found = torch.autograd.grad(functional.linear_kl(hidden, head, *halved, tile=(4, 8)), (hidden, head))
    dense = functional.kl_divergence(hidden @ head.T, halved[0] @ halved[1].T)
    for x, y in zip(found, torch.autograd.grad(dense, (hidden, head)), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-2, atol=1e-4)


def test_autocast_does_not_reach_inside() -> None:
    sides = sides_of(10, 4, 30)
    outside = functional.linear_gkl(*sides)
    expected = torch.autograd.grad(outside, sides)
    with torch.autocast("cpu", torch.bfloat16):
        inside = functional.linear_gkl(*sides)
        found = torch.autograd.grad(inside, sides)
    assert inside.equal(outside)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("classes", [600, 1800])
@pytest.mark.parametrize("name", LINEAR)
def test_the_peak_above_inputs_and_gradients_is_at_most_four_tiles(name: str, classes: int) -> None:
    sides, tile = sides_of(256, 16, classes), (64, 256)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        LINEAR[name](*sides, tile=tile, temperature=2.0).backward()
    alive = peak = 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    returned = sum(x.grad.nbytes for x in sides)
    assert peak - returned <= 4 * 4 * tile[0] * tile[1]


def test_a_target_without_gradient_takes_none_and_may_be_made_in_inference_mode() -> None:
    hidden, head, target_hidden, target_head = sides_of(10, 4, 30)
    expected = torch.autograd.grad(
        functional.linear_kl(hidden, head, target_hidden.detach(), target_head.detach()), head
    )
    with torch.inference_mode():
        made = target_hidden.clone(), target_head.clone()
    value = functional.linear_kl(hidden, head, *made)
    assert torch.autograd.grad(value, head)[0].equal(expected[0])


def test_one_head_for_both_sides_receives_the_sum_of_gradients() -> None:
    hidden, head, target_hidden, _ = sides_of(10, 4, 30, torch.float64)
    found = torch.autograd.grad(functional.linear_js(hidden, head, target_hidden, head), head)[0]
    dense = functional.js_divergence(hidden @ head.T, target_hidden @ head.T)
    torch.testing.assert_close(found, torch.autograd.grad(dense, head)[0], rtol=1e-12, atol=1e-15)


def test_strides_of_hidden_states_and_heads_do_not_matter() -> None:
    hidden, head, target_hidden, target_head = (x.detach() for x in sides_of(12, 4, 30, torch.float64))
    expected = functional.linear_gkl(hidden, head, target_hidden, target_head)
    strided = hidden.T.contiguous().T, head.T.contiguous().T, target_hidden.repeat(1, 2)[:, :4], target_head
    torch.testing.assert_close(functional.linear_gkl(*strided), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", LINEAR)
def test_it_may_be_called_from_compiled_code(name: str) -> None:
    sides = sides_of(10, 4, 30)
    torch._dynamo.reset()

    def step(*given: Tensor) -> Tensor:
        return 2 * LINEAR[name](*given, tile=(4, 8))  # the graph breaks around the loss

    expected = torch.autograd.grad(step(*sides), sides)
    value = torch.compile(step, backend="aot_eager")(*sides)
    found = torch.autograd.grad(value, sides)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_second_derivatives_and_transforms_are_refused_in_one_line() -> None:
    sides = sides_of(6, 4, 9)
    value = functional.linear_kl(*sides)
    with pytest.raises(RuntimeError, match="first derivatives"):
        torch.autograd.grad(value, sides[0], create_graph=True)
    rest = [x.detach() for x in sides[1:]]
    with pytest.raises(RuntimeError, match=r"no torch\.func transform"):
        torch.func.grad(lambda x: functional.linear_kl(x, *rest))(sides[0].detach())
    with pytest.raises(RuntimeError, match=r"no torch\.func transform"):
        torch.func.vmap(lambda bias: functional.linear_kl(sides[0], *rest, bias=bias))(torch.zeros(2, 9))


@pytest.mark.parametrize("name", LINEAR)
def test_the_backward_pass_may_be_repeated(name: str) -> None:
    sides = sides_of(6, 4, 9)
    value = LINEAR[name](*sides)
    first = torch.autograd.grad(value, sides, retain_graph=True)
    second = torch.autograd.grad(value, sides)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("source", [(9,), (9, 9)])
def test_the_prior_of_the_caller_is_left_as_it_was(source: tuple[int, ...]) -> None:
    prior = torch.rand(source)
    before, labels = prior.clone(), torch.arange(6)
    functional.linear_gkl(*sides_of(6, 4, 9), prior, labels=labels, weight_power=0.5).backward()
    assert prior.equal(before)


def test_tokens_whose_weights_are_all_zero_weigh_nothing() -> None:
    hidden, head, target_hidden, target_head = sides_of(6, 4, 9)
    table, labels = torch.rand(9, 9), torch.arange(6)
    table[2] = 0.0
    value = functional.linear_gkl(hidden, head, target_hidden, target_head, table, labels=labels, ce_weight=0.0)
    found = torch.autograd.grad(value, hidden)[0]
    assert found[2].eq(0).all()
    assert found.isfinite().all()
    assert functional.linear_gkl(hidden, head, target_hidden, target_head, torch.zeros(9), ce_weight=0.0) == 0


def test_ignored_labels_are_told_in_any_integer_dtype() -> None:
    sides = [x.detach() for x in sides_of(2, 4, 200)]
    labels = torch.tensor([156, 1], dtype=torch.uint8)  # -100 is 156 in uint8
    assert functional.linear_kl(*sides, labels=labels).equal(functional.linear_kl(*sides))


@pytest.mark.parametrize("name", LINEAR)
def test_nothing_waits_for_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)  # the meta device has none
    case = Case(torch.float32).meta()  # where whatever needs a number on the host raises
    labels, mask = torch.zeros(37, dtype=torch.long, device="meta"), torch.ones(37, dtype=torch.bool, device="meta")
    value = LINEAR[name](*case.sides(), labels=labels, mask=mask, tile=(8, 16), **case.rest(softcap=4.0))
    assert case.gradients(value)["head"].is_meta


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", LINEAR)
def test_on_a_device_it_loses_no_more_digits_than_the_dense_form(name: str, dtype: torch.dtype) -> None:
    sides = [x.detach().cuda().requires_grad_() for x in sides_of(300, 64, 9000, dtype)]
    exact = exact_of(name, sides)
    linear = errors(LINEAR[name](*sides, temperature=2.0, tile=(128, 1024)), sides, exact)
    dense = errors(of_logits(name, sides), sides, exact)
    assert all(a <= 1.5 * b + 1e-5 for a, b in zip(linear, dense, strict=True)), (linear, dense)


MISTAKES = (
    ({"target_head": torch.zeros(8, 4)}, "`head` and `target_head` expected the same classes, got 9 and 8"),
    ({"target_hidden": torch.zeros(5, 4)}, "the same tokens"),
    ({"hidden": torch.zeros(6, 3)}, "`hidden` expected the width 4 of `head`, got 3"),
    ({"hidden": torch.zeros(0, 4), "target_hidden": torch.zeros(0, 4)}, "non-empty"),
    ({"target_head": torch.zeros(9)}, r"`target_head` expected a non-empty shape \(C, D\)"),
    ({"bias": torch.zeros(8)}, r"`bias` expected the shape \(9,\)"),
    ({"logit_scale": 0.0}, "`logit_scale`"),
    ({"target_softcap": -1.0}, "`target_softcap`"),
    ({"tile": (4, 0)}, "`tile` expected a tuple of two whole numbers"),
    ({"tile": 64}, "`tile` expected a tuple of two whole numbers"),
    ({"reduction": "avg"}, "`reduction`"),
    ({"prior": torch.zeros(6, 9)}, r"`prior` expected the shape \(9,\) or"),
    ({"prior": torch.zeros(9, 9)}, "expected `labels` that read its rows"),
    ({"labels": torch.full((6,), 9)}, "`labels` expected values in"),
    ({"labels": torch.zeros(5, dtype=torch.long)}, "`labels`|class indices"),
    ({"mask": torch.ones(5, dtype=torch.bool)}, "`mask` expected the shape"),
    ({"weight_power": -1.0}, "`weight_power`"),
    ({"normalizer": "tile"}, "`normalizer`"),
)


@pytest.mark.parametrize(("wrong", "message"), MISTAKES)
def test_a_mistake_is_named_in_one_line(wrong: dict[str, object], message: str) -> None:
    given = {
        "hidden": torch.zeros(6, 4),
        "head": torch.zeros(9, 4),
        "target_hidden": torch.zeros(6, 4),
        "target_head": torch.zeros(9, 4),
        **wrong,
    }
    with pytest.raises(ValueError, match=message) as raised:
        functional.linear_gkl(**given)
    assert "\n" not in str(raised.value)


def test_wrong_types_are_named() -> None:
    sides = [x.detach() for x in sides_of(6, 4, 9)]
    with pytest.raises(TypeError, match="`temperature` expected a number, got a tensor"):
        functional.linear_kl(*sides, temperature=torch.tensor(2.0))
    with pytest.raises(TypeError, match="soft labels are not offered"):
        functional.linear_gkl(*sides, labels=torch.rand(6, 9))
    with pytest.raises(TypeError, match="`head` expected a floating dtype"):
        functional.linear_js(sides[0], sides[1].long(), *sides[2:])
    with pytest.raises(TypeError, match="`labels` expected a tensor, got list"):
        functional.linear_kl(*sides, labels=[0] * 6)
    with pytest.raises(TypeError, match="`weight_power` expected a number"):
        functional.linear_gkl(*sides, weight_power="1")
    with pytest.raises(TypeError, match="`mask` expected bool"):
        functional.linear_js(*sides, mask=torch.ones(6))


def test_a_table_too_large_names_both_alternatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_linear_check, "TABLE_BYTES", 9 * 9 * 4 - 1)
    labels = torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match=r"at most .* GiB, got .*; use a \(C,\) vector of class weights, or None"):
        functional.linear_gkl(*sides_of(6, 4, 9), torch.ones(9, 9), labels=labels)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_its_function(name: str) -> None:
    case = Case(torch.float32, tokens=6)
    options = {"temperature": 2.0, "logit_scale": 0.5, "softcap": 4.0, "tile": (4, 16), "reduction": "sum"}
    if name == "gkl":
        options.update(prior=torch.rand(53), weight_power=0.3, mse_weight=2.0, normalizer="row")
    if name == "js":
        options.update(beta=0.3)
    labels = torch.tensor([0, 1, -1, 2, 3, 4])
    loss = MODULES[name](**options, ignore_index=-1)
    rest = {"bias": case.bias, "target_bias": case.target_bias}
    expected = LINEAR[name](*case.sides(), labels=labels, ignore_index=-1, **options, **rest)
    assert loss(*case.sides(), labels, **rest).equal(expected)
    assert "temperature=2.0" in repr(loss)
    with pytest.raises(ValueError, match="`tile`"):
        MODULES[name](tile=(0, 1))


def test_class_weights_move_and_are_saved_with_the_module() -> None:
    loss = limbeck.LinearGKLLoss(prior=torch.tensor([0.2, 0.3, 0.5]))
    assert loss.double().prior.dtype == torch.float64
    assert list(loss.state_dict()) == ["prior"]
    head = nn.Linear(4, 3, bias=False)
    hidden = torch.randn(5, 4)
    found = loss.denominator(hidden, head.weight.detach())
    torch.testing.assert_close(found, torch.tensor(5.0, dtype=torch.float64))
