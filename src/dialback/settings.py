"""Settings: environment variables to validated values. The only reader of the environment.

Order: keyword argument (flag) > environment > default. Every setting has a variable with the
prefix ``DIALBACK_``; Dynamo's own names are accepted for what both know, so that a Dynamo
deployment's environment works unchanged. An unknown ``DIALBACK_`` variable is an error.

Source: operator 2.1; defaults of overview section 8.
"""

import difflib
import os
import socket
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AliasChoices, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from dialback.errors import ConfigError
from dialback.queue.connection import ServerAddress
from dialback.queue.policy import RetryPolicy
from dialback.queue.topology import QueueSettings
from dialback.transport.address import DEFAULT_CALL_HOME_NETWORKS, CallHomePolicy
from dialback.transport.dial import DialSettings
from dialback.transport.messages import PayloadCodec
from dialback.transport.two_part import MAX_DATA_BYTES

_PREFIX = "DIALBACK_"


def _env(name: str, *others: str) -> AliasChoices:
    """Accept the field's own name (keyword), our variable, then the other variables."""
    return AliasChoices(name, _PREFIX + name.upper(), *others)


class Settings(BaseSettings):
    """Everything that can be set, for workers and requesters.

    Raises:
        ConfigError: From :meth:`load`, with a sentence for each wrong value.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, extra="forbid", populate_by_name=True, frozen=True, case_sensitive=False
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
        default=3,
        ge=1,
        description="Workers that may die with one request; then it is poison.",
    )
    requester_gone: Literal["dead-letter", "discard"] = Field(
        default="dead-letter", description="What becomes of a request whose requester is gone."
    )

    # --- the worker -------------------------------------------------------------------
    slots: int = Field(default=16, ge=1, description="Requests a worker serves at the same time.")
    worker_name: str = Field(
        default_factory=socket.gethostname, description="Name of this worker in logs and letters."
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
        description="Its port; 0 any free one, -1 off.",
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

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.max_ack_pending < self.slots:
            raise ValueError(
                f"max_ack_pending {self.max_ack_pending} is less than slots {self.slots}"
            )
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
            raise ConfigError(_sentences(error)) from error

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

    def dial_settings(self) -> DialSettings:
        """Return how hard to dial."""
        return DialSettings(
            attempts=self.dial_attempts,
            total_timeout=self.dial_timeout,
            connect_timeout=self.connect_timeout,
            send_timeout=self.send_timeout,
            linger=self.linger,
        )


def _as_variable(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, cast("tuple[object, ...]", value)))
    return str(value)


def server_is_named() -> bool:
    """Whether the environment names a nats-server (else the demo starts one)."""
    return any(os.environ.get(name) for name in ("DIALBACK_SERVER", "NATS_SERVER", "NATS_URL"))


def _refuse_unknown(settings: type[Settings]) -> None:
    known = {_PREFIX + name.upper() for name in settings.model_fields} | {"DIALBACK_OUTPUT"}
    for name in sorted(os.environ):
        if name.upper().startswith(_PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"unknown environment variable {name}{hint}")


def _sentences(error: ValidationError) -> str:
    parts: list[str] = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "settings"
        parts.append(f"{where.removeprefix(_PREFIX).lower()}: {problem['msg']}")
    return "; ".join(parts)
