"""dialback: a JetStream work queue whose workers stream answers over Dynamo's back-channel.

This is the public API; everything else is internal. See README.md.
"""

from importlib.metadata import version

from dialback.errors import (
    ConfigError,
    DeadlineExceededError,
    DialbackError,
    DuplicateRequestError,
    EngineRefusedError,
    PayloadTooLargeError,
    QueueError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    ResponseError,
    ServerUnavailableError,
    StreamInterrupted,
    StreamMissingError,
)
from dialback.ingress.context import Context
from dialback.ingress.engine import Engine, engine, load_engine
from dialback.outcomes import Outcome
from dialback.requester import Requester
from dialback.settings import Settings
from dialback.stream import ResponseStream
from dialback.transport.line import Interruption
from dialback.transport.response_stream import EndState
from dialback.worker import Worker
from dialback.worker_exit import WorkerExit

__version__ = version("dialback")

__all__ = [
    "ConfigError",
    "Context",
    "DeadlineExceededError",
    "DialbackError",
    "DuplicateRequestError",
    "EndState",
    "Engine",
    "EngineRefusedError",
    "Interruption",
    "Outcome",
    "PayloadTooLargeError",
    "QueueError",
    "QueueFullError",
    "RequestError",
    "RequestTimeoutError",
    "Requester",
    "ResponseError",
    "ResponseStream",
    "ServerUnavailableError",
    "Settings",
    "StreamInterrupted",
    "StreamMissingError",
    "Worker",
    "WorkerExit",
    "__version__",
    "engine",
    "load_engine",
]
