"""From the letters of the papers and of their public code to our names.

The papers' alpha (with a quarter) multiplies the weighted MSE and beta the cross-entropy. In all of the public code it
is the other way round: `beta` multiplies the weighted MSE (the quarter inside) and `alpha` the cross-entropy. `gamma`
is a power in the newer code and the weight of another term in the older adversarial one; T is here the temperature of
the class statistics and there that of the cross-entropy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

CodeBase = Literal[
    "paper",
    "adversarial-v1",
    "adversarial-v2",
    "distillation-v1",
    "distillation-v2",
    "long-tailed-v1",
    "long-tailed-v2",
    "semi-supervised",
]


class _Convention(NamedTuple):
    """Their name -> (our option, their default; None is required)."""

    loss: Literal["ikl", "gkl"]
    names: dict[str, tuple[str, float | bool | None]]


_AT = {"alpha": ("ce_weight", 4.0), "beta": ("mse_weight", 20.0), "T": ("prior_temperature", 4.0)}
_LT = {
    "alpha": ("ce_weight", None),
    "beta": ("mse_weight", None),
    "temperature": ("temperature", 1.0),
}
_CONVENTIONS: dict[str, _Convention] = {
    "paper": _Convention(
        "gkl",
        {
            "alpha": ("mse_weight", None),
            "beta": ("ce_weight", None),
            "gamma": ("weight_power", 1.0),
            "tau": ("prior_temperature", 1.0),
        },
    ),
    "adversarial-v1": _Convention("ikl", {**_AT}),
    "adversarial-v2": _Convention("gkl", {**_AT, "gamma": ("weight_power", 1.0)}),
    "distillation-v1": _Convention(
        "ikl",
        {
            "ALPHA": ("ce_weight", None),
            "BETA": ("mse_weight", None),
            "T": ("temperature", 1.0),
            "T2": ("prior_temperature", 100.0),
            "GI": ("prior", False),
            "WARMUP": ("ramp_epochs", 1.0),
        },
    ),
    "distillation-v2": _Convention(
        "gkl",
        {
            "ALPHA": ("ce_weight", None),
            "BETA": ("mse_weight", None),
            "GAMMA": ("weight_power", 1.0),
            "T": ("temperature", 1.0),
            "T2": ("prior_temperature", 1.0),
            "GI": ("prior", True),
            "WARMUP": ("ramp_epochs", 5.0),
        },
    ),
    "long-tailed-v1": _Convention("ikl", {**_LT, "T2": ("prior_temperature", 100.0), "GI": ("prior", False)}),
    "long-tailed-v2": _Convention(
        "gkl",
        {**_LT, "gamma": ("weight_power", 1.0), "T2": ("prior_temperature", 1.0), "GI": ("prior", True)},
    ),
    "semi-supervised": _Convention(
        "ikl",
        {
            "alpha": ("ce_weight", None),
            "beta": ("mse_weight", None),
            "T2": ("prior_temperature", 1.0),
            "temperature": ("temperature", 1.0),
            "GI": ("prior", False),
        },
    ),
}


class Translation(NamedTuple):
    """A loss of ours and its options: `GKLLoss(num_classes, **options)`, or `IKLLoss` where `loss` is "ikl"."""

    loss: Literal["ikl", "gkl"]
    options: dict[str, Any]


def translate(code_base: CodeBase, settings: Mapping[str, float | bool]) -> Translation:
    """Translate published settings, letter by letter, with that code base's defaults for what is not named.

    Args:
        code_base: whose letters: "paper" (both papers' formulas; alpha before the division by 4), or the public code
            of task "adversarial", "distillation", "long-tailed" in its IKL ("-v1") or GKL ("-v2") folder, or
            "semi-supervised".
        settings: their name -> value.

    Returns:
        The loss ("ikl" or "gkl") and its options. The weight of the whole term and that of the labels' cross-entropy
        are not part of it.

    Raises:
        ValueError: unknown code base or name, a required name missing, or a setting that has no counterpart.

    Example:
        >>> translate("paper", {"alpha": 20, "beta": 5, "tau": 4}).options["mse_weight"]
        20.0
        >>> translate("adversarial-v2", {"alpha": 5, "beta": 20}).options["mse_weight"]
        20.0
        >>> translate("distillation-v2", {"ALPHA": 1, "BETA": 16, "GAMMA": 0.05, "T": 4, "T2": 4, "WARMUP": 20}).loss
        'gkl'

    Reference:
        Formulas of arXiv 2305.13948 and 2503.08038 and the argument names of their public code.
    """
    if code_base not in _CONVENTIONS:
        raise ValueError(f"`code_base` expected one of {', '.join(_CONVENTIONS)}, got {code_base!r}")
    convention = _CONVENTIONS[code_base]
    _check_names(code_base, convention, settings)
    options: dict[str, Any] = {"prior": "class"}
    for theirs, (ours, default) in convention.names.items():
        value = settings.get(theirs, default)
        if ours == "prior":
            options["prior"] = "class" if value else "sample"
        else:
            options[ours] = int(value or 0) if ours == "ramp_epochs" else float(value or 0)
    if options.get("ramp_epochs") == 1:
        options["ramp_epochs"] = 0  # min(epoch / 1, 1) is no ramp
    if code_base == "semi-supervised" and options["temperature"] != 1:
        raise ValueError("`temperature` of 'semi-supervised' divides the target alone: only 1 has a counterpart")
    return Translation(convention.loss, options)


def _check_names(code_base: str, convention: _Convention, settings: Mapping[str, float | bool]) -> None:
    if code_base == "adversarial-v1" and "gamma" in settings:
        raise ValueError("`gamma` of 'adversarial-v1' weighs the AutoAugment view's term; it is no option of the loss")
    for name, value in settings.items():
        if not isinstance(value, (bool, int, float)) or (name == "WARMUP" and value != int(value)):
            raise ValueError(f"`settings` expected a number for {name!r} (whole epochs for 'WARMUP'), got {value!r}")
    unknown = [name for name in settings if name not in convention.names]
    if unknown:
        raise ValueError(f"`settings` of {code_base!r} expected {', '.join(convention.names)}, got {unknown[0]!r}")
    missing = [name for name, (_, default) in convention.names.items() if default is None and name not in settings]
    if missing:
        raise ValueError(f"`settings` of {code_base!r} expected {missing[0]!r}, which has no default there")
