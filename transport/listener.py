"""The requester's listener: one TCP port per process, a table of registered subjects.

The only file that opens listening sockets. Source: protocol section 8.1, 8.2 and 9.
"""

import asyncio
import ipaddress
import os
import socket
import uuid
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import ifaddr

from dialback.errors import ConfigError, ConnectionInfoError
from dialback.transport.address import Address, parse_address
from dialback.transport.incoming import IncomingConnection
from dialback.transport.line import Interruption, Resumable
from dialback.transport.messages import CallHomeHandshake, PayloadCodec, StreamType
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.two_part import MAX_CONTROL_BYTES, MAX_DATA_BYTES, FrameLimits

HANDSHAKE_TIMEOUT: Final = 10.0
"""Seconds for the first frame of a connection, as Dynamo 1.6 has it."""
_BACKLOG: Final = 1024  # connections that wait in the kernel
_ACCEPTED_AT_ONCE: Final = 16  # in one turn of the loop
_CLOSING: Final = 1.0  # seconds for the connections that are left to close by themselves
_EVERYWHERE: Final = "0.0.0.0"  # noqa: S104 -- only when asked for


class ResponseListener:
    """Accepts call-home connections and hands each to the stream it names."""

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        advertise: str = "",
        max_item_bytes: int = MAX_DATA_BYTES,
        handshake_timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        """Prepare; nothing is opened before :meth:`start`.

        Args:
            host: IP address, host name or network interface to listen on.
            port: Port, 0 for any free one.
            advertise: ``host`` or ``host:port`` that workers dial, if another one than we
                listen on (NAT, a published container port).
            max_item_bytes: Largest item accepted.
            handshake_timeout: Seconds a connection may take for its handshake.
        """
        self._host = host
        self._port = port
        self._advertise = advertise
        self._limits = FrameLimits(header=MAX_CONTROL_BYTES, data=max_item_bytes)
        self._handshake_timeout = handshake_timeout
        self._server: asyncio.Server | None = None
        self._registered: dict[str, ResponseReceiver] = {}
        self._connections: set[IncomingConnection] = set()
        self.address: Address | None = None

    async def start(self) -> Address:
        """Listen, and return the address to write into requests.

        Raises:
            ConfigError: If the host or interface is not this machine's, the port is taken, or
                the advertised address is none.
        """
        advertised = self._advertised()
        host = interface_address(self._host) or self._host or _EVERYWHERE
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: self._incoming().connection, host, self._port, backlog=_ACCEPTED_AT_ONCE
            )
        except OSError as error:
            raise ConfigError(
                f"cannot listen for answers on {host}:{self._port}: {error.strerror or error};"
                " set DIALBACK_RESPONSE_HOST and DIALBACK_RESPONSE_PORT"
            ) from error
        _lengthen_backlog(self._server)
        _started.add(self)
        bound = self._server.sockets[0].getsockname()
        name, port = advertised
        self.address = Address(name or _dialable(bound[0]), port or bound[1])
        return self.address

    def _advertised(self) -> tuple[str, int]:
        """Return host and port to advertise; empty and 0 where the bound ones are meant."""
        if self._advertise.count(":") != 1 and "]:" not in self._advertise:
            return self._advertise.strip("[]"), 0
        try:
            address = parse_address(self._advertise)
        except ConnectionInfoError as error:
            raise ConfigError(f"{error}; set DIALBACK_ADVERTISE to host or host:port") from error
        return address.host, address.port

    def register(
        self,
        codec: PayloadCodec,
        *,
        resume: Resumable | None = None,
        on_interruption: Callable[[Interruption], None] | None = None,
    ) -> ResponseReceiver:
        """Register a new, unguessable stream subject. Do it before the request is published.

        Args:
            codec: Codec of the items.
            resume: For a stream that goes on when its worker is lost.
            on_interruption: Called for each worker that is lost.
        """
        receiver = ResponseReceiver(
            str(uuid.uuid4()),
            codec,
            on_settled=self._settled,
            resume=resume,
            on_interruption=on_interruption,
        )
        self._registered[receiver.subject] = receiver
        return receiver

    @property
    def registered(self) -> int:
        """Subjects that a worker may dial."""
        return len(self._registered)

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return len(self._connections)

    async def close(self) -> None:
        """Stop listening; kill the streams that are left."""
        for receiver in list(self._registered.values()):
            receiver.kill()
        for incoming in list(self._connections):
            incoming.close()
        if self._server is not None:
            self._server.close()
        await self._wait_closed()  # a worker that was killed closes first
        for incoming in list(self._connections):
            incoming.connection.abort()
        await self._wait_closed()

    def descriptors(self) -> list[int]:
        """Return the numbers of the files that are open: of its ports and its connections."""
        ports = self._server.sockets if self._server is not None else ()
        numbers = [port.fileno() for port in ports]
        numbers += [incoming.connection.descriptor for incoming in self._connections]
        return [number for number in numbers if number >= 0]

    async def _wait_closed(self) -> None:
        waiting = (incoming.connection.wait_closed(_CLOSING) for incoming in self._connections)
        await asyncio.gather(*waiting)

    def _incoming(self) -> IncomingConnection:
        incoming = IncomingConnection(
            self._claim,
            on_closed=self._connections.discard,
            limits=self._limits,
            handshake_timeout=self._handshake_timeout,
        )
        self._connections.add(incoming)
        return incoming

    def _claim(self, handshake: CallHomeHandshake) -> ResponseReceiver | None:
        """Return the stream that a handshake names, or ``None`` to refuse it."""
        if handshake.stream_type is not StreamType.RESPONSE:
            return None
        return self._registered.get(handshake.subject)

    def _settled(self, receiver: ResponseReceiver) -> None:
        """No further worker may serve the stream: the subject is spent."""
        self._registered.pop(receiver.subject, None)


