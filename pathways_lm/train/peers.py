"""The processes of one program end together, each with one line that says why.

Every process keeps a connection to the first one. The kernel closes it when a process dies, however it dies, and finds
a machine that is gone by keep-alive probes within half a minute; neither needs the process watched to be awake. JAX's
own service would notice after its heartbeats, and ends a process in C++ without a word that names a step.
"""

import contextlib
import ctypes
import functools
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from jax._src import distributed  # There is no public way to the store that all processes share.

from pathways_lm.errors import UserError
from pathways_lm.train.pulse import PULSE

Arguments = TypeVar("Arguments")

_ADDRESS = "pathways_lm/peers"
# For a connection to be made, after JAX has brought all processes together.
_PATIENCE_SECONDS = 60
# For a process's end to be known to the others before the reason of an error is looked for in the error itself.
_GRACE_SECONDS = 3


class Peers:
    """Watches over the other processes from a thread of its own; the first process passes on what it learns."""

    def __init__(self, index: int, count: int, host: str):
        self.index, self.count, self._host = index, count, host
        self._leaving = threading.Lock()
        self._sockets: dict[int, socket.socket] = {}
        self._done: set[int] = set()

    def start(self) -> None:
        """Connects, and watches until the process ends."""
        store = distributed.global_state.client
        assert store is not None
        if self.index == 0:
            token = secrets.token_hex(16)
            listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=self.count)
            store.key_value_set(_ADDRESS, f"{listener.getsockname()[1]} {token}")
            watch: Callable[[], None] = functools.partial(self._watch_all, listener, token)
        else:
            port, _, token = store.blocking_key_value_get(_ADDRESS, _PATIENCE_SECONDS * 1000).partition(" ")
            connection = _kept_alive(socket.create_connection((self._host, int(port)), timeout=_PATIENCE_SECONDS))
            connection.settimeout(None)
            self._sockets[0] = connection
            _send(connection, {"process": self.index, "token": token})
            watch = self._watch_first
        threading.Thread(target=watch, name="peers", daemon=True).start()

    def done(self) -> None:
        """This process has nothing to do any more; its end is no loss."""
        self._tell_all({"done": self.index})

    def leave(self, code: int, why: str) -> NoReturn:
        """Says why, here and in all others, and ends all with the same code."""
        self._only_once()
        _say(why)
        self._tell_all({"left": self.index, "code": code, "why": why})
        self._end(code)

    def _watch_first(self) -> None:
        connection = self._sockets[0]
        for line in _lines(connection):
            self._take(json.loads(line))
        if 0 not in self._done:
            self._lost(0)

    def _watch_all(self, listener: socket.socket, token: str) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            buffers: dict[int, bytes] = {}
            while True:
                for key, _ in selector.select():
                    if key.fileobj is listener:
                        self._welcome(listener, token, selector)
                        continue
                    process, connection = key.data, self._sockets[key.data]
                    received = _receive(connection)
                    *lines, buffers[process] = (buffers.get(process, b"") + received).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
                    if not received:
                        selector.unregister(connection)
                        connection.close()
                        del self._sockets[process]
                        if process not in self._done:
                            self._lost(process)

    def _welcome(self, listener: socket.socket, token: str, selector: selectors.BaseSelector) -> None:
        connection, _ = listener.accept()
        connection.settimeout(_PATIENCE_SECONDS)
        try:
            said = json.loads(next(_lines(connection), b"{}"))
        except ValueError:
            said = {}
        if said.get("token") != token:
            # Whoever knocks at every port of a network.
            connection.close()
            return
        connection.settimeout(None)
        self._sockets[said["process"]] = _kept_alive(connection)
        selector.register(connection, selectors.EVENT_READ, said["process"])

    def _take(self, message: dict[str, Any]) -> None:
        if "done" in message:
            self._done.add(message["done"])
        elif "lost" in message:
            self._lost(message["lost"])
        else:
            self._only_once()
            _say(f"process {message['left']} of {self.count} ended: {message['why']}")
            self._tell_all(message)
            self._end(message["code"])

    def _lost(self, process: int) -> NoReturn:
        self._only_once()
        doing = "" if PULSE.phase == "step" else f" ({PULSE.phase})"
        _say(
            f"process {process} of {self.count} was lost after step {PULSE.step}{doing}: killed, out of memory, or its "
            "machine is gone; start all processes again with the same command, and they go on from the last checkpoint"
        )
        self._tell_all({"lost": process})
        self._end(os.EX_TEMPFAIL)

    def _tell_all(self, message: dict[str, Any]) -> None:
        for connection in list(self._sockets.values()):
            _send(connection, message)

    def _only_once(self) -> None:
        """Lets the first thread that has a reason go on, and keeps any other until the process ends."""
        self._leaving.acquire()

    def _end(self, code: int) -> NoReturn:
        """Without what Python and JAX do at the end, which waits for all processes.

        With the first process goes JAX's service, without which the others would be ended before they have spoken.
        """
        _flush()
        if self.index == 0:
            until = time.monotonic() + _GRACE_SECONDS
            for connection in list(self._sockets.values()):
                connection.settimeout(max(until - time.monotonic(), 0.01))
                while _receive(connection):
                    pass
        os._exit(code)


