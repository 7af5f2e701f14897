"""Kill a training at random moments and compare it with one that ran through: weights and logs, byte for byte.

Run ``python scripts/kill_training.py RECIPE FOLDER --kills 30 --stops 10 [--processes 2]``. RECIPE is small and trains
on the CPU; its ``parallel`` says how several processes share the model. All processes of a run are killed together.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from mini_internvl import recipes
from mini_internvl.commands._options import stoppable
from mini_internvl.records import Interrupted
from mini_internvl.train.run import run_recipe


def train(recipe: recipes.Recipe, folder: Path, processes: int, workers: int) -> list[int]:
    """Start the training in processes of its own, as the command does; their ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        process = os.fork()
        if process:
            started.append(process)
            continue
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        code = 1
        try:
            torch.set_num_threads(1)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            run_recipe(recipe, folder, stoppable=stoppable, workers=workers)
            code = 0
        except (Interrupted, KeyboardInterrupt):
            code = 2
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    return started


def ended(processes: list[int]) -> bool:
    """Whether one of them has ended by itself."""
    return any(os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) for process in processes)


def wait(processes: list[int]) -> int:
    """The exit code of the first process, once all have ended; 2 where another was stopped, which breaks off the first.

    That happens where a signal meets one before or behind its steps, and the other within them.
    """
    codes = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return 2 if codes[0] == 1 and 2 in codes else codes[0]


def facts(folder: Path) -> dict[str, str]:
    """Hashes of the weights and logs that a run left."""
    weights = [path for path in folder.rglob("*.safetensors") if "state" not in path.parts[len(folder.parts) :]]
    states = sorted(path for path in (folder / "state").rglob("*.safetensors"))[-1:]
    logs = [*folder.glob("metrics.jsonl"), *folder.glob("quarantine.jsonl"), *folder.glob("plan/*")]
    files = sorted([*weights, *states, *logs])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    """Print what was compared; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe, rng = recipes.load(arguments.recipe), random.Random(arguments.seed)
    how = arguments.processes, arguments.workers
    began = time.monotonic()
    assert wait(train(recipe, arguments.folder / "whole", *how)) == 0
    span = time.monotonic() - began
    wanted = facts(arguments.folder / "whole")
    signals = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.stops
    rng.shuffle(signals)
    run, sent, different = 0, {signal.SIGKILL: 0, signal.SIGTERM: 0}, 0
    while signals:  # a run may end before its signal: then the next one takes the rest
        folder = arguments.folder / f"killed{run}"
        code = None
        while code != 0:
            processes = train(recipe, folder, *how)
            if signals:
                time.sleep(rng.uniform(0.0, 0.7 * span))
                if not ended(processes):
                    for process in processes:
                        os.kill(process, signals[-1])
                    sent[signals.pop()] += 1
            code = wait(processes)
            if code == 1:
                return 1
        found = facts(folder)
        if found != wanted:
            different += 1
            print(f"{folder}: other {', '.join(name for name in wanted if found.get(name) != wanted[name])}")
        run += 1
    names = ", ".join(f"{count} {number.name}" for number, count in sent.items())
    print(f"{names} over {run} runs of {span:.1f} s: {different} differ from the uninterrupted one")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
