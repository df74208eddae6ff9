import asyncio
import ipaddress
import os
import resource
import socket
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import ifaddr
import pytest
import uvloop

from dialback.errors import ConfigError
from dialback.transport.address import Address, CallHomePolicy, parse_address
from dialback.transport.connection import FrameConnection
from dialback.transport.dial import Dialer
from dialback.transport.items import encode_final, encode_item
from dialback.transport.listener import (
    ResponseListener,
    interface_address,
    local_address_towards,
)
from dialback.transport.messages import PayloadCodec
from dialback.transport.receiver import ResponseReceiver
from dialback.transport.response_stream import EndState
from dialback.transport.two_part import TwoPartMessage, encode
from support.forking import forked_child
from support.kept_connections import rest
from support.listening import address_of, has_connections
from support.scripted_worker import FINAL, PROLOGUE, SENTINEL, dialling, handshake, item

JSON = PayloadCodec.JSON
LOOPBACK = "127.0.0.1"


def _can_bind(host: str) -> bool:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


LOOPBACKS = [LOOPBACK, *(["::1"] if _can_bind("::1") else [])]


async def _is_reset(address: Address, *frames: bytes) -> bool:
    """Whether the listener answers the frames with a reset, not with an orderly close."""
    reader, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(b"".join(frames))
    try:
        await writer.drain()
        await reader.read()
    except ConnectionResetError:
        return True
    finally:
        writer.close()
    return False


async def _serve(address: Address, receiver: ResponseReceiver, number: int) -> None:
    frames = b"".join(item([number, index]) for index in range(20))
    opening = handshake(receiver.subject) + PROLOGUE
    async with dialling(address, opening, frames, FINAL, SENTINEL) as worker:
        assert await worker.frame() is None


# --- who may connect ----------------------------------------------------------------------


async def test_many_streams_share_one_port_and_are_kept_apart(listener: ResponseListener) -> None:
    receivers = [listener.register(JSON) for _ in range(50)]
    assert len({receiver.subject for receiver in receivers}) == 50
    assert listener.registered == 50
    address = address_of(listener)
    serving = [_serve(address, receiver, number) for number, receiver in enumerate(receivers)]
    reading = [rest(receiver) for receiver in receivers]
    results = (await asyncio.gather(*reading, *serving))[:50]
    assert results == [[[number, index] for index in range(20)] for number in range(50)]
    assert listener.registered == 0


@pytest.mark.parametrize(
    "frame",
    [
        handshake("6f1d1a2e-3b4c-4d5e-8f60-718293a4b5c6"),
        encode(b'{"subject":"x"}'),
        encode(b'"sentinel"'),
        encode(b'{"subject":"\xff","stream_type":"response"}'),
        encode(b"", b"data"),
        encode(),
        b"\xff" * 24,
        b"GET / HTTP/1.1\r\nHost: requester\r\n\r\n",
    ],
    ids=lambda frame: repr(frame[16:40]),
)
async def test_a_first_frame_that_names_no_stream_is_reset(
    listener: ResponseListener, frame: bytes
) -> None:
    receiver = listener.register(JSON)
    assert await _is_reset(address_of(listener), frame, PROLOGUE, item(1), SENTINEL)
    assert listener.registered == 1
    assert not receiver.dialled


async def test_a_wrong_stream_type_is_reset_and_the_registration_stays_valid(
    listener: ResponseListener,
) -> None:
    receiver = listener.register(JSON)
    assert await _is_reset(address_of(listener), handshake(receiver.subject, "request"))
    await asyncio.gather(_serve(address_of(listener), receiver, 1), rest(receiver))
    assert receiver.end is EndState.COMPLETE


async def test_a_spent_subject_is_reset(listener: ResponseListener) -> None:
    receiver = listener.register(JSON)
    await asyncio.gather(_serve(address_of(listener), receiver, 1), rest(receiver))
    assert await _is_reset(address_of(listener), handshake(receiver.subject))


async def test_a_connection_without_a_handshake_is_reset_after_a_time() -> None:
    listener = ResponseListener(handshake_timeout=0.01)
    address = await listener.start()
    assert await _is_reset(address)
    assert await _is_reset(address, handshake("x")[:-1])
    await listener.close()