_peers: Peers | None = None


def watch_peers() -> None:
    """Begins to watch over the other processes. Does nothing in a program of one process."""
    global _peers
    joined = distributed.global_state
    if joined.num_processes == 1:
        return
    assert joined.coordinator_address is not None
    _delay_abort()
    _peers = Peers(joined.process_id, joined.num_processes, joined.coordinator_address.rpartition(":")[0].strip("[]"))
    _peers.start()


def leave(code: int, why: str) -> NoReturn:
    """Says why, in one line, and ends this process and all others at once. Nothing is awaited or written any more."""
    if _peers is not None:
        _peers.leave(code, why)
    _say(why)
    _flush()
    os._exit(code)


def leaving_together(command: Callable[[Arguments], int]) -> Callable[[Arguments], int]:
    """Wraps a command that several processes may run: an error in one ends all. In one process it is just raised."""

    @functools.wraps(command)
    def together(arguments: Arguments) -> int:
        try:
            code = command(arguments)
        except (Exception, KeyboardInterrupt) as error:
            if _peers is None:
                raise
            # Where another process died, what fails here is a consequence, and the thread above tells it.
            time.sleep(_GRACE_SECONDS)
            if isinstance(error, UserError):
                leave(2, str(error))
            if isinstance(error, KeyboardInterrupt):
                leave(130, "interrupted")
            traceback.print_exc()
            leave(1, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
        if _peers is not None:
            _peers.done()
        return code

    return together


def _delay_abort() -> None:
    """Lets this module's thread speak before JAX aborts the process.

    When the first process dies, JAX's service dies with it, and a thread of JAX's client calls abort() within
    milliseconds. The handler given here is C's own sleep(), which is called with the signal's number: it holds that
    thread for SIGABRT = 6 seconds, needs nothing of Python, and then the process is aborted as before.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal.restype = ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Probes after ten seconds of silence; dead after three unanswered ones."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        # Some have other names on other systems.
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    # One that is gone is found where it is read.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> bytes:
    """What has come; nothing at the end of the connection, however it ended."""
    try:
        return connection.recv(4096)
    except OSError:
        return b""


def _lines(connection: socket.socket) -> Iterator[bytes]:
    """Whole lines, until the other end is gone."""
    buffer = b""
    while received := _receive(connection):
        *lines, buffer = (buffer + received).split(b"\n")
        yield from lines


def _say(text: str) -> None:
    print(f"pathways-lm: {text}", file=sys.stderr, flush=True)


def _flush() -> None:
    # Whoever read them may be gone.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
