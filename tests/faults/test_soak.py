"""Two minutes of the soak; ``make soak SECONDS=1800`` runs it for longer."""

import pytest

from faults.soak import Soak

pytestmark = [pytest.mark.ci, pytest.mark.timeout(400)]


async def test_two_minutes_of_mixed_traffic_under_random_faults_add_up() -> None:
    soak = Soak(seconds=120, seed=1)
    assert await soak.run(), soak.problems
