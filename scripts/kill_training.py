"""Kill a training at random moments and compare it with one that ran through: weights and log, byte for byte.

Run ``python scripts/kill_training.py RECIPE FOLDER --kills 30 --stops 10``. RECIPE is small and trains on the CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from mini_internvl import recipes
from mini_internvl.commands._options import stoppable
from mini_internvl.records import Interrupted
from mini_internvl.train.run import run_recipe


def train(recipe: recipes.Recipe, folder: Path) -> int:
    """Start the training in a process of its own, as the command does; its id."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        torch.set_num_threads(1)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        run_recipe(recipe, folder, stoppable=stoppable, workers=1)
        code = 0
    except (Interrupted, KeyboardInterrupt):
        code = 2
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def facts(folder: Path) -> dict[str, object]:
    """Hashes of the weights and logs that a run left."""
    files = sorted([*folder.rglob("*.safetensors"), *folder.glob("metrics.jsonl"), *folder.glob("quarantine.jsonl")])
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    """Print what was compared; 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe, rng = recipes.load(arguments.recipe), random.Random(arguments.seed)
    began = time.monotonic()
    assert os.waitpid(train(recipe, arguments.folder / "whole"), 0)[1] == 0
    span = time.monotonic() - began
    wanted = facts(arguments.folder / "whole")
    signals = [signal.SIGKILL] * arguments.kills + [signal.SIGTERM] * arguments.stops
    rng.shuffle(signals)
    run, sent, different = 0, {signal.SIGKILL: 0, signal.SIGTERM: 0}, 0
    while signals:  # a run may end before its signal: then the next one takes the rest
        folder = arguments.folder / f"killed{run}"
        code = None
        while code != 0:
            process = train(recipe, folder)
            if signals:
                time.sleep(rng.uniform(0.0, 0.7 * span))
                if os.waitpid(process, os.WNOHANG) != (0, 0):
                    break
                os.kill(process, signals[-1])
                sent[signals.pop()] += 1
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            if code == 1:
                return 1
        different += facts(folder) != wanted
        run += 1
    names = ", ".join(f"{count} {number.name}" for number, count in sent.items())
    print(f"{names} over {run} runs of {span:.1f} s: {different} differ from the uninterrupted one")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
