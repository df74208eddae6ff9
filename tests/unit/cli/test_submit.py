import io
import sys
from pathlib import Path

import pytest

from dialback.cli.main import main
from dialback.cli.submit import read_request
from dialback.errors import ConfigError
from support.cli import dialback


def test_json_on_the_command_line() -> None:
    assert read_request('{"n": 3}') == {"n": 3}


def test_json_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text("[1, 2]")
    assert read_request(f"@{tmp_path}/request.json") == [1, 2]


def test_json_on_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"x"')))
    assert read_request("-") == "x"


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match="@/nowhere/x: No such file or directory"):
        read_request("@/nowhere/x")


def test_what_is_no_json_says_how_to_quote() -> None:
    with pytest.raises(ConfigError, match=r"request is not JSON: .*quote it"):
        read_request("{n: 3}")


@pytest.mark.parametrize("lane", ["fast", "HIGH"])
def test_a_lane_that_is_none_is_wrong_usage(lane: str) -> None:
    ran = dialback("submit", "demo.backend.generate", "1", "--lane", lane)
    assert ran.exit_code == 2
    assert f"'--lane': '{lane}' is not one of 'high', 'normal', 'low'." in ran.stderr


def test_to_stop_after_nothing_is_wrong_usage() -> None:
    assert dialback("submit", "demo.backend.generate", "1", "--stop-after", "0").exit_code == 2


def test_a_malformed_url_is_wrong_usage_and_does_not_show_its_user(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "nats://me:hunter2@127.0.0.1:99999"
    monkeypatch.setattr(sys, "argv", ["dialback", "submit", "a.b.c", "1", "-s", url])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "127.0.0.1:99999" in said
    assert "hunter2" not in said


def test_no_server_is_69() -> None:
    ran = dialback(
        "submit",
        "demo.backend.generate",
        "1",
        "-s",
        "nats://127.0.0.1:1",
        env={"DIALBACK_CONNECT_WITHIN": "0.2"},
    )
    assert ran.exit_code == 69
    assert "no nats-server answers at nats://127.0.0.1:1" in ran.stderr
