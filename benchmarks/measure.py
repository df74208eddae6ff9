"""Taking turns: each contestant runs several times, interleaved; the medians are compared."""

import statistics
import time
from collections.abc import Awaitable, Callable

ROUNDS = 5


async def compare(
    *,
    title: str,
    unit: str,
    count: int,
    ours: Callable[[], Awaitable[None]],
    peer: Callable[[], Awaitable[None]],
    peer_name: str,
) -> None:
    """Run both in turns; print rates and their ratio.

    Args:
        title: What is measured.
        unit: What is counted, in the plural.
        count: How many of them one run makes.
        ours: Our run.
        peer: The peer's run.
        peer_name: What the peer is.
    """
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(ROUNDS):
        for name, run in (("ours", ours), ("peer", peer)):
            start = time.perf_counter()
            await run()
            seconds[name].append(time.perf_counter() - start)
    mine, theirs = (count / statistics.median(seconds[name]) for name in ("ours", "peer"))
    spread = (max(seconds["ours"]) - min(seconds["ours"])) / statistics.median(seconds["ours"])
    print(f"{title}")
    print(f"  dialback {mine:12,.0f} {unit}/s   (spread {spread:.0%} of {ROUNDS} runs)")
    print(f"  peer     {theirs:12,.0f} {unit}/s   ({peer_name})")
    print(f"  ratio    {mine / theirs:12.2f}")
