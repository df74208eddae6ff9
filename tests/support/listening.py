"""What tests ask a requester's listener."""

from dialback.transport.address import Address
from dialback.transport.listener import ResponseListener
from support.eventually import eventually


def address_of(listener: ResponseListener) -> Address:
    """Where its workers dial."""
    assert listener.address is not None
    return listener.address


async def has_connections(listener: ResponseListener, number: int) -> None:
    """Wait until so many are open."""

    async def count() -> int:
        return listener.connections

    await eventually(count, lambda connections: connections == number)
