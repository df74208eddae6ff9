"""Finding a dead letter by what an operator types: an id, the beginning of one, or ``seq:N``.

Reads with Get Message and stream info only; ids are in the subjects, so that a prefix costs
one request and not one for each letter.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from dialback.errors import ConfigError, NotFoundError
from dialback.queue.api import JetStreamApi, StoredMessage
from dialback.queue.dead_letter import REQUEST_ID, subject_token
from dialback.queue.topology import Endpoint

_SEQUENCE: Final = "seq:"
_MAX_SEQUENCE: Final = 2**64 - 1
_MAX_DIGITS: Final = 20
_SHOWN_CANDIDATES: Final = 10
_HASHED: Final = "h-"  # subject tokens of ids that cannot be tokens


class AmbiguousIdError(ConfigError):
    """An id means several dead letters.

    Attributes:
        candidates: What to write instead.
    """

    def __init__(self, given: str, candidates: Sequence[str]) -> None:
        shown = ", ".join(candidates[:_SHOWN_CANDIDATES])
        more = len(candidates) - _SHOWN_CANDIDATES
        rest = f" and {more} more" if more > 0 else ""
        super().__init__(f"{given!r} means {len(candidates)} dead letters: {shown}{rest}")
        self.candidates = tuple(candidates)


async def find_letter(api: JetStreamApi, endpoint: Endpoint, given: str) -> StoredMessage:
    """Return the one letter that ``given`` means.

    Raises:
        NotFoundError: If there is none.
        AmbiguousIdError: If there are several.
        ConfigError: If ``given`` cannot be an id.
    """
    if given.startswith(_SEQUENCE):
        return await _by_sequence(api, endpoint, given)
    return await _by_id(api, endpoint, given)


async def _by_sequence(api: JetStreamApi, endpoint: Endpoint, given: str) -> StoredMessage:
    number = given.removeprefix(_SEQUENCE)
    digits = number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS
    if not (digits and 0 < int(number) <= _MAX_SEQUENCE):
        raise ConfigError(f"{given!r} is not {_SEQUENCE}NUMBER")
    try:
        return await api.get_exact(endpoint.dead_stream, int(number))
    except NotFoundError as error:
        raise no_letter(endpoint, given) from error


async def _by_id(api: JetStreamApi, endpoint: Endpoint, given: str) -> StoredMessage:
    if not given:
        raise ConfigError("an empty text is no id")
    found = await _letters_of(api, endpoint, endpoint.dead_subject(subject_token(given)))
    if not found:
        subjects = await _subjects_beginning(api, endpoint, given)
        if len(subjects) > 1:
            raise AmbiguousIdError(given, list(subjects.values()))
        for subject in subjects:
            found = await _letters_of(api, endpoint, subject)
    if not found:
        raise no_letter(endpoint, given)
    if len(found) > 1:
        raise AmbiguousIdError(given, [f"{_SEQUENCE}{stored.sequence}" for stored in found])
    return found[0]


async def _subjects_beginning(api: JetStreamApi, endpoint: Endpoint, prefix: str) -> dict[str, str]:
    """Return the subjects whose request id begins so, each with that id."""
    found: dict[str, str] = {}
    for subject in await _subjects(api, endpoint):
        token = subject.rpartition(".")[2]
        if token.startswith(prefix):
            found[subject] = token
        elif token.startswith(_HASHED):  # only the letter itself says its id
            request_id = await _id_of(api, endpoint, subject)
            if request_id.startswith(prefix):
                found[subject] = request_id
    return found


async def _id_of(api: JetStreamApi, endpoint: Endpoint, subject: str) -> str:
    letters = await _letters_of(api, endpoint, subject)
    return letters[0].headers.get(REQUEST_ID, "") if letters else ""


async def _letters_of(api: JetStreamApi, endpoint: Endpoint, subject: str) -> list[StoredMessage]:
    stream = endpoint.dead_stream
    return [stored async for stored in messages(api, stream, _SHOWN_CANDIDATES + 1, subject)]


async def _subjects(api: JetStreamApi, endpoint: Endpoint) -> list[str]:
    """Return the subjects of all dead letters, in pages of the server's size."""
    found: list[str] = []
    while True:
        body = {"subjects_filter": endpoint.dead_subjects, "offset": len(found)}
        page = await api.request(f"STREAM.INFO.{endpoint.dead_stream}", body)
        subjects: Mapping[str, int] = page["state"].get("subjects") or {}
        found += subjects
        if not subjects or len(found) >= page["total"]:
            return sorted(found)


async def messages(
    api: JetStreamApi, stream: str, limit: int, subject: str | None = None
) -> AsyncIterator[StoredMessage]:
    """Yield the oldest messages of a stream or a subject."""
    sequence = 1
    for _ in range(limit):
        try:
            stored = await api.get_message(stream, sequence=sequence, subject=subject)
        except NotFoundError:
            return
        yield stored
        sequence = stored.sequence + 1


def no_letter(endpoint: Endpoint, given: str) -> NotFoundError:
    """Return the error of an id that means no letter."""
    return NotFoundError(
        f"no dead letter of {endpoint} is {given!r}; see dialback dlq ls {endpoint}"
    )
