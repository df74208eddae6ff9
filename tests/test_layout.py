"""The layout rules that nothing else enforces (ARCHITECTURE.md, 'Layout')."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("ingress", "queue", "transport", "metrics")


@pytest.mark.parametrize("folder", [*FOLDERS, "tests"])
def test_no_init_file_in_a_top_level_folder(folder: str) -> None:
    assert list((ROOT / folder).rglob("__init__.py")) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_is_a_relative_link_in_the_package(folder: str) -> None:
    link = ROOT / "src" / "dialback" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("../..") / folder


def test_every_list_of_folders_names_each_folder() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    for folder in FOLDERS:
        assert f"dialback.{folder}" in project["setuptools"]["packages"]
        assert folder in project["coverage"]["run"]["source_dirs"]
        assert folder in project["ruff"]["namespace-packages"]
        assert folder in project["pyright"]["include"]
        assert f"src/dialback/{folder}" in project["pyright"]["exclude"]
        assert f"dialback.{folder}" in project["importlinter"]["root_packages"]


def test_the_standard_modules_that_our_folders_could_shadow_still_import() -> None:
    code = "import queue, logging.handlers, concurrent.futures; queue.SimpleQueue"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
