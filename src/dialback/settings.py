"""Settings: environment variables to validated values. The only reader of the environment.

Order: keyword argument (flag) > environment > default. Every setting has a variable with the
prefix ``DIALBACK_``; Dynamo's own names are accepted for what both know, so that a Dynamo
deployment's environment works unchanged. An unknown ``DIALBACK_`` variable is an error.

Source: operator 2.1; defaults of overview section 8.
"""

import difflib
import os
import socket
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dialback.errors import ConfigError
from dialback.queue.connection import ServerAddress
from dialback.queue.janitor import JanitorSettings
from dialback.queue.lanes import check_reserved, parse_reserved
from dialback.queue.policy import RetryPolicy
from dialback.queue.topology import Lane, QueueSettings
from dialback.server_urls import check_server_urls
from dialback.setting_errors import sentences
from dialback.transport.address import DEFAULT_CALL_HOME_NETWORKS, CallHomePolicy
from dialback.transport.dial import DialSettings
from dialback.transport.messages import PayloadCodec
from dialback.transport.two_part import MAX_DATA_BYTES

_PREFIX = "DIALBACK_"
_ALIKE = 0.8  # of 1: names that may be the same word, misspelt
_LAST_PORT = 65535
_LEAST_STUCK_LIMIT = 2.0  # seconds: some turns of a healthy event loop's pulse


def _env(name: str, *others: str) -> AliasChoices:
    """Accept our variable, then the other variables.

    Not the bare name: as a variable it would be ``USER`` or ``TOKEN``, which are not ours.
    """
    return AliasChoices(_PREFIX + name.upper(), *others)


