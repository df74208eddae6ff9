"""Requests through the work queue: publish, pull, answer of one item, confirmed ack.

Peer: nats-py's own ``fetch(1)`` in as many tasks as there are slots, answering with a core
publish and ``ack_sync``: durable too, but without back-channel, leases and dead letters.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final

import nats
import nats.errors
import nats.js.api
from nats.aio.msg import Msg

from benchmarks.measure import compare
from dialback import Context, Requester, Settings, StreamMissingError, Worker
from dialback.queue.embedded_server import EmbeddedServer

ENDPOINT: Final = "bench.queue.echo"
REQUESTS: Final = 2_000
SLOTS: Final = 16
AT_ONCE: Final = 64


async def _echo(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request


async def _ask_all(requester: Requester, endpoint: str) -> None:
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> None:
        async with at_once, requester.generate(endpoint, number) as stream:
            assert [item async for item in stream] == [number]  # noqa: S101

    await asyncio.gather(*map(ask, range(REQUESTS)))


async def _fetch_all(url: str) -> None:
    client = await nats.connect(url)  # pyright: ignore[reportUnknownMemberType]
    context = client.jetstream()  # pyright: ignore[reportUnknownMemberType]
    name = f"PEER{secrets.token_hex(4)}"
    await context.add_stream(  # pyright: ignore[reportUnknownMemberType]
        name=name, subjects=[f"{name}.>"], retention=nats.js.api.RetentionPolicy.WORK_QUEUE
    )
    waiting: dict[str, asyncio.Future[None]] = {}

    async def answered(message: Msg) -> None:
        waiting[message.data.decode()].set_result(None)

    inbox = client.new_inbox()
    await client.subscribe(inbox, cb=answered)  # pyright: ignore[reportUnknownMemberType]
    pull = await context.pull_subscribe(f"{name}.>", durable="peer", stream=name)

    async def work() -> None:
        while True:
            with suppress(nats.errors.TimeoutError):
                for message in await pull.fetch(1, timeout=5):
                    await client.publish(inbox, message.data)
                    await message.ack_sync(timeout=5)

    workers = [asyncio.create_task(work()) for _ in range(SLOTS)]
    at_once = asyncio.Semaphore(AT_ONCE)

    async def ask(number: int) -> None:
        async with at_once:
            waiting[str(number)] = asyncio.get_running_loop().create_future()
            await context.publish(f"{name}.{number}", str(number).encode())
            await waiting[str(number)]

    await asyncio.gather(*map(ask, range(REQUESTS)))
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)
    await context.delete_stream(name)
    await client.close()


async def main() -> None:
    """Compare."""
    async with EmbeddedServer() as server:
        settings = Settings.load(server=server.url, slots=SLOTS, status_port=-1)
        worker = Worker(_echo, endpoint=ENDPOINT, settings=settings)
        running = asyncio.create_task(worker.run(signals=False))
        async with Requester(settings) as requester:
            await _ready(requester)
            await compare(
                title=f"requests of one item, {AT_ONCE} at once, {SLOTS} slots, one process",
                unit="requests",
                count=REQUESTS,
                ours=lambda: _ask_all(requester, ENDPOINT),
                peer=lambda: _fetch_all(server.url),
                peer_name="nats-py fetch(1) per slot, core reply, ack_sync: no back-channel",
            )
        worker.stop()
        await running


async def _ready(requester: Requester) -> None:
    """Wait until the worker has made the queue."""
    while True:
        try:
            async with requester.generate(ENDPOINT, 0) as stream:
                async for _ in stream:
                    pass
        except StreamMissingError:
            await asyncio.sleep(0.05)
        else:
            return
