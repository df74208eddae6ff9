"""Addresses of the back-channel: read, written, and judged. No I/O.

Source: protocol section 9 (``host:port``, IPv6 with or without brackets) and overview
rule 7 (the call-home address comes from the message, so an allow-list guards it).
"""

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, TypeAlias

import msgspec
from typing_extensions import override

from dialback.errors import ConfigError, ConnectionInfoError

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_PORT: Final = 65535
_MAX_PORT_DIGITS: Final = 5
_MAX_KNOWN: Final = 1024  # addresses that are remembered
_MAX_NAME: Final = 254  # RFC 1035, with a final dot; the codec takes 0.3 s for 100 kB

DEFAULT_CALL_HOME_NETWORKS: Final = (
    "127.0.0.0/8",
    "::1/128",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fc00::/7",
)
"""Loopback, RFC 1918 and RFC 4193."""

_NEVER: Final = tuple(
    ipaddress.ip_network(text)
    for text in (
        "169.254.0.0/16",  # RFC 3927 link-local; cloud metadata lives at 169.254.169.254
        "fe80::/10",  # RFC 4291 link-local
        "fd00:ec2::254/128",  # metadata over IPv6
        "0.0.0.0/8",
        "::/128",
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
    )
)


class Address(msgspec.Struct, frozen=True):
    """Where a requester listens.

    Attributes:
        host: Name or IP literal, without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    @override
    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=_MAX_KNOWN)  # few requesters, many requests
def parse_address(text: str) -> Address:
    """Read ``host:port``, ``[v6]:port`` or Dynamo 1.3's ``v6:port``: split at the last colon.

    Raises:
        ConnectionInfoError: If there is no host that could be resolved, or no port from 1
            to 65535.
    """
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host.isprintable() or any(mark in host for mark in "[]/@ "):
        raise ConnectionInfoError(f"address {text!r} is not host:port")
    if not _is_port(port):
        raise ConnectionInfoError(f"address {text!r} has no port from 1 to {_MAX_PORT}")
    if not (_is_ipv6(host) if ":" in host else _is_name(host)):
        raise ConnectionInfoError(f"address {text!r} is not host:port")
    return Address(host, int(port))


def _is_port(text: str) -> bool:
    digits = text.isascii() and text.isdigit() and len(text) <= _MAX_PORT_DIGITS
    return digits and 0 < int(text) <= _MAX_PORT


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_name(host: str) -> bool:
    if len(host) > _MAX_NAME:
        return False
    try:
        host.encode("idna")  # as the resolver does: no empty label, none over 63 bytes
    except UnicodeError:
        return False
    return bool(host)


class CallHomePolicy:
    """Which networks a worker may dial.

    Link-local, multicast, unspecified and metadata addresses are refused even when a listed
    network contains them.
    """

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str] = DEFAULT_CALL_HOME_NETWORKS) -> None:
        """Read the networks in CIDR form.

        Raises:
            ConfigError: If one is none.
        """
        self._known: dict[str, bool] = {}
        try:
            self._networks = tuple(ipaddress.ip_network(text) for text in networks)
        except ValueError as error:
            raise ConfigError(
                f"call-home networks: {error}; write for instance 10.0.0.0/8"
            ) from error

    def allows(self, address: str) -> bool:
        """Whether a resolved IP address may be dialled."""
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[address] = self._decide(address)
        return known

    def _decide(self, address: str) -> bool:
        ip = ipaddress.ip_address(address.partition("%")[0])
        mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
        ip = mapped or ip
        if any(ip in network for network in _NEVER):
            return False
        return any(ip in network for network in self._networks)
