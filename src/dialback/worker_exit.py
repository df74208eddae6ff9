"""How a worker ended, as a process supervisor sees it. Decided here, acted on elsewhere.

Source: operator 2.2.
"""

from enum import IntEnum

from dialback.queue.consumer import Drained


class WorkerExit(IntEnum):
    """How a worker ended: the exit codes of ``dialback worker run``.

    A request that another worker has taken over (its lease was lost) is not this worker's any
    more: it does not change the code.
    """

    CLEAN = 0
    """Drained; nothing was interrupted."""
    DISCONNECTED = 69
    """NATS closed the connection for good (credentials expired, for instance)."""
    PULLS_DEAD = 70
    """No pull was answered any more though connected and slots were free, or the pull loop
    failed; what ran was drained. The process supervisor should start it again."""
    INTERRUPTED = 75
    """The shutdown budget ran out: running requests were ended."""
    FORCED = 143
    """A second signal ended running requests."""


def exit_for(
    drained: Drained, *, closed: bool = False, pulls_dead: bool = False, hurried: bool = False
) -> WorkerExit:
    """Return the exit code: why it ended comes before what that did to running requests.

    Args:
        drained: What the drain left.
        closed: Whether NATS closed the connection for good.
        pulls_dead: Whether the worker ended itself because it could not pull.
        hurried: Whether a second signal came.
    """
    if closed:
        return WorkerExit.DISCONNECTED
    if pulls_dead:
        return WorkerExit.PULLS_DEAD
    if drained.interrupted == 0 and drained.abandoned == 0:
        return WorkerExit.CLEAN
    return WorkerExit.FORCED if hurried else WorkerExit.INTERRUPTED
