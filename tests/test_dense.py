"""Claims about dense losses: each pixel is a sample, in any layout and in any tiles, and nothing large is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import twins
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck import functional
from limbeck.functional import _dense_tiles
from limbeck.losses import ClassPrior

SPACES = ((), (6,), (3, 4), (2, 3, 2))
MASKS = ("none", "mask", "ignored", "both")
NORMALIZERS = ("weights", "row", "samples", "given")


@pytest.fixture(params=["one tile", "pixels", "rows", "images", "composed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same claims in tiles of many shapes, and for plain operations."""
    sizes = {"one tile": 10**6, "pixels": 1, "rows": 25, "images": 130, "composed": 10**6}
    monkeypatch.setattr(_dense_tiles, "TILE_ELEMENTS", {"cpu": sizes[request.param]})
    if request.param == "composed":
        monkeypatch.setattr(_dense_tiles, "_can_tile", lambda *_: False)
    return request.param


def batch(space: tuple[int, ...] = (3, 4), images: int = 3, classes: int = 5, masked: str = "none") -> tuple[Any, ...]:
    """Student, target (N, C, *space), class table, and the labels and mask to give; NaN where pixels are left out."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sides = [3 * draw(images, classes, *space) for _ in range(2)]
    labels = torch.randint(classes, (images, *space), generator=generator)
    keep = torch.rand(images, *space, generator=generator) < 0.6
    keep[0] = False  # a whole image
    mask = None
    if masked in ("mask", "both"):
        mask = keep.clone()
        labels[~keep] = 77
    if masked in ("ignored", "both"):
        keep[-1:] &= torch.rand(keep[-1:].shape, generator=generator) < 0.7
        keep[1].view(-1)[0] = True
        if mask is not None:
            mask[1].view(-1)[0] = True
        labels[~keep] = 255
        labels[1].view(-1)[0] = 2
        if mask is not None:
            labels[~mask] = 3  # a label that counts, at pixels that do not
    if masked != "none":
        for side in sides:
            side.movedim(1, -1)[~keep] = torch.nan
    else:
        keep = torch.ones_like(keep)
    table = torch.softmax(2 * draw(classes, classes), -1)
    return *(side.requires_grad_() for side in sides), table, labels, mask, keep


def flat(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def assert_equal(value: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    found, wanted = (
        torch.autograd.grad(v.sum(), inputs, retain_graph=True, materialize_grads=True) for v in (value, expected)
    )
    for got, right in [(value, expected), *zip(found, wanted, strict=True)]:
        assert got.shape == right.shape
        assert (got - right.nan_to_num()).abs().max() <= tolerance * max(1.0, right.nan_to_num().abs().max().item())


# --- equality ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("space", SPACES)
def test_dense_kl_and_js_are_the_means_over_pixels(path: str, space: tuple[int, ...], masked: str) -> None:
    s, t, _, labels, mask, keep = batch(space, masked=masked)
    options = {"labels": labels, "ignore_index": 255, "mask": mask} if masked != "none" else {}
    rows = flat(s)[keep.flatten()], flat(t)[keep.flatten()]
    for temperature in (1.0, 3.0):
        value = functional.dense_kl_divergence(s, t, temperature=temperature, scale_by_t2=True, **options)
        p, q = (twins.softmax(x, temperature) for x in (rows[1], rows[0]))
        assert_equal(value, temperature**2 * twins.kl(p, q).mean(), (s, t))
        value = functional.dense_js_divergence(s, t, beta=0.3, temperature=temperature, **options)
        m = 0.3 * p + 0.7 * q
        assert_equal(value, (0.3 * twins.kl(p, m) + 0.7 * twins.kl(q, m)).mean(), (s, t))


@pytest.mark.parametrize("masked", MASKS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("prior", ["class", "sample"])
@pytest.mark.filterwarnings("ignore:`normalizer='samples'`")
def test_dense_gkl_is_gkl_over_all_pairs_at_each_pixel(path: str, prior: str, normalizer: str, masked: str) -> None:
    s, t, table, labels, mask, keep = batch(masked=masked)
    kept = keep.flatten()
    given = torch.tensor(1.7, dtype=torch.float64) if normalizer == "given" else normalizer
    for power in (0.0, 0.3, 1.0):
        options = {"mse_weight": 2.0, "ce_weight": 0.7, "weight_power": power, "temperature": 3.0, "normalizer": given}
        rows = twins.softmax(flat(t)[kept], 2.0) if prior == "sample" else table[labels.flatten()[kept]]
        expected = twins.gkl(flat(s)[kept], flat(t)[kept], rows, **options)
        value = functional.dense_gkl_divergence(
            s, t, table if prior == "class" else None, labels=labels, ignore_index=255, mask=mask,
            prior_temperature=2.0, **options,
        )  # fmt: skip
        assert_equal(value, expected, (s, t))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("space", SPACES)
def test_dense_gkl_is_gkl_with_the_class_axis_moved(path: str, space: tuple[int, ...], reduction: str) -> None:
    s, t, table, labels, mask, keep = batch(space, masked="both")
    options = {"weight_power": 0.3, "reduction": reduction}
    value = functional.dense_gkl_divergence(s, t, table, labels=labels, ignore_index=255, mask=mask, **options)
    moved = s.movedim(1, -1), t.movedim(1, -1)
    expected = functional.gkl_divergence(*moved, table, labels=labels, mask=keep, **options)
    assert_equal(value, expected, (s, t))


@pytest.mark.parametrize("normalizer", ["weights", "row"])
@pytest.mark.parametrize("prior", ["class", "sample"])
def test_a_class_that_both_sides_exclude_is_absent_from_the_denominator_too(
    path: str, prior: str, normalizer: str
) -> None:
    s, t, table, labels, _, _ = batch()
    with torch.no_grad():
        s[:, 2], t[:, 2] = -torch.inf, -torch.inf
    moved = s.movedim(1, -1), t.movedim(1, -1)
    rows = torch.softmax(moved[1], -1) if prior == "sample" else table[labels]
    options = {"weight_power": 0.3, "normalizer": normalizer}
    value = functional.dense_gkl_divergence(s, t, table if prior == "class" else None, labels=labels, **options)
    assert_equal(value, functional.gkl_divergence(*moved, rows, **options), (s, t))
    assert value.isfinite()


@pytest.mark.parametrize("prior", ["class", "sample"])
@pytest.mark.parametrize("normalizer", ["weights", "row"])
def test_powers_that_underflow_do_not(path: str, prior: str, normalizer: str) -> None:
    s, t, table, labels, mask, keep = batch(masked="both")
    t = (0.05 * t).detach().requires_grad_()  # no probability near 1
    table = torch.softmax(0.05 * table, -1)
    options = {"weight_power": 800.0, "normalizer": normalizer, "ce_weight": 0.0}
    rows = torch.softmax(t.movedim(1, -1), -1) if prior == "sample" else table[labels.masked_fill(~keep, 0)]
    pixels = {"labels": labels, "ignore_index": 255, "mask": mask}
    value = functional.dense_gkl_divergence(s, t, table if prior == "class" else None, **pixels, **options)
    expected = functional.gkl_divergence(s.movedim(1, -1), t.movedim(1, -1), rows, mask=keep, **options)
    assert value > 0
    assert_equal(value, expected, (s, t), tolerance=1e-10)


@pytest.mark.parametrize("prior", ["class", "sample"])
def test_a_summed_normalizer_makes_shards_of_images_exact(path: str, prior: str) -> None:
    s, t, table, labels, mask, keep = batch(masked="both")
    table = table if prior == "class" else None
    whole = functional.dense_gkl_divergence(
        s, t, table, labels=labels, ignore_index=255, mask=mask, weight_power=0.3, mse_weight=2.0
    )
    parts = [(i, {"labels": labels[i], "ignore_index": 255, "mask": mask[i]}) for i in (slice(0, 2), slice(2, 3))]
    total = sum(functional.dense_gkl_normalizer(t[i], table, weight_power=0.3, **pixels) for i, pixels in parts)
    value = torch.zeros((), dtype=torch.float64)
    for i, pixels in parts:
        share = keep[i].sum() / keep.sum(dtype=torch.float64)
        value = value + share * functional.dense_gkl_divergence(
            s[i], t[i], table, weight_power=0.3, mse_weight=2.0, normalizer=total * share, **pixels
        )
    assert_equal(value, whole, (s, t))


# --- layouts, dtypes, modes -------------------------------------------------------------------------------


def test_memory_formats_and_crops_change_nothing(path: str) -> None:
    s, t, table, labels, _, _ = batch()
    options = {"labels": labels, "weight_power": 0.3}
    expected = functional.dense_gkl_divergence(s, t, table, **options)
    last = s.contiguous(memory_format=torch.channels_last), t.contiguous(memory_format=torch.channels_last)
    crop = [torch.nn.functional.pad(x, (1, 2, 3, 1))[..., 3:-1, 1:-2] for x in (s, t)]
    for sides in (last, crop):
        assert_equal(functional.dense_gkl_divergence(*sides, table, **options), expected, (s, t))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_dtypes_cost_their_rounding_alone(path: str, dtype: torch.dtype) -> None:
    s, t, table, labels, _, _ = batch()
    s, t = (x.detach().to(dtype).requires_grad_() for x in (s, t))
    wide = [x.detach().double().requires_grad_() for x in (s, t)]
    for function, options in (
        (functional.dense_gkl_divergence, {"prior": table.float(), "labels": labels, "weight_power": 0.3}),
        (functional.dense_kl_divergence, {}),
        (functional.dense_js_divergence, {}),
    ):
        value, expected = function(s, t, **options), function(*wide, **options)
        assert value.dtype == torch.float32
        assert torch.isclose(value.double(), expected, rtol=1e-5)
        for got, right in zip(torch.autograd.grad(value, (s, t)), torch.autograd.grad(expected, wide), strict=True):
            assert got.dtype == dtype
            assert torch.allclose(got.double(), right, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


def test_weights_and_the_cross_entropys_target_take_no_gradient(path: str) -> None:
    s, t, table, labels, _, _ = batch()
    table.requires_grad_()
    value = functional.dense_gkl_divergence(s, t, table, labels=labels, mse_weight=0.0)
    _, to_target, to_table = torch.autograd.grad(value, (s, t, table), materialize_grads=True)
    assert not to_target.any()
    assert not to_table.any()
    value = functional.dense_gkl_divergence(s.detach(), t, ce_weight=0.0)
    assert torch.autograd.grad(value, t)[0].any()


def test_a_teacher_under_inference_mode_is_a_target(path: str) -> None:
    s, t, table, labels, _, _ = batch()
    with torch.inference_mode():
        frozen = t.clone()
    value = functional.dense_gkl_divergence(s, frozen, table, labels=labels)
    assert_equal(value, functional.dense_gkl_divergence(s, t.detach(), table, labels=labels), (s,))


def test_second_derivatives_are_those_of_the_class_last_form(path: str) -> None:
    s, t, table, labels, _, _ = batch()
    moved = s.movedim(1, -1), t.movedim(1, -1)
    for value, expected in (
        (functional.dense_kl_divergence(s, t), functional.kl_divergence(*moved)),
        (
            functional.dense_gkl_divergence(s, t, table, labels=labels, weight_power=0.3),
            functional.gkl_divergence(*moved, table, labels=labels, weight_power=0.3),
        ),
    ):
        found, wanted = (
            sum((g**2).sum() for g in torch.autograd.grad(v, (s, t), create_graph=True)) for v in (value, expected)
        )
        assert_equal(found, wanted, (s, t))


def test_a_temperature_that_learns_takes_its_gradient() -> None:
    s, t, _, _, _, _ = batch()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = functional.dense_kl_divergence(s, t, temperature=temperature)
    expected = functional.kl_divergence(s.movedim(1, -1), t.movedim(1, -1), temperature=temperature)
    assert_equal(value, expected, (s, t, temperature))


def test_no_pixel_that_takes_part_gives_zero(path: str) -> None:
    s, t, table, labels, _, _ = batch()
    for value in (
        functional.dense_kl_divergence(s, t, mask=torch.zeros_like(labels, dtype=torch.bool)),
        functional.dense_gkl_divergence(s, t, table, labels=torch.full_like(labels, -100), weight_power=0.3),
    ):
        assert value == 0
        assert not any(g.any() for g in torch.autograd.grad(value, (s, t)))


@pytest.mark.parametrize("loss", ["kl", "js", "class", "sample"])
def test_a_compiler_captures_the_whole(loss: str) -> None:
    s, t, table, labels, _, _ = batch()
    given = {"class": (table,), "sample": ()}.get(loss)

    def measured(s: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        if given is None:
            return getattr(functional, f"dense_{loss}_divergence")(s, t, labels=labels)
        return functional.dense_gkl_divergence(s, t, *given, labels=labels, weight_power=0.3)

    captured = torch.compile(measured, backend="aot_eager", fullgraph=True)
    assert_equal(captured(s, t, labels), measured(s, t, labels), (s, t))


# --- mistakes ---------------------------------------------------------------------------------------------


def test_mistakes_are_told_in_one_line() -> None:
    s, t, table, labels, _, _ = batch()
    for message, mistake in (
        ("`labels` expected integers", lambda: functional.dense_gkl_divergence(s, t, table)),
        ("`labels` expected values", lambda: functional.dense_gkl_divergence(s, t, table, labels=labels + 5)),
        ("`mask` expected the shape", lambda: functional.dense_kl_divergence(s, t, mask=labels[0] == 0)),
        ("`mask` expected bool", lambda: functional.dense_kl_divergence(s, t, mask=labels)),
        ("`prior` expected the", lambda: functional.dense_gkl_divergence(s, t, table[:3], labels=labels)),
        ("`logits` expected the shape", lambda: functional.dense_kl_divergence(s[0, 0, 0], t[0, 0, 0])),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            mistake()


# --- memory -----------------------------------------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Records the elements of each tensor made that is larger than a tile."""

    def __init__(self, above: int) -> None:
        super().__init__()
        self.above, self.made = above, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given and made.numel() > self.above:
            self.made.append((str(func), made.numel()))
        return made