class Settings(BaseSettings):
    """Everything that can be set, for workers and requesters.

    Raises:
        ConfigError: From :meth:`load`, with a sentence for each wrong value.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        extra="forbid",
        populate_by_name=True,  # keywords
        frozen=True,
        case_sensitive=False,
        hide_input_in_errors=True,  # pydantic's own text, in a traceback, would show passwords
    )

    # --- NATS -------------------------------------------------------------------------
    server: str = Field(
        default="nats://127.0.0.1:4222",
        validation_alias=_env("server", "NATS_SERVER", "NATS_URL"),
        description="URL of the nats-server; several separated by commas.",
    )
    user: str | None = Field(
        default=None, validation_alias=_env("user", "NATS_AUTH_USERNAME"), description="NATS user."
    )
    password: str | None = Field(
        default=None,
        validation_alias=_env("password", "NATS_AUTH_PASSWORD"),
        repr=False,
        description="NATS password.",
    )
    token: str | None = Field(
        default=None,
        validation_alias=_env("token", "NATS_AUTH_TOKEN"),
        repr=False,
        description="NATS token.",
    )
    nkey_seed_file: str | None = Field(
        default=None,
        validation_alias=_env("nkey_seed_file", "NATS_AUTH_NKEY"),
        description="File with an nkey seed.",
    )
    credentials_file: str | None = Field(
        default=None,
        validation_alias=_env("credentials_file", "NATS_AUTH_CREDENTIALS_FILE", "NATS_CREDS"),
        description="NATS .creds file.",
    )
    tls_ca: str | None = Field(
        default=None,
        validation_alias=_env("tls_ca", "NATS_CA"),
        description="PEM file of the server's CA.",
    )
    tls_cert: str | None = Field(
        default=None,
        validation_alias=_env("tls_cert", "NATS_CERT"),
        description="Client certificate.",
    )
    tls_key: str | None = Field(
        default=None, validation_alias=_env("tls_key", "NATS_KEY"), description="Client key."
    )
    connect_within: float = Field(
        default=10.0, gt=0, description="Seconds for the first connect to the nats-server."
    )

    # --- the queue --------------------------------------------------------------------
    ack_wait: float = Field(
        default=30.0, ge=1, description="Seconds a lease lasts without renewal."
    )
    stuck_limit: float = Field(
        default=0.0,
        ge=0,
        description="Seconds an engine may block the event loop before its requests go to"
        " another worker; 0: 10 times `ack_wait`.",
    )
    replicas: int = Field(
        default=1, ge=1, le=5, description="Replicas of streams that are created."
    )
    max_messages: int = Field(
        default=-1, ge=-1, description="Requests a new queue holds at most; -1 is no limit."
    )
    max_ack_pending: int = Field(
        default=20_000, ge=1, description="Requests in flight or delayed, over all workers."
    )
    max_attempts: int = Field(
        default=5, ge=1, description="Deliveries in which a requester may be unreachable."
    )
    retry_delay: float = Field(
        default=5.0, gt=0, description="Seconds before the second attempt; doubles with each."
    )
    max_crashes: int = Field(
        default=3, ge=1, description="Workers that may die with a request; then it is poison."
    )
    requester_gone: Literal["dead-letter", "discard"] = Field(
        default="dead-letter", description="What becomes of a request whose requester is gone."
    )

    # --- the worker -------------------------------------------------------------------
    slots: int = Field(default=16, ge=1, description="Requests a worker serves at the same time.")
    processes: int = Field(
        default=1,
        ge=1,
        description="Worker processes; from 2 on they are supervised, and each has these slots.",
    )
    worker_name: str = Field(
        default_factory=socket.gethostname, description="Name of this worker in logs and letters."
    )
    reserved_slots: Annotated[Mapping[str, int], NoDecode] = Field(
        default={},
        description="Slots that only a lane may use, such as high=2,normal=1; taken from slots.",
    )
    pull_watchdog: float = Field(
        default=120.0,
        ge=15,
        description="Seconds without any answer to a pull, though connected and slots are free,"
        " after which a worker drains and exits with 70; not ready after half of them.",
    )
    stop_grace: float = Field(
        default=1.0, ge=0, description="Seconds an engine has to end after the caller's stop."
    )
    shutdown_budget: float = Field(
        default=30.0,
        gt=0,
        validation_alias=_env("shutdown_budget", "DYN_RUNTIME_GRACEFUL_SHUTDOWN_TIMEOUT_SECS"),
        description="Seconds from SIGTERM to the end; give the pod 10 more.",
    )
    status_host: str = Field(
        default="127.0.0.1",
        validation_alias=_env("status_host", "DYN_SYSTEM_HOST"),
        description="Address of /metrics, /health, /live and /ready.",
    )
    status_port: int = Field(
        default=0,
        ge=-1,
        le=65535,
        validation_alias=_env("status_port", "DYN_SYSTEM_PORT"),
        description="Its port; 0 any free one, -1 off. Each further process takes the next one.",
    )

    janitor_interval: float = Field(
        default=10.0,
        ge=0,
        description="Seconds between two looks for requests that nobody took in time; 0: workers"
        " do not look.",
    )
    unserved_limit: float = Field(
        default=0.0,
        ge=0,
        description="Seconds a request without any deadline may wait for a worker before its"
        " caller is told; 0: for ever.",
    )

    # --- the back-channel -------------------------------------------------------------
    call_home_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        default=DEFAULT_CALL_HOME_NETWORKS,
        description="Networks a worker may dial, separated by commas.",
    )
    dial_attempts: int = Field(default=4, ge=1, description="Dial attempts in one delivery.")
    dial_timeout: float = Field(default=10.0, gt=0, description="Seconds for all of them.")
    connect_timeout: float = Field(default=5.0, gt=0, description="Seconds for one of them.")
    send_timeout: float = Field(
        default=60.0, gt=0, description="Seconds without progress after which a write has failed."
    )
    linger: float = Field(
        default=10.0, ge=0, description="Seconds to wait for the requester's close at the end."
    )
    idle_timeout: float = Field(
        default=5.0,
        ge=0,
        le=30,
        description="Seconds a worker keeps a connection for the next stream of the same"
        " requester, at most 30; 0 keeps none.",
    )
    response_host: str = Field(
        default="",
        validation_alias=_env("response_host", "DYN_TCP_RESPONSE_STREAM_HOST"),
        description="Where a requester listens: IP, host or interface; empty: the address"
        " this machine uses towards the nats-server.",
    )
    response_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        validation_alias=_env("response_port", "DYN_TCP_RESPONSE_STREAM_PORT"),
        description="Its port; 0 any free one.",
    )
    advertise: str = Field(
        default="", description="host or host:port workers dial, if another (NAT, published port)."
    )
    max_item_bytes: int = Field(
        default=MAX_DATA_BYTES, ge=1024, description="Largest item accepted."
    )
    codec: PayloadCodec = Field(
        default=PayloadCodec.JSON,
        validation_alias=_env("codec", "DYN_REQUEST_PLANE_CODEC"),
        description="Codec of a requester's requests: json or msgpack.",
    )

    # --- logs -------------------------------------------------------------------------
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Lowest level that is logged."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, JSON lines otherwise."
    )

    @field_validator("server")
    @classmethod
    def _can_be_servers(cls, value: str) -> str:
        check_server_urls(value)
        return value

    @field_validator("call_home_networks", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("call_home_networks")
    @classmethod
    def _readable(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        CallHomePolicy(value)
        return value

    @field_validator("reserved_slots", mode="before")
    @classmethod
    def _parse_reserved(cls, value: object) -> object:
        return parse_reserved(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.password and not self.user:
            raise ValueError("there is a password but no user: set DIALBACK_USER, too")
        check_reserved(self.reserved_slots, slots=self.slots, lanes=Lane)
        if self.max_ack_pending < self.slots:
            raise ValueError(
                f"max_ack_pending {self.max_ack_pending} is less than slots {self.slots}"
            )
        if 0 < self.stuck_limit < _LEAST_STUCK_LIMIT:
            raise ValueError(f"stuck_limit {self.stuck_limit:g} is less than 2 s, and not 0")
        if self.status_port > 0 and self.status_port + self.processes - 1 > _LAST_PORT:
            raise ValueError(f"status_port {self.status_port}: no room for {self.processes} ports")
        return self

    @classmethod
    def load(cls, **overrides: Any) -> "Settings":
        """Read the environment; ``overrides`` that are not ``None`` win.

        Raises:
            ConfigError: If a value is wrong or a ``DIALBACK_`` variable is not known.
        """
        _refuse_unknown(cls)
        given = {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            raise ConfigError(
                sentences(
                    error,
                    cls.model_fields,
                    prefix=_PREFIX,
                    given=given,
                    environment=os.environ,
                )
            ) from error

    def environment(self) -> dict[str, str]:
        """Return this process's environment with these settings, for a child process."""
        ours = {
            _PREFIX + name.upper(): _as_variable(getattr(self, name))
            for name in self.model_fields_set
        }
        return os.environ | ours

    # --- what the folders take --------------------------------------------------------

    def server_address(self) -> ServerAddress:
        """Return which server, and as whom."""
        return ServerAddress(
            url=self.server,
            user=self.user,
            password=self.password,
            token=self.token,
            nkey_seed_file=self.nkey_seed_file,
            credentials_file=self.credentials_file,
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
        )

    def queue_settings(self) -> QueueSettings:
        """Return what provisioning wants."""
        return QueueSettings(
            ack_wait=self.ack_wait,
            replicas=self.replicas,
            max_messages=self.max_messages,
            max_ack_pending=self.max_ack_pending,
        )

    def retry_policy(self) -> RetryPolicy:
        """Return when to give up."""
        return RetryPolicy(
            max_attempts=self.max_attempts,
            retry_delay=self.retry_delay,
            discard_gone=self.requester_gone == "discard",
        )

    def janitor_settings(self) -> JanitorSettings:
        """Return how a janitor behaves."""
        return JanitorSettings(
            interval=self.janitor_interval,
            unserved_limit=self.unserved_limit,
            replicas=self.replicas,
        )

    def dial_settings(self) -> DialSettings:
        """Return how hard to dial."""
        return DialSettings(
            attempts=self.dial_attempts,
            total_timeout=self.dial_timeout,
            connect_timeout=self.connect_timeout,
            send_timeout=self.send_timeout,
            linger=self.linger,
            idle_timeout=self.idle_timeout,
        )


def _as_variable(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, cast("tuple[object, ...]", value)))
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, object]", value).items()
        return ",".join(f"{key}={of_it}" for key, of_it in pairs)
    return str(value)


def server_is_named() -> bool:
    """Whether the environment names a nats-server (else the demo starts one)."""
    return any(os.environ.get(name) for name in ("DIALBACK_SERVER", "NATS_SERVER", "NATS_URL"))


def _refuse_unknown(settings: type[Settings]) -> None:
    known = {name.upper() for name in settings.model_fields} | {"OUTPUT"}
    for variable in sorted(os.environ):
        name = variable.upper().removeprefix(_PREFIX)
        if not variable.upper().startswith(_PREFIX) or name in known:
            continue
        near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
        hint = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
        raise ConfigError(f"unknown environment variable {variable}{hint}")
