"""docs/interop.md claims what this suite shows: no cell more, no cell less."""

import pytest

from interop.conftest import ROLES, Cell, table
from support.worker_process import ROOT

pytestmark = pytest.mark.integration


def test_the_documented_table_is_the_suites(collected: set[Cell]) -> None:
    assert {role for _, _, role in collected} == set(ROLES.values()), "collect tests/interop"
    page = (ROOT / "docs" / "interop.md").read_text()
    documented = [line for line in page.splitlines() if line.startswith("| ")]
    proven = table({cell: {"json": True, "msgpack": True} for cell in collected})
    assert sorted(documented) == sorted(proven)