async def test_the_handshakes_time_limit_does_not_bound_the_stream() -> None:
    listener = ResponseListener(handshake_timeout=0.05)
    address = await listener.start()
    receiver, other = listener.register(JSON), listener.register(JSON)
    async with dialling(address, handshake(receiver.subject)) as worker:
        async with dialling(address):  # its own limit ends only this one
            assert await _is_reset(address)
        await worker.send(PROLOGUE + item(1) + FINAL)
        assert await rest(receiver) == [1]
    other.kill()
    await listener.close()


async def test_a_connection_that_closes_without_a_word_is_dropped(
    listener: ResponseListener,
) -> None:
    async with dialling(address_of(listener)) as worker:
        worker.half_close()
        assert await worker.frame() is None
    assert listener.connections == 0


async def test_an_item_over_the_limit_interrupts_the_stream_before_it_is_buffered() -> None:
    listener = ResponseListener(max_item_bytes=1000)
    address = await listener.start()
    receiver = listener.register(JSON)
    head = encode(b"", b"x" * 1001)[:24]
    async with dialling(address, handshake(receiver.subject), PROLOGUE, head) as worker:
        with pytest.raises(Exception, match="message too large: data of 1001 bytes, limit 1000"):
            await receiver.next_item()
        assert await worker.frame() == TwoPartMessage(b'"kill"')
    await listener.close()


async def test_before_its_handshake_nobody_may_announce_more_than_64_kib(
    listener: ResponseListener,
) -> None:
    receiver = listener.register(JSON)
    head = encode(b"", b"x" * (64 * 1024 + 1))[:24]
    async with dialling(address_of(listener), head) as stranger:
        assert await stranger.frame() is None
    assert listener.connections == 0
    large = "x" * 100_000  # after it a worker may
    async with dialling(
        address_of(listener), handshake(receiver.subject), PROLOGUE, item(large)
    ) as worker:
        assert await receiver.next_item() == large
        receiver.kill()
        await worker.frames()


