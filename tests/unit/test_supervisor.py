import sys

import pytest

from dialback.errors import ConfigError
from dialback.settings import Settings
from dialback.supervisor import Child, child_settings

# Holds a delivery, leaves the link to a process of its own, and dies. That one waits for the
# end of the link.
_DIES = """
import os, socket, sys
link = socket.socket(fileno=int(sys.argv[-1]))
link.send(b'["ready"]\\n["held","$JS.ACK.1",1.0]\\n')
if os.fork() == 0:
    link.recv(1)
    os._exit(0)
os._exit(7)
"""


def test_each_process_has_a_name_and_a_status_port_of_its_own() -> None:
    settings = Settings.load(processes=3, worker_name="gpu", status_port=8080)
    children = [child_settings(settings, number) for number in range(3)]
    assert [child.worker_name for child in children] == ["gpu-0", "gpu-1", "gpu-2"]
    assert [child.status_port for child in children] == [8080, 8081, 8082]


@pytest.mark.parametrize("port", [0, -1])
def test_any_free_port_and_no_port_are_the_same_for_all(port: int) -> None:
    settings = Settings.load(processes=2, status_port=port)
    assert [child_settings(settings, number).status_port for number in range(2)] == [port, port]


def test_a_process_reads_the_supervisor_s_settings_and_supervises_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIALBACK_PROCESSES", "2")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "9000")
    monkeypatch.setenv("NATS_SERVER", "nats://broker:4222")
    settings = Settings.load(slots=3, ack_wait=7)
    environment = child_settings(settings, 1).environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    child = Settings.load()
    assert (child.processes, child.status_port, child.slots) == (1, 9001, 3)
    assert (child.server, child.ack_wait) == ("nats://broker:4222", 7.0)


def test_ports_above_the_last_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="no room for 3 ports"):
        Settings.load(processes=3, status_port=65534)


def test_a_stuck_limit_that_a_healthy_loop_would_pass_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stuck_limit 0\.5 is less than 2 s"):
        Settings.load(stuck_limit=0.5)
    assert Settings.load(stuck_limit=0).stuck_limit == 0


async def test_the_last_words_of_a_process_are_heard_though_its_own_child_keeps_the_link() -> None:
    child = await Child.start([sys.executable, "-c", _DIES], Settings.load())
    assert await child.ended() == 7
    assert (len(child.leases), child.leases.ready) == (1, True)


async def test_a_process_that_cannot_be_started_leaves_nothing_open() -> None:
    with pytest.raises(FileNotFoundError):
        await Child.start(["/nowhere/python"], Settings.load())
