import asyncio
from collections.abc import AsyncIterator
from typing import Any

from dialback.outcomes import HandedBack
from support.frames import request_payload, tcp_info
from support.ingress_rig import IngressRig
from support.scripted_requester import ScriptedRequester

LIMIT = 30.0


async def test_a_fin_before_the_sentinel_does_not_prove_that_the_requester_has_everything() -> None:
    """Only that of a resumable stream is asked for a proof: a plain half-close is legal."""
    gone = asyncio.Event()

    async def generate(request: Any, context: Any) -> AsyncIterator[int]:
        del request, context
        await gone.wait()
        yield 1

    rig = IngressRig(generate)
    async with ScriptedRequester() as requester:
        info = tcp_info(requester.address, resumable=1)
        serving = rig.start(request_payload(requester.address, {}, info=info))
        home = await requester.connection()
        await home.frame()
        await home.close()
        await asyncio.sleep(0.05)  # the worker's loop reads the FIN: there is no event to await
        gone.set()
        async with asyncio.timeout(LIMIT):
            ending = await serving
    assert isinstance(ending, HandedBack)
