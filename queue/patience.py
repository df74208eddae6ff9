"""Asking JetStream for what may not be there yet.

A cluster answers nothing while it elects a leader, which takes up to ten seconds; and another
worker may create the same stream at the same moment.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import tenacity

from dialback.errors import NotFoundError, QueueError, ServerUnavailableError

logger = logging.getLogger(__name__)

_WAIT: Final = tenacity.wait_exponential(multiplier=0.1, max=1.0) + tenacity.wait_random(0, 0.1)

Ask: TypeAlias = Callable[[], Awaitable[dict[str, Any]]]
"""Asks the server, and returns its answer."""


async def patiently(work: Callable[[], Awaitable[None]], *, what: str, within: float) -> None:
    """Do ``work``, and try again while JetStream does not answer.

    Args:
        work: What to do; may be done in part, and is done again then.
        what: Whose streams and consumers, for the one warning that it takes longer.
        within: Seconds for further tries; 0 for one try.

    Raises:
        Exception: What the last try raised.
    """

    def say(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome is not None:
            logger.warning(
                "waiting for JetStream",
                extra={"endpoint": what, "reason": str(state.outcome.exception())},
            )

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_delay(within),
        wait=_WAIT,
        retry=tenacity.retry_if_exception_type(ServerUnavailableError),
        before_sleep=say,
        reraise=True,
    )
    async for attempt in retrying:
        with attempt:
            await work()


async def found_or_created(look: Ask, create: Ask) -> dict[str, Any]:
    """Return what is there, created if need be.

    The server refuses to create what another worker has created meanwhile with settings of its
    own (error 10058). What counts is what is there then.

    Args:
        look: Asks for it; raises NotFoundError if it is not there.
        create: Creates it.

    Raises:
        QueueError: If it can neither be found nor created.
    """
    try:
        return await look()
    except NotFoundError:
        pass
    try:
        return await create()
    except ServerUnavailableError:
        raise
    except QueueError as refusal:
        try:
            return await look()
        except NotFoundError:
            raise refusal from None
