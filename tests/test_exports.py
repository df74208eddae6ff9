"""The public API is what it is on purpose."""

import dialback


def test_public_names() -> None:
    assert sorted(dialback.__all__) == [
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


def test_every_public_name_exists() -> None:
    assert all(hasattr(dialback, name) for name in dialback.__all__)
