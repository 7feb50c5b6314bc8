"""Claims about the module of transport: its cost by path, checkpoints, what a weight of 0 leaves out, its term."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_wasserstein import batch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twins import gradients

from limbeck import WKDLogitLoss
from limbeck.config_terms import TermOptions
from limbeck.config_terms_transport import TRANSPORT_TERMS, WKDLogitTerm


def cost_of(classes: int = 7) -> Tensor:
    return batch(classes=classes)[-1].float()


# --- a cost by path -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [str, Path])
def test_a_cost_by_path_is_the_cost_in_the_file(kind: type, tmp_path: Path) -> None:
    path = tmp_path / "interrelations.safetensors"
    save_file({"cost": cost_of(), "similarity": torch.eye(7)}, path, metadata={"kind": "classifier"})
    student, target, labels, _ = batch()
    assert torch.equal(WKDLogitLoss(kind(path)).cost, cost_of())
    assert WKDLogitLoss(kind(path))(student, target, labels) == WKDLogitLoss(cost_of())(student, target, labels)


def test_a_cost_by_path_is_checked_as_a_tensor_is(tmp_path: Path) -> None:
    save_file({"cost": torch.eye(3)}, tmp_path / "similarity.safetensors")
    with pytest.raises(ValueError, match="`cost` expected a diagonal of 0, got 1"):
        WKDLogitLoss(tmp_path / "similarity.safetensors")


def test_a_file_without_a_cost_is_refused_in_one_line(tmp_path: Path) -> None:
    save_file({"similarity": torch.eye(3), "weights": torch.eye(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"a tensor named `cost`, got .*other.safetensors with similarity, weights$"):
        WKDLogitLoss(tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    for name in ("damaged.safetensors", "missing.safetensors"):
        with pytest.raises(ValueError, match=f"`cost` expected a safetensors file, got .*{name}: "):
            WKDLogitLoss(tmp_path / name)


def test_without_safetensors_a_path_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'reading a.safetensors needs `safetensors`: pip install "limbeck\[cli\]"'):
        WKDLogitLoss("a.safetensors")


# --- checkpoints ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (1.3 * (1 - torch.eye(3)), "`reg` expected at least 0.01625 .* got 0.01; "),
        (torch.full((3, 3), torch.nan), "`cost` expected finite"),
        (torch.eye(3), "`cost` expected a diagonal of 0"),
        (torch.ones(3, 3).triu(1), "`cost` expected a symmetric"),
    ],
)
def test_a_cost_of_a_checkpoint_is_checked_as_the_constructor_checks(cost: Tensor, message: str) -> None:
    loss = WKDLogitLoss(0.6 * (1 - torch.eye(3)), reg=0.01)
    with pytest.raises(ValueError, match=message):
        loss.load_state_dict({"cost": cost})


def test_a_refused_checkpoint_leaves_the_module_as_it_was() -> None:
    student, target, labels, _ = batch(classes=3)
    loss = WKDLogitLoss(0.6 * (1 - torch.eye(3)), reg=0.01)
    before = loss(student, target, labels)
    with pytest.raises(ValueError, match="`reg`"):
        loss.load_state_dict({"cost": 1.3 * (1 - torch.eye(3))})
    assert loss(student, target, labels) == before
    assert torch.equal(loss.cost, 0.6 * (1 - torch.eye(3)))


def test_a_checkpoint_inside_another_module_is_checked_too() -> None:
    whole = torch.nn.ModuleDict({"loss": WKDLogitLoss(0.6 * (1 - torch.eye(3)), reg=0.01)})
    with pytest.raises(ValueError, match=r"`reg` expected at least 0.01625"):
        whole.load_state_dict({"loss.cost": 1.3 * (1 - torch.eye(3))})


def test_rounding_errors_of_a_cost_are_removed_whichever_way_it_comes() -> None:
    exact = 0.6 * (1 - torch.eye(3))
    exact[0, 1] = exact[1, 0] = 0.0
    rounded = exact + 1e-6 * torch.tensor([[1.0, -1.0, 0.0], [-1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    loaded = WKDLogitLoss(0.3 * (1 - torch.eye(3)))
    loaded.load_state_dict({"cost": rounded})
    for loss in (WKDLogitLoss(rounded), loaded):
        assert torch.equal(loss.cost, exact)
        assert torch.equal(loss.kernel, WKDLogitLoss(exact).kernel)
    assert rounded.min() < 0  # what the caller holds is as it was


# --- weights --------------------------------------------------------------------------------------------------


class Operations(TorchDispatchMode):
    """The names of the operations made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("left_out", "kept"), [("transport", "target"), ("target", "transport")])
def test_a_term_without_weight_is_not_computed(left_out: str, kept: str) -> None:
    student, target, labels, _ = batch()
    loss = WKDLogitLoss(cost_of(), **{f"{left_out}_weight": 0.0, f"{kept}_weight": 3.0})
    whole = WKDLogitLoss(cost_of())
    with Operations() as made:
        value = loss(student, target, labels)
    with Operations() as all_made:
        terms = whole.terms(student, target, labels)
    assert value == 3 * getattr(terms, kept)
    assert ("mm" in made.names) == (kept == "transport")
    assert len(made.names) < len(all_made.names)


def test_two_terms_of_one_recipe_add_up_to_the_loss() -> None:
    student, target, labels, _ = batch()
    fading, constant, whole = (
        WKDLogitLoss(cost_of(), target_weight=target_weight, transport_weight=transport_weight)
        for target_weight, transport_weight in ((0.0, 600.0), (1.0, 0.0), (1.0, 600.0))
    )
    parts = fading(student, target, labels) + constant(student, target, labels)
    assert torch.isclose(parts, whole(student, target, labels), rtol=1e-15)


def test_without_any_weight_the_loss_is_0_and_can_still_be_derived() -> None:
    student, target, labels, _ = batch()
    value = WKDLogitLoss(cost_of(), target_weight=0.0, transport_weight=0.0)(student, target, labels)
    assert value == 0
    assert not gradients(value, student)[0].any()


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient": "exact"}, "`gradient` expected 'unrolled' or 'implicit', got 'exact'"),
        ({"gradient": "implicit", "mode": "published"}, "`gradient` expected 'unrolled' in mode 'published'"),
        ({"transport_weight": -1.0}, "`transport_weight`"),
    ],
)
def test_an_option_that_is_none_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WKDLogitLoss(cost_of(), **options)


def test_the_term_has_the_module_s_options_and_where_the_cost_comes_from() -> None:
    of_the_run = {"interrelations", "sharpness"}
    term = {
        name: field.default
        for name, field in WKDLogitTerm.model_fields.items()
        if name not in set(TermOptions.model_fields) | of_the_run
    }
    parameters = list(inspect.signature(WKDLogitLoss).parameters.values())[1:-1]
    assert list(term.items()) == [(parameter.name, parameter.default) for parameter in parameters]
    assert of_the_run < set(WKDLogitTerm.model_fields)
    assert list(TRANSPORT_TERMS) == [WKDLogitTerm.model_fields["name"].default]


def test_repr_names_every_option() -> None:
    shown = repr(WKDLogitLoss(cost_of(), gradient="implicit", iterations=300))
    for name in list(inspect.signature(WKDLogitLoss).parameters)[1:-1]:
        assert f"{name}=" in shown
