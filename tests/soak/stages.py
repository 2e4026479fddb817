"""The soak without notebooks: every stage in processes of its own, ended at random moments. Twenty kills in minutes.

    python tests/soak/stages.py --kills 20 [--seed 0] [--folder FOLDER] [--recipe imdb] [--set KEY=VALUE ...]

Every stage that the recipe has: with `--set evaluation.overoptimise.updates=6` the demonstration of cheating too, with
data of people and `--set data.shares.judge=0.2` the second judge.

The processes are forks of one that has imported everything, so that what is ended is work and not the start of Python.
Locks, checkpoints and resuming are those of a notebook by itself; `soak.py` has the series and its kernels as well.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

# Read once, when torch is imported; a fork of a process with threads is none to rely on.
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from reduced import REDUCED

from rlhf_utils.evaluation.compare import evaluate_models
from rlhf_utils.platforms.files import read_json
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.stopping import Stopped, terminable
from rlhf_utils.settings.recipes import parse_assignments
from rlhf_utils.stages.ready import MAKERS as TRAINED
from soak.soak import LONGER, PATIENCE_SECONDS, WAYS, Tally, kept_at, verdict

MAKERS: dict[str, Callable[[Run], object]] = {
    **TRAINED,
    "evaluation": evaluate_models,
}


@dataclass
class Side:
    """A run in `folder`, which is made stage by stage."""

    folder: Path
    recipe: str
    settings: Sequence[str]

    @property
    def root(self) -> Path:
        return self.folder / f"{self.recipe}-tiny"

    def open(self) -> Run:
        return Run.open(self.recipe, "tiny", self.folder, parse_assignments([*REDUCED, *LONGER, *self.settings]))

    def begin(self, name: str) -> int:
        """Make stage `name` in a new process; returns its number."""
        process = os.fork()
        if process:
            return process
        status = 1
        try:
            log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.environ["RLHF_CACHE"] = str(self.folder / "cache")
            with terminable():
                MAKERS[name](self.open())
            status = 0
        except KeyboardInterrupt as error:
            status = 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)

    def forget(self, name: str) -> None:
        """Have stage `name` made again from nothing."""
        for path in (
            self.root / "checkpoints" / name,
            self.root / "evaluation" / f"{name}.json",
            self.folder / "cache",
        ):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def ended(process: int) -> int:
    """The exit status of a process that is expected to end: negative for the signal that killed it."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def interrupt(side: Side, name: str, kills: int, most: float, source: random.Random, numbers: list[int]) -> Tally:
    """Begin stage `name` and end it `kills` times, at most `most` seconds after its beginning; then make it."""
    tally = Tally()
    by_number = {number: way for way, (number, _) in reversed(WAYS.items())}
    while len(tally.ways) < kills:
        number = numbers[0]
        process, began = side.begin(name), time.time()
        time.sleep(source.uniform(0.1, most))
        if os.waitpid(process, os.WNOHANG)[0]:
            # Too late: the machine has become faster. Once more, from nothing.
            most *= 0.5
            side.forget(name)
            continue
        asked = time.time()
        os.kill(process, number)
        status = ended(process)
        tally.repeated.append(max(0.0, asked - max([began, *kept_at(side.root, side.folder / "cache")])))
        numbers.append(numbers.pop(0))
        tally.ways.append(by_number[number])
        if status not in (-signal.SIGKILL if number == signal.SIGKILL else 128 + number, 0):
            tally.wrong.append(f"{by_number[number]} ended with {status}")
    if status := ended(side.begin(name)):
        tally.wrong.append(f"did not go on, but ended with {status}; see {side.folder / 'log.txt'}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep both runs there (default: a temporary folder)")
    parser.add_argument("--recipe", default="instruct")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        straight, killed = (Side(folder / name, options.recipe, options.settings) for name in ("straight", "killed"))
        for side in (straight, killed):
            side.folder.mkdir(parents=True)
        names = list(straight.open().stages)
        for name in names:
            if status := ended(straight.begin(name)):
                raise SystemExit(f"{name} ended with {status}; see {straight.folder / 'log.txt'}")
        record = read_json(straight.root / "run.json")["stages"]
        print({name: record[name]["seconds"] for name in names}, file=sys.stderr, flush=True)
        source, numbers = random.Random(options.seed), [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
        tallies = {}
        for i, name in enumerate(names):
            kills = options.kills // len(names) + (len(names) - 1 - i < options.kills % len(names))
            tallies[name] = interrupt(killed, name, kills, record[name]["seconds"] + 1.0, source, numbers)
            print(name, tallies[name], file=sys.stderr, flush=True)
        return verdict(tallies, straight.root, killed.root)


if __name__ == "__main__":
    sys.exit(main())
