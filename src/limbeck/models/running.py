"""How a network is run: in which precision, and through `torch.compile` or as it is."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import torch
from torch import nn

from limbeck.errors import UserError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import FunctionType

Precision: TypeAlias = Literal["same", "fp32", "bf16"]


def arithmetic(device: str, precision: Precision) -> AbstractContextManager[Any]:
    """Return a context in which networks compute in a precision, whatever they compute in around it.

    Args:
        device: Type of the device, such as cuda.
        precision: "same" changes nothing; "fp32" switches autocast off, "bf16" on.
    """
    if precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    if precision == "fp32" and torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


class Compiled(nn.Module):
    """A network that is called through `torch.compile`. The network itself stays what it is, and so does its state.

    torch.compile keeps what it has captured by code object, eight captures of each, and does not look whether a
    network of the same class has other hooks. So each of these has a code object of its own. Each batch size is
    captured by itself: then what is computed does not depend on the sizes that came before, and a run can be resumed.

    Args:
        network: The network. Hooks on its modules are captured if they are set before the first call.
        option: The option that asked for this, for the message where it cannot be done.
    """

    def __init__(self, network: nn.Module, option: str) -> None:
        super().__init__()
        self.module = network
        self._option = option

        def call(*inputs: Any) -> Any:
            return network(*inputs)

        own = cast("FunctionType", call)
        own.__code__ = own.__code__.replace(co_name=f"call_{type(network).__name__}")
        self._call = torch.compile(own, dynamic=False)

    def forward(self, *inputs: Any) -> Any:
        """Return what the network returns.

        Raises:
            UserError: The network cannot be compiled here.
        """
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._call(*inputs)
        except TorchDynamoException as error:
            lines = [line.strip() for line in str(error).splitlines()]
            why = " ".join([line for line in lines if line and not line.startswith("Set TORCH")][:2])  # who, and what
            raise UserError(
                f"`{self._option}`: torch.compile cannot compile the network here ({why}); set it to false"
            ) from error
