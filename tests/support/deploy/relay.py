"""A network between a robot and a service that can be made to stall and to break: a TCP relay on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress


class Relay:
    """Passes bytes on while it flows. Made by `relay`."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._flows = threading.Event()
        self._flows.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """host:port to dial instead of the target's."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def stall(self) -> None:
        """From now on nothing passes, and nobody is told."""
        self._flows.clear()

    def flow(self) -> None:
        """What was held back passes, and all that follows."""
        self._flows.set()

    def cut(self) -> None:
        """Break every connection there is; new ones may be made."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._flows.set()

    def lead_to(self, target: str) -> None:
        """Connections made from now on go to another host:port."""
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError), closing(sink):
            while heard := source.recv(65536):
                self._flows.wait()
                sink.sendall(heard)


@contextmanager
def relay(target: str) -> Iterator[Relay]:
    """A relay to host:port."""
    between = Relay(target)
    try:
        yield between
    finally:
        between.close()
