"""In the place of the ingress: a request is read and found to be in time, and has ended.

As a peer's handler is, which is given a decoded body and returns: what is left is the queue.
"""

import time

from dialback.ingress.request import Rejection, parse_unary
from dialback.outcomes import Delivery, Ending, Finished, Outcome


async def handle(delivery: Delivery) -> Ending:
    """Read one delivery's request, for no engine."""
    parsed = parse_unary(delivery)
    if isinstance(parsed, Rejection):
        return Finished(outcome=parsed.outcome, request_id=parsed.request_id, reason=parsed.reason)
    late = parsed.expired(time.time_ns())
    outcome = Outcome.EXPIRED if late else Outcome.COMPLETED
    return Finished(outcome=outcome, request_id=parsed.request_id)
