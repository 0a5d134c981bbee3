"""Requests to stop, each a file in the directory of what is to stop: by `vaegen stop`, or for a signal to a driver."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from vaegen_ray.errors import StorageError
from vaegen_ray.storage import Location

MEANWHILE_EVERY_S = 1.0


def is_asked_to_stop(stop_request: Location) -> bool:
    """Whether the file is there; not where its store does not answer: the next look sees it."""
    try:
        return stop_request.exists()
    except StorageError:
        return False


def pass_on(stop_request: Location, to: Location) -> None:
    """Where the one is there, make the other, once: the stop of a search or a comparison is that of its runs."""
    if stop_request.exists() and not to.exists():
        to.write_text(str(int(signal.SIGTERM)))


@contextmanager
def stop_on_signal(stop_request: Location) -> Iterator[None]:
    """Turn SIGTERM and Ctrl-C into a request to stop; a second Ctrl-C leaves at once.

    Outside of the main thread, which alone hears signals, nothing.
    """

    def request(number: int, _frame: object) -> None:
        stop_request.write_text(str(number))
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_thread(action: Callable[[], Any], meanwhile: Callable[[], None] = lambda: None) -> Any:
    """Run ``action`` in a thread, because the main thread has signals to handle; re-raise what it raises.

    ``meanwhile`` is called again and again until it ends.
    """
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            outcome.append(action())
        except BaseException as error:  # noqa: BLE001 (handed to the main thread as it is)
            failure.append(error)

    thread = threading.Thread(target=body, name="ray-train", daemon=True)
    thread.start()
    next_look_s = 0.0
    while thread.is_alive():
        thread.join(0.2)
        if time.monotonic() >= next_look_s:
            meanwhile()
            next_look_s = time.monotonic() + MEANWHILE_EVERY_S
    if failure:
        raise failure[0]
    return outcome[0]
