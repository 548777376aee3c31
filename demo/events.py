"""What all events of the views have in common."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr

from vitrail.demo.engine import import_libraries


# One event after the other: two forward passes at a time would share the same cores.
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
# Of an event of the page, for which the API has an endpoint of its own.
OF_THE_PAGE: dict[str, Any] = {**ONE_AT_A_TIME, "api_visibility": "private", "show_progress": "minimal"}

# Of an event that takes no time. Not `queue=False`, with which gradio forgets to tell that a `gr.State` has changed.
AT_ONCE: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}


def in_one_sentence(handler: Callable) -> Callable:
    """What the user has caused becomes a toast; anything else stays an error that the browser is told nothing of."""

    @wraps(handler)
    def handle(*arguments: Any) -> Any:
        with _toasts():
            return handler(*arguments)

    @wraps(handler)
    def handle_each(*arguments: Any) -> Iterator[Any]:
        with _toasts():
            yield from handler(*arguments)

    return handle_each if isgeneratorfunction(handler) else handle


def or_cleared(handler: Callable, *cleared: Any) -> Callable:
    """As `in_one_sentence`, and what an earlier event has shown gives way to `cleared`, a value for each output."""

    @wraps(handler)
    def handle(*arguments: Any) -> Iterator[Any]:
        with _toasts():
            try:
                yield handler(*arguments)
            except ValueError:
                yield cleared
                raise

    return handle


@contextmanager
def _toasts() -> Iterator[None]:
    import_libraries()
    try:
        yield
    except ValueError as error:
        from vitrail.modeling import InputError

        if not isinstance(error, InputError):
            raise
        raise gr.Error(str(error), title="Sorry", print_exception=False) from error