@pytest.mark.parametrize("loss", ["kl", "js", "class", "sample"])
def test_only_the_gradients_are_of_the_logits_size(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dense_tiles, "TILE_ELEMENTS", {"cpu": 4096})
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 16, 40, 40, generator=generator).requires_grad_() for _ in range(2))
    labels = torch.randint(16, (2, 40, 40), generator=generator)
    labels[:, :5] = 255
    pixels = {"labels": labels, "ignore_index": 255}
    with Largest(above=16 * 40 * 40 // 2) as forward:
        if loss in ("kl", "js"):
            value = getattr(functional, f"dense_{loss}_divergence")(s, t, **pixels)
        else:
            table = torch.softmax(torch.randn(16, 16), -1) if loss == "class" else None
            value = functional.dense_gkl_divergence(s, t, table, weight_power=0.3, **pixels)
    assert not forward.made
    with Largest(above=16 * 40 * 40 // 2) as backward:
        torch.autograd.grad(value, (s, t))
    assert [size for _, size in backward.made] == [s.numel(), t.numel()]


# --- the class prior --------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", MASKS)
def test_the_class_prior_observes_pixels_that_take_part(path: str, masked: str) -> None:
    s, _, _, labels, mask, keep = batch(masked=masked)
    dense, plain = ClassPrior(5, temperature=2.0), ClassPrior(5, temperature=2.0)
    dense.observe_dense(s, labels, ignore_index=255, mask=mask)
    plain.observe(flat(s)[keep.flatten()], labels[keep])
    assert torch.allclose(dense.pending, plain.pending, rtol=1e-12, atol=0)
    assert torch.equal(dense.counts, plain.counts)
