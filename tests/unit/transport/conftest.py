"""Fixtures of the transport's tests."""

from collections.abc import AsyncGenerator

import pytest

from dialback.transport.listener import ResponseListener


@pytest.fixture
async def listener() -> AsyncGenerator[ResponseListener]:
    """A listener on a free port of loopback."""
    listener = ResponseListener()
    await listener.start()
    yield listener
    await listener.close()
