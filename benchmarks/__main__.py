"""``python -m benchmarks``: every benchmark, each against its peer in the same run.

Machines differ and are shared, so only the ratios mean something; absolute figures are
printed to make the ratios believable.
"""

import asyncio

import uvloop

from benchmarks import back_channel, work_queue


async def main() -> None:
    """Run all of them."""
    await back_channel.main()
    await work_queue.main()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
