"""Fixtures of the transport's tests."""

from collections.abc import AsyncGenerator

import pytest

from dialback.transport.listener import ResponseListener
from support.kept_connections import Ends
from support.scripted_requester import ScriptedRequester


@pytest.fixture
async def listener() -> AsyncGenerator[ResponseListener]:
    """A listener on a free port of loopback."""
    listener = ResponseListener()
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
async def ends(listener: ResponseListener) -> AsyncGenerator[Ends]:
    """A worker that keeps connections, and its requester."""
    ends = Ends(listener)
    yield ends
    ends.dialer.close()


@pytest.fixture
async def requester() -> AsyncGenerator[ScriptedRequester]:
    """A requester that says what it is told to."""
    async with ScriptedRequester() as requester:
        yield requester
