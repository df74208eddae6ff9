"""Bytes of real Dynamo peers (tests/vectors/dynamo), one value for each captured request."""

from dataclasses import dataclass

from typing_extensions import override

from dialback.transport.messages import PayloadCodec, decode_request_control
from dialback.transport.two_part import TwoPartMessage, decode
from support.frames import VECTORS, decode_all

RELEASES = ("1.3.1", "1.6.1")
SCENARIOS = (
    "normal",
    "empty",
    "codec_json",
    "codec_msgpack",
    "fixed_id_and_metadata",
    "raise_before",
    "raise_mid",
    "stop",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One request between two real peers.

    Attributes:
        release: Release of both peers.
        scenario: What was done.
        payload: The request's NATS payload.
        worker_bytes: All that the worker wrote on the back-channel.
        requester_bytes: All that the requester wrote there.
    """

    release: str
    scenario: str
    payload: bytes
    worker_bytes: bytes
    requester_bytes: bytes

    @override
    def __str__(self) -> str:
        return f"{self.release}-{self.scenario}"

    @property
    def codec(self) -> PayloadCodec:
        """Codec of the request and of its answers."""
        return decode_request_control(decode(self.payload).header).codec

    @property
    def frames(self) -> list[TwoPartMessage]:
        """The worker's frames."""
        return decode_all(self.worker_bytes)

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of its data-only frames."""
        return [frame.data for frame in self.frames if frame.data]


def capture(release: str, scenario: str) -> Capture:
    """Read one capture."""
    folder = VECTORS / "dynamo" / release / scenario
    requester = folder / "tcp0.client-to-worker.bin"
    return Capture(
        release=release,
        scenario=scenario,
        payload=(folder / "client-request.payload.bin").read_bytes(),
        worker_bytes=(folder / "tcp0.worker-to-client.bin").read_bytes(),
        requester_bytes=requester.read_bytes() if requester.exists() else b"",
    )


CAPTURES = [capture(release, scenario) for release in RELEASES for scenario in SCENARIOS]
