"""What stands where the network would be: it takes everything and answers at once."""

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from nats.aio.msg import Msg
from typing_extensions import override

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nats.aio.client import Client

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

    @property
    def client(self) -> "Client":
        """Itself, as the type that it stands for."""
        return cast("Client", self)

    async def request(self, *_: object, **__: object) -> Msg:
        """Answer with nothing, as JetStream confirms."""
        return Msg(_client=self.client, subject="")
