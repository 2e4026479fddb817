"""The soak without notebooks: every stage in processes of its own, ended at random moments. Twenty kills in minutes.

    python tests/soak/stages.py --kills 20 [--seed 0] [--folder FOLDER]

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
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]

from test_series import REDUCED

from rlhf_utils.files import read_json
from rlhf_utils.recipes import parse_assignments
from rlhf_utils.runs import Run
from rlhf_utils.stages.base import make_base, make_data
from rlhf_utils.stages.evaluation import evaluate_models
from rlhf_utils.stages.ppo import train_ppo
from rlhf_utils.stages.reward_model import train_reward_model
from rlhf_utils.stages.sft import train_full, train_qlora
from rlhf_utils.stopping import Stopped, terminable
from soak.soak import LONGER, PATIENCE_SECONDS, STAGES, WAYS, Series, Tally, differences, table

MAKERS: dict[str, Callable[[Run], object]] = dict(
    zip(
        STAGES,
        (make_base, make_data, train_full, train_qlora, train_reward_model, train_ppo, evaluate_models),
        strict=True,
    )
)


def begin(name: str, folder: Path) -> int:
    """Make stage `name` of the run in `folder` in a new process; returns its number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["RLHF_CACHE"] = str(folder / "cache")
        with terminable():
            MAKERS[name](Run.open("instruct", "tiny", folder, parse_assignments([*REDUCED, *LONGER])))
        status = 0
    except KeyboardInterrupt as error:
        status = 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


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


def interrupt(name: str, folder: Path, kills: int, most: float, source: random.Random, numbers: list[int]) -> Tally:
    """Begin stage `name` and end it `kills` times, at most `most` seconds after its beginning; then make it."""
    tally, work = Tally(), Series(folder, (), folder / "cache")
    by_number = {number: way for way, (number, _) in reversed(WAYS.items())}
    while len(tally.ways) < kills:
        number = numbers[0]
        process, began = begin(name, folder), time.time()
        time.sleep(source.uniform(0.1, most))
        if os.waitpid(process, os.WNOHANG)[0]:
            # Too late: the machine has become faster. Once more, from nothing.
            most *= 0.5
            shutil.rmtree(folder / "instruct-tiny" / "checkpoints" / name, ignore_errors=True)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            continue
        asked = time.time()
        os.kill(process, number)
        status = ended(process)
        tally.repeated.append(max(0.0, asked - max([began, *work.kept_at()])))
        numbers.append(numbers.pop(0))
        tally.ways.append(by_number[number])
        if status not in (-signal.SIGKILL if number == signal.SIGKILL else 128 + number, 0):
            tally.wrong.append(f"{by_number[number]} ended with {status}")
    if status := ended(begin(name, folder)):
        tally.wrong.append(f"did not go on, but ended with {status}; see {folder / 'log.txt'}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep both runs there (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        straight, killed = folder / "straight", folder / "killed"
        for each in (straight, killed):
            each.mkdir(parents=True)
        for name in STAGES:
            if status := ended(begin(name, straight)):
                raise SystemExit(f"{name} ended with {status}; see {straight / 'log.txt'}")
        record = read_json(straight / "instruct-tiny" / "run.json")["stages"]
        print({name: record[name]["seconds"] for name in STAGES}, file=sys.stderr, flush=True)
        source, numbers = random.Random(options.seed), [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
        tallies = {}
        for i, name in enumerate(STAGES):
            kills = options.kills // len(STAGES) + (len(STAGES) - 1 - i < options.kills % len(STAGES))
            tallies[name] = interrupt(name, killed, kills, record[name]["seconds"] + 1.0, source, numbers)
            print(name, tallies[name], file=sys.stderr, flush=True)
        print(table(tallies))
        wrong = [f"{name}: {what}" for name, tally in tallies.items() for what in tally.wrong]
        wrong += [] if wrong else differences(straight / "instruct-tiny", killed / "instruct-tiny")
    for what in wrong:
        print(f"LOST {what}")
    print("weights and figures are those of the run in one go" if not wrong else f"{len(wrong)} differences or losses")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
