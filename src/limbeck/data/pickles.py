"""Dictionaries of arrays from pickle files, without running what a pickle may ask for.

A pickle is a program, and `pickle.load` runs it. The reader here gives it the few names that an array is made of, and
nothing of theirs either: small stand-ins take the arguments and keep them. Any other name is refused before anything
is called.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import IO


class Refused(pickle.UnpicklingError):
    """A pickle asks for something that an array does not need. Nothing of it was called."""


class PickledArray:
    """What a pickle says of a numpy array.

    Attributes:
        shape: Its shape.
        kind: numpy's letters of its dtype, such as "u1".
        fortran: Whether the first axis runs fastest.
        data: The bytes.
    """

    shape: tuple[int, ...]
    kind: str
    fortran: bool
    data: bytes

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Keep the state that numpy.ndarray would be given."""
        _version, self.shape, dtype, self.fortran, self.data = state
        self.kind = dtype.kind


class _PickledDtype:
    """What a pickle says of a numpy dtype."""

    def __init__(self, kind: bytes | str, *_copy_and_align: object) -> None:
        self.kind = _text(kind)

    def __setstate__(self, state: object) -> None:
        """Drop byte order and alignment, which mean nothing for bytes; no other dtype is asked for."""


def _empty_array(*_class_shape_kind: object) -> PickledArray:
    """Stand for numpy's `_reconstruct`, which makes an array that its state is then put into."""
    return PickledArray()


def _latin1(text: str, encoding: str) -> bytes:
    """Stand for `_codecs.encode`, by which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise Refused(f"an encoding `{encoding}`")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy._core.multiarray", "_reconstruct"): _empty_array,  # its name in numpy 2
    ("numpy", "ndarray"): PickledArray,
    ("numpy", "dtype"): _PickledDtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle._Unpickler):
    """The unpickler in Python: the one in C makes room for 2³¹ memos, 34 GB, when a file of ten bytes asks for it."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        if (module, name) not in _STAND_INS:
            raise Refused(f"`{module}.{name}`")
        return _STAND_INS[module, name]


def load_dictionary(file: IO[bytes]) -> dict[str, Any]:
    """Read a pickled dictionary of lists, numbers, text and arrays.

    Args:
        file: Open for reading; of Python 2 or 3.

    Returns:
        The dictionary; its keys are text, arrays are `PickledArray`, text of Python 2 is bytes.

    Raises:
        Refused: The pickle asks for anything else; nothing was called.
        Exception: Of almost any kind, as pickle has it, if the file is damaged or cut off.
    """
    content = _Unpickler(file, encoding="bytes").load()
    if not isinstance(content, dict):
        raise pickle.UnpicklingError(f"expected a dictionary, got {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(word: bytes | str) -> str:
    return word.decode("latin1") if isinstance(word, bytes) else str(word)
