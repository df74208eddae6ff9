import traceback

import pytest

from dialback import ConfigError, Settings
from dialback.settings import server_is_named


def test_defaults_are_those_of_the_design() -> None:
    settings = Settings.load()
    assert settings.server == "nats://127.0.0.1:4222"
    assert (settings.ack_wait, settings.slots, settings.max_attempts) == (30.0, 16, 5)
    assert (settings.dial_attempts, settings.dial_timeout) == (4, 10.0)
    assert settings.shutdown_budget == 30.0
    assert settings.max_item_bytes == 64 * 1024 * 1024


@pytest.mark.parametrize("name", ["DIALBACK_SERVER", "NATS_SERVER", "NATS_URL"])
def test_each_variable_for_the_server_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not server_is_named()
    monkeypatch.setenv(name, "nats://there:4222")
    assert Settings.load().server == "nats://there:4222"
    assert server_is_named()


def test_our_own_variable_wins_over_the_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", "nats://alias:1")
    monkeypatch.setenv("DIALBACK_SERVER", "nats://ours:1")
    assert Settings.load().server == "nats://ours:1"


@pytest.mark.parametrize("name", ["USER", "PASSWORD", "TOKEN", "SERVER", "CODEC"])
def test_a_bare_name_is_not_our_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Settings.load()
    monkeypatch.setenv(name, "not-ours")
    assert Settings.load() == before


def test_the_login_name_does_not_win_over_our_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "login")
    monkeypatch.setenv("DIALBACK_USER", "service")
    assert Settings.load().user == "service"
    assert Settings.load(user="keyword").user == "keyword"


def test_a_keyword_wins_over_the_environment_and_none_is_no_keyword(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIALBACK_SLOTS", "3")
    assert Settings.load(slots=None).slots == 3
    assert Settings.load(slots=7).slots == 7


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("NATS_AUTH_USERNAME", "u", "user", "u"),
        ("NATS_AUTH_PASSWORD", "p", "password", "p"),
        ("NATS_AUTH_TOKEN", "t", "token", "t"),
        ("NATS_AUTH_NKEY", "/seed", "nkey_seed_file", "/seed"),
        ("NATS_AUTH_CREDENTIALS_FILE", "/creds", "credentials_file", "/creds"),
        ("DYN_SYSTEM_PORT", "9090", "status_port", 9090),
        ("DYN_TCP_RESPONSE_STREAM_HOST", "lo", "response_host", "lo"),
        ("DYN_REQUEST_PLANE_CODEC", "msgpack", "codec", "msgpack"),
    ],
)
def test_dynamos_variables_are_accepted(
    variable: str, value: str, field: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    needed = {"user": "u"} if field == "password" else {}
    assert getattr(Settings.load(**needed), field) == expected


def test_an_unknown_variable_of_ours_is_refused_with_a_hint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIALBACK_SLOT", "3")
    with pytest.raises(ConfigError, match="DIALBACK_SLOT; did you mean DIALBACK_SLOTS"):
        Settings.load()


def test_a_variable_that_is_like_none_of_ours_has_no_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALBACK_FOO", "3")
    with pytest.raises(ConfigError, match=r"variable DIALBACK_FOO$"):
        Settings.load()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"slots": 0}, "^slots=0: should be greater than or equal to 1"),
        ({"ack_wait": "soon"}, "^ack_wait='soon': should be a valid number"),
        ({"slots": 30_000}, "^max_ack_pending 20000 is less than slots 30000"),
        ({"call_home_networks": "10.0.0.0/33"}, "write for instance 10.0.0.0/8"),
        ({"reserved_slots": "high"}, "^reserved_slots='high': 'high' is not readable"),
        ({"reserved_slots": "high=16"}, "16 of 16 slots would be reserved"),
        ({"reserved_slots": {"urgent": 1}}, "no lane 'urgent'; the lanes are high, normal, low"),
        ({"pull_watchdog": 10}, "^pull_watchdog=10: should be greater than or equal to 15"),
        ({"codec": "xml"}, "^codec='xml': should be 'json' or 'msgpack'"),
        ({"password": "hunter2"}, "^there is a password but no user: set DIALBACK_USER, too"),
        ({"slot": 3}, "^there is no setting slot$"),
    ],
)
def test_a_wrong_value_is_a_sentence_that_names_it(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Settings.load(**wrong)


def test_a_wrong_variable_is_named_as_it_is_spelt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("dialback_slots", "x")
    monkeypatch.setenv("DYN_SYSTEM_PORT", "99999")
    with pytest.raises(ConfigError) as caught:
        Settings.load()
    first, second = str(caught.value).split("; ")
    assert first.startswith("dialback_slots='x': should be a valid integer")
    assert second == "DYN_SYSTEM_PORT='99999': should be less than or equal to 65535"


@pytest.mark.parametrize("url", ["nats://127.0.0.1:99999", "garbage::", "http://here:1", ""])
def test_a_url_that_is_none_is_a_wrong_setting(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NATS_SERVER", url)
    with pytest.raises(ConfigError, match=f"^NATS_SERVER='{url}': "):
        Settings.load()


@pytest.mark.parametrize(
    "wrong",
    [
        {"password": 1234567},
        {"token": 1234567},
        {"passwort": 1234567},
        {"server": "nats://me:1234567@here:0"},
        {"slots": 30_000, "user": "me", "password": "1234567"},
    ],
)
def test_no_error_shows_a_secret(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.load(**wrong)
    assert "1234567" not in "".join(traceback.format_exception(caught.value))


def test_networks_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALBACK_CALL_HOME_NETWORKS", "198.18.0.0/15, 10.0.0.0/8")
    assert Settings.load().call_home_networks == ("198.18.0.0/15", "10.0.0.0/8")


def test_reserved_slots_are_pairs_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALBACK_RESERVED_SLOTS", "high=2, normal=1")
    assert Settings.load().reserved_slots == {"high": 2, "normal": 1}


def test_secrets_are_not_shown() -> None:
    settings = Settings.load(user="me", password="hunter2", token="t0ps3cret")  # noqa: S106
    shown = repr(settings) + repr(settings.server_address())
    assert "hunter2" not in shown
    assert "t0ps3cret" not in shown


def test_settings_survive_the_way_to_a_child_process(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(
        server="nats://there:4222",
        ack_wait=3.5,
        call_home_networks=("10.0.0.0/8", "::1/128"),
        reserved_slots={"high": 2, "low": 1},
    )
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings


def test_what_the_folders_take_carries_the_values() -> None:
    settings = Settings.load(
        requester_gone="discard", max_attempts=2, dial_attempts=1, replicas=3, user="u"
    )
    assert settings.retry_policy().discard_gone
    assert settings.retry_policy().max_attempts == 2
    assert settings.dial_settings().attempts == 1
    assert settings.queue_settings().replicas == 3
    assert settings.server_address().user == "u"
