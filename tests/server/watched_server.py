"""`runtime serve` with an eye on its event loop: `python watched_server.py serve ...`.

At SIGUSR1 it writes `blocked 12.3 ms` to stderr, the longest time since the last one in which the loop did nothing
else. Time that another process had the core does not count: it is the lesser of the CPU time of this process and what
the clock says, less what the loop's thread waited for a core.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path

from runtime.cli.main import main

INTERVAL_S = 0.002
longest_s = 0.0


def waited_s():
    """How long this thread has waited for a core in its life: it was not asleep, and did not run."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:  # this kernel does not count
        return 0.0


async def watch():
    global longest_s
    while True:
        began, cpu, waited = time.perf_counter(), time.process_time(), waited_s()
        await asyncio.sleep(INTERVAL_S)
        late_s = time.perf_counter() - began - INTERVAL_S - (waited_s() - waited)
        longest_s = max(longest_s, min(late_s, time.process_time() - cpu))


def tell():
    global longest_s
    print(f"blocked {longest_s * 1e3:.1f} ms", file=sys.stderr, flush=True)
    longest_s = 0.0


def watching(run):
    async def both(serve):
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
        watcher = asyncio.create_task(watch())
        try:
            return await serve
        finally:
            watcher.cancel()

    return lambda serve: run(both(serve))


if __name__ == "__main__":
    asyncio.run = watching(asyncio.run)
    sys.exit(main())
