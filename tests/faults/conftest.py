"""The figures of the fault tests, printed at the end; and nothing of a test may be left over."""

import asyncio
import os
from collections.abc import AsyncGenerator

import pytest

from support.eventually import eventually


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "ci: a fault test that is short enough for every CI run")


def _sockets() -> int:
    """Sockets that this process holds."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:
            continue  # the folder's own descriptor
    return count


@pytest.fixture(autouse=True)
async def _nothing_leaks() -> AsyncGenerator[None]:
    """Fail a test that leaves a task or a socket behind."""
    before = _sockets()
    yield
    mine = asyncio.current_task()

    async def left() -> tuple[list[str], int]:
        tasks = [task.get_name() for task in asyncio.all_tasks() if task is not mine]
        return tasks, max(0, _sockets() - before)

    await eventually(left, lambda seen: seen == ([], 0), within=10)
