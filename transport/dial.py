"""Dialling back: resolve, check against the allow-list, connect, handshake, retry.

The only file that opens outgoing sockets. Source: protocol section 7.2; overview rules 5
to 7. Each attempt resolves anew (while a broker or a pod restarts, its name may not resolve)
and dials the very address that was checked; of a name with several, each attempt the next.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

import tenacity

from dialback.errors import CallHomeForbiddenError, DialError, PublishError
from dialback.retries import with_retries
from dialback.scopes import Scope
from dialback.transport.address import Address, CallHomePolicy
from dialback.transport.connection import FrameConnection
from dialback.transport.idle import IdleConnections
from dialback.transport.messages import ResumeOffer
from dialback.transport.sender import LINGER, ResponseSender

_GONE: Final = frozenset({errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE})


@dataclass(frozen=True, slots=True, kw_only=True)
class DialSettings:
    """How hard to try.

    Attributes:
        attempts: Dial attempts in one delivery.
        total_timeout: Seconds for all attempts together.
        connect_timeout: Seconds for one attempt, name resolution and handshake included.
        send_timeout: Seconds without progress after which a write has failed.
        linger: Seconds to wait for the requester's FIN at the end.
        idle_timeout: Seconds that a connection is kept for the next stream; 0 keeps none.
    """

    attempts: int = 4
    total_timeout: float = 10.0
    connect_timeout: float = 5.0
    send_timeout: float = 60.0
    linger: float = LINGER
    idle_timeout: float = 0.0


@dataclass(frozen=True, slots=True)
class _Handshake:
    subject: str
    offer: ResumeOffer | None


class Dialer:
    """Opens response streams to requesters.

    Attributes:
        keeps: Whether connections are kept, for offers that say so.
    """

    def __init__(
        self,
        policy: CallHomePolicy,
        settings: DialSettings | None = None,
        *,
        on_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self._policy = policy
        self._settings = settings or DialSettings()
        self._on_retry = on_retry
        self._idle = IdleConnections(self._settings.idle_timeout)
        self.keeps = self._settings.idle_timeout > 0

    def close(self) -> None:
        """Close the connections that are kept."""
        self._idle.close()

    async def dial(
        self,
        address: Address,
        subject: str,
        *,
        total_timeout: float | None = None,
        offer: ResumeOffer | None = None,
    ) -> ResponseSender:
        """Connect to ``address`` and write the handshake for ``subject``.

        An offer that says so goes on a connection that was kept, if there is one; its
        ``dials`` are 0.

        Args:
            address: Where the requester listens.
            subject: The stream subject.
            total_timeout: Seconds for all attempts, if less than the settings allow.
            offer: Who dials, on a stream that its requester announced as resumable.

        Raises:
            CallHomeForbiddenError: If the address resolves outside the allow-list.
            DialError: If nobody could be reached after all attempts; ``gone`` says whether
                something answered that nobody listens.
        """
        if offer is not None and offer.reuse:
            sender = self.reuse(address, subject, offer)
            if sender is not None:
                return sender
        settings = self._settings
        limit = settings.total_timeout
        if total_timeout is not None:
            limit = min(limit, total_timeout)
        end = asyncio.get_running_loop().time() + limit
        handshake = _Handshake(subject, offer)
        attempts = 0

        async def attempt() -> ResponseSender:
            nonlocal attempts
            attempts += 1
            sender = await self._attempt(address, handshake, end, attempts)
            sender.dials = attempts
            return sender

        try:
            return await with_retries(attempt, lambda took: self._retrying(limit - took))
        except tenacity.RetryError as error:
            last = error.last_attempt.exception()
            assert isinstance(last, DialError)  # noqa: S101 -- the only kind that is retried
            made = error.last_attempt.attempt_number
            times = "1 attempt" if made == 1 else f"{made} attempts"
            raise DialError(f"{last} ({times})", gone=last.gone, attempts=made) from last

    def reuse(self, address: Address, subject: str, offer: ResumeOffer) -> ResponseSender | None:
        """Write the handshake on a connection that was kept; ``None`` if there is none.

        What :meth:`dial` does first. It waits for nothing, so nothing can come in between.
        """
        connection = self._idle.take(address)
        if connection is None:
            return None
        sender = self._sender(address, offer, connection)
        sender.dials = 0
        sender.send_handshake(subject, offer)  # it is open, so this raises nothing
        return sender

    def _sender(
        self,
        address: Address,
        offer: ResumeOffer | None,
        connection: FrameConnection | None = None,
    ) -> ResponseSender:
        settings = self._settings
        keep = offer is not None and offer.reuse
        sender = ResponseSender(
            send_timeout=settings.send_timeout,
            linger=settings.linger,
            connection=connection,
            keep=partial(self._idle.keep, address) if keep else None,
        )
        sender.address = str(address)
        return sender

    def _retrying(self, seconds: float) -> tenacity.AsyncRetrying:
        last = tenacity.stop_after_attempt(self._settings.attempts)
        return tenacity.AsyncRetrying(
            stop=last | tenacity.stop_before_delay(seconds),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2.0) + tenacity.wait_random(0, 0.1),
            retry=tenacity.retry_if_exception_type(DialError),
            before_sleep=lambda _: self._on_retry(),
        )

    async def _attempt(
        self, address: Address, handshake: "_Handshake", end: float, attempt: int
    ) -> ResponseSender:
        loop = asyncio.get_running_loop()
        left = max(0.001, min(self._settings.connect_timeout, end - loop.time()))
        sender = self._sender(address, handshake.offer)
        try:
            connecting = self._connect(sender.connection, address, attempt)
            if await Scope().run(connecting, within=left):
                sender.send_handshake(handshake.subject, handshake.offer)
                return sender
        except PublishError as error:
            sender.abort()
            raise DialError(f"dial {address}: {error}", gone=error.client_gone) from error
        except OSError as error:
            raise _dial_error(address, error) from error
        except asyncio.CancelledError:
            sender.abort()
            raise
        sender.abort()
        raise DialError(f"dial {address}: no answer in {left:.1f} s", gone=False)

    async def _connect(self, connection: FrameConnection, address: Address, attempt: int) -> str:
        """Open ``connection``; return the IP address it has been opened to."""
        ip = await self._resolve(address, attempt)
        await asyncio.get_running_loop().create_connection(lambda: connection, ip, address.port)
        return ip

    async def _resolve(self, address: Address, attempt: int) -> str:
        """Return an address of the host that may be dialled: with each attempt the next."""
        candidates = await _addresses_of(address)
        allowed = [candidate for candidate in candidates if self._policy.allows(candidate)]
        if not allowed:
            raise CallHomeForbiddenError(address.host, candidates[0])
        return allowed[(attempt - 1) % len(allowed)]


async def _addresses_of(address: Address) -> list[str]:
    literal = _literal(address.host)
    if literal:
        return [literal]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


@lru_cache(maxsize=1024)
def _literal(host: str) -> str:
    """Return the IP address that a host is written as, or "" if it is a name."""
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return ""


def _dial_error(address: Address, error: OSError) -> DialError:
    if isinstance(error, socket.gaierror):
        return DialError(f"dial {address}: name not resolved ({error.strerror})", gone=False)
    reason = error.strerror or str(error) or type(error).__name__
    return DialError(f"dial {address}: {reason}", gone=error.errno in _GONE)
