"""dialback's client: a requester, told where by ``NATS_SERVER``."""

import sys
from typing import Any

from benchmarks.lines import serve
from benchmarks.peers.asking import Reading, carry_out
from benchmarks.peers.loops import run
from dialback import Requester


async def _main(endpoint: str) -> None:
    async with Requester() as requester:

        async def ask(request: dict[str, Any], reading: Reading) -> None:
            async with requester.generate(endpoint, request) as stream:
                await reading.read(stream)

        await serve(lambda command: carry_out(command, ask))


run(_main(sys.argv[2]))
