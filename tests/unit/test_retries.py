import pytest
import tenacity

from dialback.retries import with_retries


class Trying:
    """Fails with the given errors, then returns the number of the attempt."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.attempts = 0
        self.took: list[float] = []

    async def attempt(self) -> int:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        return self.attempts

    def retrying(self, took: float) -> tenacity.AsyncRetrying:
        self.took.append(took)
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_none(),
            retry=tenacity.retry_if_exception_type(OSError),
            reraise=True,
        )


async def test_tenacity_is_not_started_for_an_attempt_that_succeeds_at_once() -> None:
    trying = Trying()
    assert await with_retries(trying.attempt, trying.retrying) == 1
    assert trying.took == []


async def test_the_first_failure_counts_as_tenacitys_first_attempt() -> None:
    trying = Trying(OSError("one"), OSError("two"))
    assert await with_retries(trying.attempt, trying.retrying) == 3
    assert len(trying.took) == 1
    assert trying.took[0] >= 0


async def test_attempts_are_as_many_as_tenacity_allows_and_the_last_error_is_raised() -> None:
    trying = Trying(*(OSError(str(number)) for number in range(1, 6)))
    with pytest.raises(OSError, match="3"):
        await with_retries(trying.attempt, trying.retrying)
    assert trying.attempts == 3


async def test_an_error_that_is_not_to_be_retried_is_raised_at_once() -> None:
    trying = Trying(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        await with_retries(trying.attempt, trying.retrying)
    assert trying.attempts == 1


async def test_without_reraise_the_end_is_tenacitys() -> None:
    trying = Trying(OSError("one"), OSError("two"))

    def impatient(_: float) -> tenacity.AsyncRetrying:
        return tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none()
        )

    with pytest.raises(tenacity.RetryError) as caught:
        await with_retries(trying.attempt, impatient)
    assert str(caught.value.last_attempt.exception()) == "two"
