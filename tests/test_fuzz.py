"""The fuzzer's invariants hold for its seeds; ``make fuzz`` goes on from there."""

from collections.abc import Callable

import pytest
from fuzz.seeds import seeds
from fuzz.targets import decoder, request

SEEDS = seeds()


@pytest.mark.parametrize("check", [decoder.check, request.check], ids=["decoder", "request"])
def test_the_invariants_hold_for_every_seed(check: Callable[[bytes], None]) -> None:
    for seed in SEEDS:
        check(seed)


def test_the_seeds_hold_every_captured_request() -> None:
    assert sum(seed.startswith(b'{"id":') for seed in SEEDS) >= 16
