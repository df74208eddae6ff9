"""A forked child that only lives: it has what its parent has open, and does nothing with it."""

import os
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def forked_child() -> Generator[None]:
    """Fork; the child lives as long as the block."""
    waiting, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive)
        os.read(waiting, 1)  # the end: when the parent closes its own
        os._exit(0)
    os.close(waiting)
    try:
        yield
    finally:
        os.close(alive)
        os.waitpid(child, 0)
