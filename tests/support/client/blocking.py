"""Lets one test drive the blocking and the asyncio client: asyncio objects behind blocking calls.

Their event loop runs in a thread of its own, as it would in a program.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import presage

WRAPPED = (presage.AsyncClient, presage.AsyncSession, presage.AsyncControlLoop)
Connect = Callable[..., Any]


class Blocking:
    """`target` with every method run to its end on `loop`."""

    def __init__(self, target: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._target, self._loop = target, loop

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._target, name)
        return self._blocking(attribute) if callable(attribute) else attribute

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._blocking(self._target.__aexit__)(*exception)

    def __repr__(self) -> str:
        return repr(self._target)

    def _blocking(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*arguments: Any, **named: Any) -> Any:
            result = method(*arguments, **named)
            return await result if inspect.isawaitable(result) else result

        def call(*arguments: Any, **named: Any) -> Any:
            result = asyncio.run_coroutine_threadsafe(run(*arguments, **named), self._loop).result(30)
            return Blocking(result, self._loop) if isinstance(result, WRAPPED) else result

        return call


@contextmanager
def event_loop_thread() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="test-event-loop")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextmanager
def connector(kind: str) -> Iterator[Connect]:
    """A way to open clients of a kind, "blocking" or "asyncio", that all look like `presage.Client`."""
    if kind == "blocking":
        yield presage.Client
        return
    with event_loop_thread() as loop:

        def connect(*arguments: Any, **named: Any) -> Any:
            return Blocking(presage.AsyncClient(*arguments, **named), loop)

        yield connect
