"""What stands where the network would be: it takes everything and answers at once."""

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from nats.aio.msg import Msg
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from nats.aio.client import Client

_Listener: TypeAlias = "Callable[[Msg], Awaitable[None]]"
_Buffer: TypeAlias = "bytes | bytearray | memoryview[Any]"


class Memory(asyncio.Transport):
    """A transport that takes everything and keeps nothing."""

    @override
    def write(self, data: "_Buffer") -> None:
        return

    @override
    def writelines(self, list_of_data: "Iterable[_Buffer]") -> None:
        return

    @override
    def is_closing(self) -> bool:
        return False

    @override
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    @override
    def get_write_buffer_size(self) -> int:
        return 0

    @override
    def pause_reading(self) -> None:
        return

    @override
    def resume_reading(self) -> None:
        return

    @override
    def close(self) -> None:
        return


class Confirming:
    """A NATS client whose server confirms every answer at once."""

    is_connected = True
    is_closed = False

    def __init__(self) -> None:
        """Nobody listens yet."""
        self._listener: _Listener | None = None

    @property
    def client(self) -> "Client":
        """Itself, as the type that it stands for."""
        return cast("Client", self)

    def new_inbox(self) -> str:
        """Return the only one."""
        return "_INBOX.guard"

    async def subscribe(self, subject: str, *, cb: "_Listener") -> None:
        """Hand all answers to ``cb``."""
        del subject
        self._listener = cb

    async def publish(self, subject: str, payload: bytes, *, reply: str, headers: object) -> None:
        """Answer with nothing, as JetStream confirms."""
        del subject, payload, headers
        assert self._listener is not None  # noqa: S101 -- subscribed before
        await self._listener(Msg(_client=self.client, subject=reply))