_started: Final[weakref.WeakSet[ResponseListener]] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: let go of the parent's ports and connections.

    A connection is closed when every process that has it has closed it; the child may live long,
    and the worker would wait for the end as long. The numbers stay in use, for a file that does
    nothing: the parent's objects are here, too, and may close them once more.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for listener in list(_started):
        for number in listener.descriptors():
            with suppress(OSError):
                os.dup2(nothing, number, inheritable=False)
    os.close(nothing)


if hasattr(os, "register_at_fork"):  # where there is no fork there is nothing to do
    os.register_at_fork(after_in_child=_let_go)


def _lengthen_backlog(server: asyncio.Server) -> None:
    """Let more connections wait in the kernel than are accepted in one turn of the loop.

    For asyncio both are one number. But with no file descriptor left it logs a traceback for each
    connection that it would accept in one turn.
    """
    for port in server.sockets:
        with port.dup() as same:
            same.listen(_BACKLOG)


def interface_address(name: str) -> str | None:
    """Return the address of a network interface, IPv4 first; ``None`` if none has that name."""
    for adapter in ifaddr.get_adapters():
        if adapter.name != name:
            continue
        addresses = [ip.ip if isinstance(ip.ip, str) else ip.ip[0] for ip in adapter.ips]
        usable = [ip for ip in addresses if not ipaddress.ip_address(ip).is_link_local]
        usable.sort(key=lambda ip: ":" in ip)
        return usable[0] if usable else None
    return None


def local_address_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to ``host`` (no packet is sent).

    What a worker that talks to the same server can most likely dial. Loopback if the
    server is on loopback or cannot be resolved.
    """
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def _dialable(host: str) -> str:
    """Replace the unspecified address, which nobody can dial, by this machine's."""
    if host == _EVERYWHERE:
        return local_address_towards("192.0.2.1", 9)  # TEST-NET: names no host, picks a route
    if host == "::":  # IPv6 only, as asyncio opens it
        address = local_address_towards("2001:db8::1", 9)  # RFC 3849, likewise
        return address if ":" in address else "::1"
    return host