@contextmanager
def _no_descriptor_left() -> Generator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_many_may_wait_and_few_are_complained_of(
    listener: ResponseListener,
) -> None:
    complaints: list[dict[str, Any]] = []
    complained = asyncio.Event()

    def complain(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        complaints.append(context)
        complained.set()

    asyncio.get_running_loop().set_exception_handler(complain)
    address = address_of(listener)
    with ExitStack() as stack:
        for _ in range(100):  # the loop does not turn: the kernel alone takes them
            stack.enter_context(socket.create_connection((address.host, address.port), timeout=10))
        with _no_descriptor_left():
            await complained.wait()
        assert len(complaints) <= 16
        await has_connections(listener, 100)


# --- closing ------------------------------------------------------------------------------


async def test_close_kills_the_streams_that_are_left_and_stops_listening() -> None:
    listener = ResponseListener()
    address = await listener.start()
    waiting, streaming = listener.register(JSON), listener.register(JSON)
    waiter = asyncio.create_task(rest(waiting))
    async with dialling(address, handshake(streaming.subject), PROLOGUE, item(1)) as worker:
        assert await streaming.next_item() == 1
        assert listener.connections == 1
        await listener.close()
        assert await worker.frame() == TwoPartMessage(b'"kill"')
        assert await worker.frame() is None
    assert await waiter == []
    assert (waiting.end, streaming.end) == (EndState.CANCELLED, EndState.CANCELLED)
    assert (listener.connections, listener.registered) == (0, 0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(address.host, address.port)


async def test_close_aborts_a_connection_that_does_not_close(
    listener: ResponseListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = listener.register(JSON)
    wait_closed = FrameConnection.wait_closed

    def close(_: FrameConnection) -> None:
        """Close nothing, like a connection whose last bytes nobody takes."""

    async def impatient(connection: FrameConnection, _: float) -> bool:
        return await wait_closed(connection, 0.01)

    monkeypatch.setattr(FrameConnection, "close", close)
    monkeypatch.setattr(FrameConnection, "wait_closed", impatient)
    opening = handshake(receiver.subject) + PROLOGUE + item(1)
    async with dialling(address_of(listener), opening) as worker:
        assert await receiver.next_item() == 1
        await listener.close()
        while await worker.frame() is not None:
            pass
    assert listener.connections == 0


async def test_a_listener_that_was_not_started_can_be_closed() -> None:
    listener = ResponseListener()
    await listener.close()
    assert listener.address is None


# --- the address that workers dial --------------------------------------------------------


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_the_address_is_where_it_listens_and_can_be_read_back(host: str) -> None:
    listener = ResponseListener(host=host)
    address = await listener.start()
    assert address.host == host
    assert parse_address(str(address)) == address
    assert str(address).startswith("[::1]:" if host == "::1" else "127.0.0.1:")
    receiver = listener.register(JSON)
    await asyncio.gather(_serve(address, receiver, 1), rest(receiver))
    await listener.close()


@pytest.mark.parametrize(
    ("advertise", "host", "port"),
    [
        ("requester.demo.svc", "requester.demo.svc", None),
        ("203.0.113.7", "203.0.113.7", None),
        ("203.0.113.7:4000", "203.0.113.7", 4000),
        ("requester.demo.svc:4000", "requester.demo.svc", 4000),
        ("2001:db8::7", "2001:db8::7", None),
        ("[2001:db8::7]", "2001:db8::7", None),
        ("[2001:db8::7]:4000", "2001:db8::7", 4000),
    ],
)
async def test_another_address_can_be_advertised(
    advertise: str, host: str, port: int | None
) -> None:
    listener = ResponseListener(advertise=advertise)
    address = await listener.start()
    assert address.host == host
    assert address.port == port if port is not None else address.port > 0
    assert listener.address == address
    await listener.close()


@pytest.mark.parametrize("advertise", ["requester:", "requester:0", ":4000", "[::g]:4000"])
async def test_an_advertised_address_that_is_none_is_a_configuration_error(advertise: str) -> None:
    with pytest.raises(ConfigError, match="set DIALBACK_ADVERTISE to host or host:port"):
        await ResponseListener(advertise=advertise).start()


async def test_a_port_that_is_taken_is_a_configuration_error(listener: ResponseListener) -> None:
    with pytest.raises(ConfigError, match="set DIALBACK_RESPONSE_HOST and DIALBACK_RESPONSE_PORT"):
        await ResponseListener(port=address_of(listener).port).start()


async def test_a_host_that_is_not_this_machines_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen for answers on 203\.0\.113\.1:0"):
        await ResponseListener(host="203.0.113.1").start()


EVERYWHERE = ["", "0.0.0.0", *(["::"] if "::1" in LOOPBACKS else [])]  # noqa: S104


@pytest.mark.parametrize("host", EVERYWHERE)
async def test_listening_everywhere_it_names_an_address_that_can_be_dialled(host: str) -> None:
    listener = ResponseListener(host=host)
    address = await listener.start()
    assert not ipaddress.ip_address(address.host).is_unspecified
    receiver = listener.register(JSON)
    await asyncio.gather(_serve(address, receiver, 1), rest(receiver))
    await listener.close()


async def test_a_name_with_several_addresses_is_advertised_as_the_one_with_that_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(_: str, port: int, **__: Any) -> list[Any]:
        families = [socket.AF_INET6 if ":" in host else socket.AF_INET for host in LOOPBACKS]
        pairs = zip(families, LOOPBACKS, strict=True)
        return [(family, socket.SOCK_STREAM, 6, "", (host, port)) for family, host in pairs]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    listener = ResponseListener(host="requester.invalid")
    address = await listener.start()
    assert address.host in LOOPBACKS
    receiver = listener.register(JSON)
    await asyncio.gather(_serve(address, receiver, 1), rest(receiver))
    await listener.close()


@pytest.mark.parametrize("host", EVERYWHERE[2:])
async def test_without_an_ipv6_route_listening_everywhere_is_named_loopback(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    def no_route(_: str, __: int) -> str:
        return LOOPBACK

    monkeypatch.setattr("dialback.transport.listener.local_address_towards", no_route)
    listener = ResponseListener(host=host)
    assert (await listener.start()).host == "::1"
    await listener.close()


# --- interfaces ---------------------------------------------------------------------------

V4, V6 = ifaddr.IP("10.1.2.3", 24, "eth7"), ifaddr.IP(("fd00::7", 0, 0), 64, "eth7")
LINK4 = ifaddr.IP("169.254.1.1", 16, "eth7")
LINK6 = ifaddr.IP(("fe80::7", 0, 2), 64, "eth7")


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [
        ([V6, V4], "10.1.2.3"),
        ([LINK6, V6], "fd00::7"),
        ([LINK4, LINK6, V4], "10.1.2.3"),
        ([LINK4, LINK6], None),
        ([], None),
    ],
)
def test_an_interfaces_address_is_ipv4_first_and_never_link_local(
    monkeypatch: pytest.MonkeyPatch, addresses: list[ifaddr.IP], chosen: str | None
) -> None:
    adapters = [ifaddr.Adapter("lo", "lo", [], 1), ifaddr.Adapter("eth7", "eth7", addresses, 2)]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    assert interface_address("eth7") == chosen
    assert interface_address("eth8") is None


def _loopback_interface() -> str:
    adapters = ifaddr.get_adapters()
    return next(adapter.name for adapter in adapters for ip in adapter.ips if ip.ip == LOOPBACK)


async def test_the_loopback_interface_can_be_named() -> None:
    name = _loopback_interface()
    assert interface_address(name) == LOOPBACK
    listener = ResponseListener(host=name)
    assert (await listener.start()).host == LOOPBACK
    await listener.close()


def test_towards_a_server_on_loopback_this_machine_is_loopback() -> None:
    assert local_address_towards(LOOPBACK, 4222) == LOOPBACK


def test_towards_a_server_that_cannot_be_resolved_this_machine_is_loopback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert local_address_towards("nats.invalid", 4222) == LOOPBACK


# --- both ends, on the loop that workers run on -------------------------------------------


def _runner(loop: str) -> asyncio.Runner:
    uv = cast("Callable[[], asyncio.AbstractEventLoop]", uvloop.new_event_loop)
    return asyncio.Runner(loop_factory=uv if loop == "uvloop" else asyncio.new_event_loop)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("codec", PayloadCodec)
def test_our_own_two_ends_understand_each_other(loop: str, codec: PayloadCodec) -> None:
    async def work(address: Address, subject: str) -> None:
        sender = await Dialer(CallHomePolicy()).dial(address, subject)
        sender.write_prologue()
        for number in range(5000):
            sender.write_item(encode_item({"i": number}, codec))
            if sender.connection.breath_due:
                await sender.breathe()
        sender.write_final(encode_final(codec))
        await sender.finish()
        assert await sender.connection.wait_closed(10)

    async def main() -> list[Any]:
        listener = ResponseListener()
        address = await listener.start()
        receiver = listener.register(codec)
        working = asyncio.create_task(work(address, receiver.subject))
        items = await rest(receiver)
        await working
        await listener.close()
        return items

    with _runner(loop) as runner:
        assert runner.run(main()) == [{"i": number} for number in range(5000)]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_forked_child_keeps_neither_connections_nor_the_port(loop: str) -> None:
    async def main() -> None:
        listener, silent = ResponseListener(), ResponseListener()
        address = await listener.start()
        receiver = listener.register(JSON)
        async with dialling(address, handshake(receiver.subject), PROLOGUE, item(1)) as worker:
            assert await receiver.next_item() == 1
            with forked_child():
                await worker.send(item(2) + FINAL + SENTINEL)
                async with asyncio.timeout(30):
                    assert await worker.frame() is None, "the worker sees the end"
                assert await rest(receiver) == [2], "the parent reads on"
                await listener.close()
                with pytest.raises(ConnectionRefusedError):
                    await asyncio.open_connection(address.host, address.port)
        assert (listener.descriptors(), silent.descriptors()) == ([], [])

    with _runner(loop) as runner:
        runner.run(main())
