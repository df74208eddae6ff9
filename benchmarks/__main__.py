"""``python -m benchmarks``: every benchmark; rates against a peer's in the same run.

Machines differ and are shared, so only the ratios mean something; absolute figures are
printed to make the ratios believable.
"""

import asyncio

import uvloop

from benchmarks import back_channel, idle_slots, work_queue


async def main() -> None:
    """Run all of them."""
    await back_channel.main()
    await work_queue.main()
    await idle_slots.main()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
