from itertools import pairwise
from urllib.parse import urlparse

import pytest
from nats.aio.client import Client, Server

from dialback.queue.reconnects import Reconnects


@pytest.mark.parametrize("count", [2, 3])
def test_no_reconnect_goes_to_the_same_server_as_the_one_before(count: int) -> None:
    servers = [Server(urlparse(f"nats://n{number}:4222"), reconnects=0) for number in range(count)]
    reconnects = Reconnects(Client())
    chosen = [reconnects.choose(servers, {})[0].uri.netloc for _ in range(50)]
    assert all(one != following for one, following in pairwise(chosen))
    assert len(set(chosen)) == count


def test_the_only_server_is_chosen_again() -> None:
    only = Server(urlparse("nats://n0:4222"), reconnects=0)
    reconnects = Reconnects(Client())
    assert [reconnects.choose([only], {})[0] for _ in range(3)] == [only] * 3
