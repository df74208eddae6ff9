"""NATS headers of a request: what rides beside the payload. Names only.

``request-id`` and ``x-frontend-send-ts-ns`` are Dynamo's (protocol section 5.3), the others
are dialback's own (overview section 2).
"""

from typing import Final

REQUEST_ID_HEADER: Final = "request-id"
"""The request's id, for readers that do not open the payload."""
SEND_TIME_HEADER: Final = "x-frontend-send-ts-ns"
"""When the requester sent it, Unix nanoseconds."""
DEADLINE_HEADER: Final = "Dialback-Deadline"
"""Unix nanoseconds at which the caller gives up on the whole stream."""
START_BY_HEADER: Final = "Dialback-Start-By"
"""Unix nanoseconds at which the caller gives up if no first item has come."""
DEADLINE_HEADERS: Final = (DEADLINE_HEADER, START_BY_HEADER)
"""While a request is queued the earlier of the two counts."""
