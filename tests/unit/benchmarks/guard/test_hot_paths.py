import pytest

from benchmarks.guard.hot_paths import HOT_PATHS


@pytest.mark.parametrize("path", HOT_PATHS)
@pytest.mark.parametrize("operations", [0, 1, 130])
def test_a_hot_path_does_any_number_of_operations(path: str, operations: int) -> None:
    HOT_PATHS[path].run(operations)
