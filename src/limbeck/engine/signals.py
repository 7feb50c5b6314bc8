"""Stop on a signal once the step is done and the state is saved; stop at once on a second Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType

STOPPING: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
if sys.platform != "win32":
    STOPPING += (signal.SIGUSR1,)


class StopRequest:
    """Context in which the stopping signals set `signal_name` and do nothing else.

    After the first SIGINT the next one raises KeyboardInterrupt, as ever. Outside the main thread, where Python
    cannot handle signals, the context does nothing.

    Attributes:
        signal_name: Name of the signal that came, such as "SIGTERM", or None.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __enter__(self) -> StopRequest:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in STOPPING}
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
