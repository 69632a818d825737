"""One start, in a process of its own: `python -m runtime.bench.startup_probe ARGUMENTS` (JSON, of `EngineConfig`).

Prints a JSON object once the engine is ready, or has refused to start, and ends.
"""

from __future__ import annotations

import json
import sys

from runtime.start_timer import StartTimer


def main() -> int:
    timer = StartTimer.of_process("interpreter")
    timer.enter("imports")
    from runtime.engine import Engine

    timer.enter("config")
    from runtime.config import EngineConfig
    from runtime.errors import Error

    try:
        engine = Engine(EngineConfig.from_arguments(json.loads(sys.argv[1])), timer=timer)
    except Error as error:
        print(json.dumps({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}))
        return 1
    print(json.dumps({"startup": engine.startup, "dtype": engine.dtype}), flush=True)
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
