"""One NATS connection with what dialback does over it: API, publisher, settler.

The seam to the composition roots and the CLI: they hold a :class:`QueueClient` and know
nothing of nats-py.
"""

from dataclasses import dataclass, replace
from typing import Final

from nats.aio.client import Client

from dialback.queue.api import JetStreamApi
from dialback.queue.connection import ConnectionEvents, ServerAddress, close, connect
from dialback.queue.delivery import Settler
from dialback.queue.publisher import Publisher

_DEFAULT_PORT: Final = 4222


@dataclass(frozen=True, slots=True)
class QueueClient:
    """A connected client.

    Attributes:
        connection: nats-py's client; only this folder uses it.
        api: JetStream API requests.
        publisher: Publishes with acknowledgement.
        settler: Answers deliveries with confirmation.
    """

    connection: Client
    api: JetStreamApi
    publisher: Publisher
    settler: Settler

    @classmethod
    async def open(
        cls,
        server: ServerAddress,
        *,
        name: str,
        role: str,
        within: float = 10.0,
        events: ConnectionEvents | None = None,
    ) -> "QueueClient":
        """Connect. Whether JetStream answers shows at the first request.

        Args:
            server: Which server, and as whom.
            name: Connection name.
            role: ``worker``, ``requester`` or ``operator``: part of the inbox prefix.
            within: Seconds for the first connect.
            events: Callbacks for disconnects and reconnects.

        Raises:
            ServerUnavailableError: If no server answers in time.
            PermissionDeniedError: If it refuses the credentials.
        """
        hooks = events or ConnectionEvents()
        publishers: list[Publisher] = []

        def disconnected() -> None:
            for publisher in publishers:
                publisher.connection_lost()
            hooks.disconnected()

        told = replace(hooks, disconnected=disconnected)
        client = await connect(server, name=name, role=role, within=within, events=told)
        publishers.append(Publisher(client))
        return cls(client, JetStreamApi(client), publishers[0], Settler(client))

    @property
    def server_host(self) -> tuple[str, int]:
        """Host and port of the server we are connected to."""
        url = self.connection.connected_url
        if url is None:
            return "", _DEFAULT_PORT
        return url.hostname or "", url.port or _DEFAULT_PORT

    @property
    def server_version(self) -> str:
        """Version of the nats-server."""
        return str(self.connection.connected_server_version).strip("<>").rpartition(" v")[2]

    async def close(self) -> None:
        """Flush and close; never raises for a server that is gone."""
        await close(self.connection)
