"""docker-compose.yml keeps its rules, as Compose itself reads it. Needs no container engine.

``tests/compose/run.sh`` builds and runs it.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from dialback import __version__, load_engine
from dialback.queue.embedded_server import find_server
from dialback.queue.topology import Endpoint
from dialback.settings import Settings
from dialback.transport.address import DEFAULT_CALL_HOME_NETWORKS

ROOT = Path(__file__).parent.parent
STATUS_PORT = 8080
GRACE_ADVICE = 10.0  # seconds a container gets on top of the shutdown budget


def compose_config(**variables: str) -> dict[str, Any]:
    """Return the file as Compose resolves it, all profiles, with these variables only."""
    program = Path(sys.executable).parent / "docker-compose"
    files = ["--env-file", "/dev/null", "-f", str(ROOT / "docker-compose.yml")]
    done = subprocess.run(
        [program, *files, "--profile", "*", "config", "--format", "json"],
        env=variables,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""  # a variable without default would be a warning
    config: dict[str, Any] = orjson.loads(done.stdout)
    return config


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    named: dict[str, Any] = compose_config()["services"]
    return named


def seconds(duration: str) -> float:
    """Read a Compose duration: ``40s``, ``1m30s``."""
    unit = {"h": 3600.0, "m": 60.0, "s": 1.0}
    return sum(float(n) * unit[u] for n, u in re.findall(r"([\d.]+)([hms])", duration))


def dockerfile() -> str:
    return (ROOT / "Dockerfile").read_text()


def dockerfile_environment() -> dict[str, str]:
    return dict(re.findall(r"\b(DIALBACK_\w+)=(\S+)", dockerfile()))


def test_the_services_are_a_server_workers_a_janitor_prometheus_and_a_tool(
    services: dict[str, Any],
) -> None:
    assert set(services) == {"nats", "worker", "janitor", "prometheus", "requester"}
    assert [name for name, service in services.items() if service.get("profiles")] == ["requester"]


def test_images_are_pinned_by_tag_and_never_force_pulled(services: dict[str, Any]) -> None:
    assert services["nats"]["image"] == "nats:2.15.1-alpine"
    assert services["prometheus"]["image"] == "prom/prometheus:v2.53.3"
    ours = ("worker", "janitor", "requester")
    assert {services[name]["image"] for name in ours} == {"dialback:local"}
    for service in services.values():
        assert "pull_policy" not in service
        assert "pull" not in service.get("build", {})


def test_jetstream_keeps_its_store_on_a_volume(services: dict[str, Any]) -> None:
    mounts = {mount["target"]: mount for mount in services["nats"]["volumes"]}
    config = (ROOT / "deploy/nats.conf").read_text()
    assert re.findall(r"store_dir: (\S+)", config) == ["/data"]
    assert "sync_interval: always" in config
    assert (mounts["/data"]["type"], mounts["/data"]["source"]) == ("volume", "nats-data")
    assert "nats-data" in compose_config()["volumes"]
    assert Path(mounts["/etc/nats/nats-server.conf"]["source"]) == ROOT / "deploy/nats.conf"


def test_nats_server_accepts_its_configuration() -> None:
    done = subprocess.run(
        [find_server(), "-t", "-c", ROOT / "deploy/nats.conf"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_health_checks_use_what_the_images_contain(services: dict[str, Any]) -> None:
    assert services["nats"]["healthcheck"]["test"][:2] == ["CMD", "wget"]
    assert services["nats"]["healthcheck"]["test"][-1] == "http://127.0.0.1:8222/healthz"
    assert services["prometheus"]["healthcheck"]["test"][:2] == ["CMD", "wget"]
    kind, program, option, code = services["worker"]["healthcheck"]["test"]
    assert (kind, program, option) == ("CMD", "python", "-c")
    assert "'/ready'" in code
    compile(code, "healthcheck", "exec")


def test_workers_start_when_the_server_is_healthy(services: dict[str, Any]) -> None:
    for name in ("worker", "janitor", "requester"):
        assert services[name]["depends_on"]["nats"]["condition"] == "service_healthy"


def test_the_number_of_workers_is_a_variable(services: dict[str, Any]) -> None:
    assert services["worker"]["deploy"]["replicas"] == 2
    assert compose_config(WORKERS="5")["services"]["worker"]["deploy"]["replicas"] == 5


def test_workers_can_scale_because_nothing_of_theirs_is_unique(services: dict[str, Any]) -> None:
    assert "ports" not in services["worker"]
    for service in services.values():
        assert "container_name" not in service
        assert "hostname" not in service


def test_host_ports_are_on_loopback_and_from_variables() -> None:
    chosen = compose_config(NATS_PORT="14222", NATS_MONITOR_PORT="18222", PROMETHEUS_PORT="19090")
    ports = [port for service in chosen["services"].values() for port in service.get("ports", [])]
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}
    assert {port["target"]: port["published"] for port in ports} == {
        4222: "14222",
        8222: "18222",
        9090: "19090",
    }


def test_a_worker_has_more_time_to_stop_than_its_shutdown_budget(services: dict[str, Any]) -> None:
    budget = float(services["worker"]["environment"]["DIALBACK_SHUTDOWN_BUDGET"])
    assert seconds(services["worker"]["stop_grace_period"]) >= budget + GRACE_ADVICE


def test_what_serves_is_restarted(services: dict[str, Any]) -> None:
    for name in ("nats", "worker", "janitor", "prometheus"):
        assert services[name]["restart"] == "unless-stopped"
    assert "restart" not in services["requester"]


def test_containers_have_no_more_rights_than_they_need(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("name", ["worker", "janitor", "requester"])
def test_settings_accept_the_environment_of_a_container(
    name: str, services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = Settings.load()
    environment = dockerfile_environment() | services[name]["environment"]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.load()
    assert settings.server == "nats://nats:4222"
    assert settings.status_host == "0.0.0.0"  # noqa: S104 -- Prometheus asks from outside
    assert settings.status_port == STATUS_PORT
    assert (settings.slots, settings.shutdown_budget) == (defaults.slots, defaults.shutdown_budget)


def test_the_call_home_networks_are_the_product_s_by_default(services: dict[str, Any]) -> None:
    for name in ("worker", "janitor"):
        networks = services[name]["environment"]["DIALBACK_CALL_HOME_NETWORKS"]
        assert tuple(networks.split(",")) == DEFAULT_CALL_HOME_NETWORKS


def test_the_janitor_looks_after_all_queues_and_shows_that_it_is_ready(
    services: dict[str, Any],
) -> None:
    assert services["janitor"]["command"] == ["janitor", "--all"]
    assert services["janitor"]["healthcheck"] == services["worker"]["healthcheck"]
    limited = compose_config(UNSERVED_LIMIT="600")["services"]["janitor"]["environment"]
    assert float(limited["DIALBACK_UNSERVED_LIMIT"]) == 600


def test_the_default_engine_exists_and_another_can_be_named(services: dict[str, Any]) -> None:
    worker, run, engine, option, endpoint = services["worker"]["command"]
    assert (worker, run, option) == ("worker", "run", "--endpoint")
    load_engine(engine)
    Endpoint.parse(endpoint)
    other = compose_config(ENGINE="mine:Engine", ENDPOINT="a.b.c")["services"]["worker"]["command"]
    assert other == ["worker", "run", "mine:Engine", "--endpoint", "a.b.c"]


def test_prometheus_scrapes_every_worker_and_the_janitor(services: dict[str, Any]) -> None:
    config = (ROOT / "deploy/prometheus.yml").read_text()
    assert re.findall(r"names: \[(\w+)\]", config) == ["worker", "janitor"]
    assert re.findall(r"port: (\d+)", config) == [str(STATUS_PORT)] * 2
    assert dockerfile_environment()["DIALBACK_STATUS_PORT"] == str(STATUS_PORT)
    mounts = {mount["target"]: mount["source"] for mount in services["prometheus"]["volumes"]}
    assert Path(mounts["/etc/prometheus/prometheus.yml"]) == ROOT / "deploy/prometheus.yml"
    assert mounts["/prometheus"] == "prometheus-data"


def test_the_image_runs_dialback_as_a_fixed_user_and_stops_on_sigterm() -> None:
    lines = dockerfile().splitlines()
    final = lines[max(i for i, line in enumerate(lines) if line.startswith("FROM ")) :]
    assert "USER 10001:10001" in final
    assert 'ENTRYPOINT ["dialback"]' in final
    assert "STOPSIGNAL SIGTERM" in final
    assert "WORKDIR /app" in final
    assert any(line.startswith("HEALTHCHECK ") for line in final)
    assert f"ARG VERSION={__version__}" in final


def test_the_image_builds_without_buildkit() -> None:
    text = dockerfile()
    assert "syntax=" not in text
    assert "--mount" not in text
    assert "<<" not in text
    assert re.search(r"^COPY .*--(chmod|link|parents)", text, re.MULTILINE) is None


def test_the_build_context_holds_all_that_is_copied() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = [
        name.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile(), re.MULTILINE)
        for name in line.split()
    ]
    assert sorted(copied) == sorted(kept)
    links = {
        link.readlink().name for link in (ROOT / "src/dialback").iterdir() if link.is_symlink()
    }
    assert links <= kept
