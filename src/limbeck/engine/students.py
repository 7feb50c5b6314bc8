"""The students of a comparison that a user's function builds: the same weights for a seed, whatever the loss."""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from limbeck.data.user import RandomState
from limbeck.engine.given import fingerprint
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

WAY_OUT = "pass a function that builds a new network each time, such as student=lambda: Net()"


class Students:
    """Builds students under a seeded random state.

    Args:
        build: Returns a new module; is called with `seed=` if it has a parameter of that name, else with nothing.

    Raises:
        UserError: It is a module, or no function of these.
    """

    def __init__(self, build: Callable[..., nn.Module]) -> None:
        if isinstance(build, nn.Module):
            raise UserError(f"`student` expected a function, got a module ({type(build).__name__}); {WAY_OUT}")
        try:
            parameters = inspect.signature(build).parameters.values()
        except (TypeError, ValueError) as error:
            raise UserError(f"`student` expected a function, got {type(build).__name__}; {WAY_OUT}") from error
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for each in parameters:
            if each.default is each.empty and each.kind not in variable and each.name != "seed":
                raise UserError(f"`student` expected a function of nothing or of `seed`, got one of `{each.name}`")
        self._build = build
        self._takes_seed = any(each.name == "seed" for each in parameters)
        self._first_weights: dict[int, str] = {}
        self._last: weakref.ref[nn.Module] | None = None

    def new(self, seed: int) -> nn.Module:
        """Return a new student of a seed.

        Raises:
            UserError: The function returned no module, or one with other weights than the last time for this seed.
        """
        arguments: dict[str, Any] = {"seed": seed} if self._takes_seed else {}
        with RandomState(seed).entered():
            model = self._build(**arguments)
        if not isinstance(model, nn.Module):
            raise UserError(f"`student` expected to return a torch.nn.Module, got {type(model).__name__}; {WAY_OUT}")
        if self._last is not None and self._last() is model:
            raise UserError(f"`student` expected to return a new network each time, got the same one twice; {WAY_OUT}")
        self._last = weakref.ref(model)
        weights = fingerprint(model, "student")
        if self._first_weights.setdefault(seed, weights) != weights:
            raise UserError(
                f"`student` expected the same first weights whenever it is called for seed {seed}, got others, so the "
                f"losses could not be compared; {WAY_OUT}, and draw from torch's generator"
            )
        return model
