"""Run a training script again and again, killing it, until it ends: python tests/killable.py SCRIPT KILLS [options]

The libraries are imported once; each attempt is a fork, so that an attempt costs a second rather than ten. Every third
kill waits for a checkpoint to be half written. Prints one line of JSON: kills, and those during a write.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch


def attempt(script, argv: list[str]) -> None:
    """In a fork: run the script with its output in a log."""
    sys.argv = [f"{script.__name__}.py", *argv]
    log = os.open("attempts.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 0
    try:
        script.run_script(script.main)
    except SystemExit as end:
        status = end.code
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    os._exit(status)


def wait_or_kill(child: int, deadline: float, partial: Path, during_write: bool) -> tuple[int | None, bool]:
    """Exit status, or None if killed, and whether that hit a half-written checkpoint."""
    start = time.monotonic()
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), False
        writing = partial.exists()
        late = time.monotonic() - start > deadline
        if (writing if during_write else late) or late and time.monotonic() - start > 30:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, partial.exists()
        time.sleep(0.001)


def main() -> None:
    script = importlib.import_module(Path(sys.argv[1]).stem)
    kills, argv = int(sys.argv[2]), sys.argv[3:]
    folder = Path(argv[argv.index("--output_dir") + 1])
    torch.set_num_threads(1)
    chance = random.Random(0)
    done, hit = 0, 0
    while True:
        child = os.fork()
        if child == 0:
            attempt(script, argv)
        if done < kills:
            status, during_write = wait_or_kill(
                child, chance.uniform(0.3, 2.0), folder / "checkpoints" / "partial", done % 3 == 2
            )
        else:
            status, during_write = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), False
        if status is None:
            done, hit = done + 1, hit + during_write
        elif status == 0:
            print(json.dumps({"kills": done, "during_write": hit}))
            return
        else:
            sys.exit(f"an attempt ended with status {status}; attempts.log says why")


if __name__ == "__main__":
    main()
