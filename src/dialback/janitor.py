"""The janitor: answers for requests that no worker has taken in time, so that nobody waits.

Dial first, then delete by sequence (overview section 3, rule 1). One process of many looks
after an endpoint at a time: a claim in the nats-server says which.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Final

from dialback.errors import InvalidArgument, QueueError
from dialback.ingress.answer import Answerer, expiry
from dialback.ingress.request import Rejection, parse_unary
from dialback.metrics.service import ServiceMetrics
from dialback.outcomes import Delivery, Finished, Outcome
from dialback.queue.claim import Claim, Held
from dialback.queue.client import QueueClient
from dialback.queue.dead_letter import DeadLetterRecord, DeadLetters
from dialback.queue.janitor import DEFAULT_INTERVAL, JanitorSettings, Overdue, UnservedRequests
from dialback.queue.topology import Endpoint
from dialback.transport.dial import Dialer
from dialback.transport.dynamo_errors import backend_error
from dialback.transport.messages import DynamoError

logger = logging.getLogger(__name__)

_CONCURRENT: Final = 32  # callers that are dialled at the same time
_REFUSAL_WAIT: Final = 0.1  # seconds; see Answerer


@dataclass(slots=True)
class Swept:
    """What one pass, or several, did.

    Attributes:
        answered: Callers that were told.
        ended: Requests taken out of the queue, told or not.
        claimed: Whether the queue was this janitor's to look after.
    """

    answered: int = 0
    ended: int = 0
    claimed: bool = False


class Janitor:
    """Looks after one endpoint's queue."""

    def __init__(
        self,
        client: QueueClient,
        endpoint: Endpoint,
        *,
        dialer: Dialer,
        metrics: ServiceMetrics,
        name: str,
        settings: JanitorSettings | None = None,
        total: Swept | None = None,
    ) -> None:
        """Wire a janitor.

        Args:
            client: A connected client.
            endpoint: Whose queue.
            dialer: Opens response streams.
            metrics: Where outcomes are counted.
            name: Of this process, in claims and dead letters.
            settings: How it behaves.
            total: Where to add up what all passes did.
        """
        self._total = total if total is not None else Swept()
        self._settings = settings or JanitorSettings()
        self._endpoint = endpoint
        self._answerer = Answerer(dialer, refusal_wait=_REFUSAL_WAIT)
        self._metrics = metrics
        self._name = name
        self._requests = UnservedRequests(
            client.connection,
            client.api,
            endpoint,
            unserved_limit=self._settings.unserved_limit,
        )
        self._dead_letters = DeadLetters(client.api, client.publisher, endpoint)
        self._claim = Claim(
            client.api,
            client.publisher,
            endpoint.stream,
            holder=name,
            replicas=self._settings.replicas,
        )
        self._failing = False

    async def run(self, *, delay: float = 0.0) -> None:
        """Sweep every ``interval`` seconds until cancelled; trouble is logged, never raised.

        Args:
            delay: Seconds before the first pass: a worker that starts has pulls of its own.
        """
        try:
            await asyncio.sleep(delay)
            while True:
                await self._sweep_quietly()
                await asyncio.sleep(self._settings.interval or DEFAULT_INTERVAL)
        finally:
            await self.release()

    async def release(self) -> None:
        """Let another janitor look after the queue at once."""
        await self._claim.release()

    async def _sweep_quietly(self) -> None:
        try:
            await self.sweep()
        except QueueError as error:
            if not self._failing:  # once, not every few seconds
                logger.warning(
                    "janitor cannot look after the queue at the moment",
                    extra={"endpoint": str(self._endpoint), "reason": str(error)},
                )
            self._failing = True
        except Exception:
            logger.exception("fault in dialback's janitor; please report it")
        else:
            self._failing = False

    async def sweep(self) -> Swept:
        """Answer for all requests that are overdue now, if this janitor has the claim.

        Raises:
            StreamMissingError: If the endpoint has no queue.
            QueueError: If the server does not answer, or refuses.
        """
        swept = Swept()
        try:
            swept.claimed = await self._held()
            if swept.claimed:
                await self._sweep(swept)
        except BaseException:
            self._requests.forget()  # some may have been noted as done that were not
            raise
        return swept

    async def _sweep(self, swept: Swept) -> None:
        async for batch in self._requests.overdue():
            for start in range(0, len(batch), _CONCURRENT):
                ends = [self._end(one, swept) for one in batch[start : start + _CONCURRENT]]
                results = await asyncio.gather(*ends, return_exceptions=True)
                for error in filter(None, results):
                    raise error
                # Dialling takes its time: what is not ours any more is another janitor's.
                if not await self._held():
                    return

    async def _held(self) -> bool:
        held = await self._claim.hold()
        if held is Held.NEW:
            self._requests.forget()
        return held is not Held.NO

    async def _end(self, overdue: Overdue, swept: Swept) -> None:
        """Tell the caller, then take the request out, unless a worker has taken it meanwhile."""
        started = time.monotonic()
        delivery = overdue.delivery
        if not await self._requests.undelivered(delivery):
            return  # its worker finds it expired, and answers
        outcome, error = self._verdict(overdue)
        ending = await self._answerer.end_unserved(delivery, outcome, error)
        if ending is None or not await self._requests.undelivered(delivery):
            return
        buried = outcome is not Outcome.EXPIRED
        if buried:
            await self._dead_letters.write(DeadLetterRecord.of(ending, delivery, self._name))
        if not await self._requests.remove(delivery):
            return
        for sums in (swept, self._total):
            sums.ended += 1
            sums.answered += ending.caller_told
        self._metrics.count_outcome(outcome)
        if buried:
            self._metrics.count_dead_letter(outcome)
        self._log(delivery, ending, started, buried=buried)

    def _verdict(self, overdue: Overdue) -> tuple[Outcome, DynamoError]:
        """Say what a worker would say to the same message."""
        parsed = parse_unary(overdue.delivery)
        if isinstance(parsed, Rejection):
            return parsed.outcome, backend_error(InvalidArgument, parsed.reason)
        if overdue.unlimited:
            limit = self._settings.unserved_limit
            return Outcome.EXPIRED, expiry(f"no worker took the request within {limit:g} s")
        return Outcome.EXPIRED, expiry()

    def _log(self, delivery: Delivery, ending: Finished, started: float, *, buried: bool) -> None:
        """One line for each request, with the fields of a worker's."""
        logger.info(
            "request finished",
            extra={
                "request_id": ending.request_id,
                "endpoint": str(self._endpoint),
                "lane": delivery.lane,
                "seq": delivery.sequence,
                "delivery": delivery.number,
                "duration_ms": round((time.monotonic() - started) * 1000, 1),
                "reason": ending.reason,
                "outcome": ending.outcome.value,
                "caller": ending.caller,
                "items": 0,
                "caller_told": ending.caller_told,
                "dead_letter": buried,
                "janitor": self._name,
            },
        )
