"""Kills the series again and again at random moments of every stage and compares its end with that of a run in one go.

    python tests/soak/soak.py --kills 20 [--seed 0] [--folder FOLDER]

The settings are reduced ones; both runs train their own base model. Prints a table and ends with status 1 where a run
was lost: it did not go on, did not stop when it was asked to, left a kernel behind, or ended with other weights or
figures.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rlhf_utils.platforms.errors import InputError  # noqa: E402
from rlhf_utils.platforms.files import content_hash, read_json, read_jsonl  # noqa: E402
from rlhf_utils.platforms.runtime import cache_folder  # noqa: E402

STAGES = ("base", "data", "sft", "sft_qlora", "reward_model", "ppo", "evaluation")
# Long enough to be hit between two checkpoints.
LONGER = ("base.steps=120", "sft.checkpoints=6", "reward_model.checkpoints=6", "ppo.updates=8", "ppo.save_every=2")
# How a run is ended: the signal, and whether its kernel gets it as well. A kernel ends by itself without its series.
WAYS = {
    "SIGKILL": (signal.SIGKILL, True),
    "SIGTERM": (signal.SIGTERM, False),
    "SIGKILL of the series alone": (signal.SIGKILL, False),
    "SIGINT": (signal.SIGINT, False),
}
CLOCKS = {"seconds", "phase_seconds", "tokens_per_second", "peak_memory_bytes", "peak_bytes"}
# Of notebook 4.3: the policies that were there when PPO's time was over, and Holm's correction over them.
CHOSEN_BY_CLOCK = {"p_holm", *(f"{stage}_in_time" for stage in ("dpo", "rloo", "grpo", "best_of_n"))}
# A stage that ends at a safe point has a checkpoint between two log lines, so one line of trl's is a mean over fewer
# steps; the weights, compared bit by bit, say more.
WINDOWED = {"loss"}
PATIENCE_SECONDS = 3600.0


@dataclass
class Tally:
    """What happened to one stage: how it was ended, and what went wrong."""

    ways: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Series:
    """The command that runs the series in `folder`, with settings and environment."""

    def __init__(self, folder: Path, settings: Sequence[str], cache: Path | None = None):
        arguments = [part for setting in settings for part in ("--set", setting)]
        self.command = [sys.executable, "-m", "rlhf_utils", "run", "--output-dir", str(folder), *arguments]
        self.root, self.errors = folder / "instruct-tiny", folder / "stderr.txt"
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.environment["RLHF_CACHE"] = str(cache or cache_folder())
        folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> subprocess.Popen:
        with open(self.errors, "w", encoding="utf-8") as errors:
            return subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL, stderr=errors
            )

    def run(self, *extra: str) -> subprocess.CompletedProcess:
        """The command with more arguments, to its end."""
        return subprocess.run(
            [*self.command, *extra], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def finish(self) -> None:
        """Run to the end; raises RuntimeError where it does not get there."""
        done = self.run()
        if done.returncode:
            raise RuntimeError(done.stderr[-1000:])

    def stage(self, name: str) -> dict:
        """What run.json says of a stage."""
        try:
            return read_json(self.root / "run.json")["stages"].get(name, {})
        except (FileNotFoundError, InputError):
            return {}


def end_within(series: Series, name: str, way: str, delay: float, tally: Tally) -> bool:
    """Start the series and end it `delay` seconds into stage `name`; False where that stage is done already."""
    before, process = series.stage(name), series.start()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (about := series.stage(name)) == before or about.get("state") != "running":
        if process.poll() is not None or time.monotonic() > deadline or about.get("state") == "complete":
            ended = process.poll()
            _end_all(process)
            if ended:
                tally.wrong.append(f"did not go on: {series.errors.read_text(encoding='utf-8')[-500:]}")
            return False
        time.sleep(0.05)
    time.sleep(delay)
    number, everyone = WAYS[way]
    kernels = psutil.Process(process.pid).children(recursive=True)
    for member in [*(kernels if everyone else ()), process]:
        with contextlib.suppress(psutil.NoSuchProcess):  # the moment was too late
            member.send_signal(number)
    status = process.wait(PATIENCE_SECONDS)
    tally.ways.append(way)
    if number != signal.SIGKILL:
        errors = series.errors.read_text(encoding="utf-8")
        if status not in (128 + number, 0) or "Traceback" in errors:
            tally.wrong.append(f"{way} ended with {status}: {errors[-500:]}")
    _, alive = psutil.wait_procs(kernels, timeout=15)
    if alive:
        tally.wrong.append(f"{way} left {len(alive)} kernels behind")
        for kernel in alive:
            kernel.kill()
    return True


def _end_all(process: subprocess.Popen) -> None:
    if process.poll() is None:
        for member in [*psutil.Process(process.pid).children(recursive=True), process]:
            member.kill()
    process.wait()


def interrupt(series: Series, moments: Iterable[tuple[str, float]]) -> dict[str, Tally]:
    """End the series at each of the moments (a stage, and seconds into it), then let it run to its end."""
    tallies: dict[str, Tally] = {}
    ways, done = list(WAYS), []
    for name, delay in moments:
        tally = tallies.setdefault(name, Tally())
        way = ways[len(done) % len(ways)]
        if end_within(series, name, way, delay, tally):
            done.append(name)
            print(f"{len(done)}: {way}, {delay:.1f} s into {name}", file=sys.stderr, flush=True)
    try:
        series.finish()
    except RuntimeError as error:
        tally.wrong.append(f"did not go on to its end: {error}")
    return tallies


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two finished runs: weights bit by bit, figures without clocks."""
    found = []
    weights = (path.relative_to(root) for root in (one, other) for path in root.glob("checkpoints/**/*.safetensors"))
    names = {str(path) for path in weights if "in_time" not in path.parts}  # what the clock chose (notebook 4.3)
    for name in sorted(names):
        if not ((one / name).is_file() and (other / name).is_file()):
            found.append(f"{name} is there only once")
        elif content_hash(one / name) != content_hash(other / name):
            found.append(f"{name} differs")
    if not names:
        found.append("there are no weights")
    for name in sorted({path.name for root in (one, other) for path in (root / "evaluation").glob("*.json")}):
        name = f"evaluation/{name}"
        if not ((one / name).is_file() and (other / name).is_file()):
            found.append(f"{name} is there only once")
        elif len({str(_figures(read_json(root / name), CLOCKS | CHOSEN_BY_CLOCK)) for root in (one, other)}) > 1:
            found.append(f"{name} differs")
    if (one / "evaluation/samples.csv").read_bytes() != (other / "evaluation/samples.csv").read_bytes():
        found.append("evaluation/samples.csv differs")
    for stage in sorted(path.parent.name for path in one.glob("checkpoints/*/metrics.jsonl")):
        ignored = CLOCKS | (WINDOWED if stage != "ppo" else set())
        lines = [read_jsonl(root / "checkpoints" / stage / "metrics.jsonl") for root in (one, other)]
        if _figures(lines[0], ignored) != _figures(lines[1], ignored):
            found.append(f"{stage}/metrics.jsonl differs")
    return found


def _figures(value, ignored: set[str]):
    if isinstance(value, dict):
        return {key: _figures(inner, ignored) for key, inner in value.items() if key not in ignored}
    return [_figures(inner, ignored) for inner in value] if isinstance(value, list) else value


def verdict(tallies: dict[str, Tally], straight: Path, killed: Path) -> int:
    """Print what came of it; returns the exit status."""
    for name, tally in tallies.items():
        print(f"{name:<14} {len(tally.ways)} kills, {len(tally.wrong)} lost: {', '.join(sorted(tally.ways))}")
    wrong = [f"{name}: {what}" for name, tally in tallies.items() for what in tally.wrong]
    wrong += [] if wrong else differences(straight, killed)
    for what in wrong:
        print(f"LOST {what}")
    print("weights and figures are those of the run in one go" if not wrong else f"{len(wrong)} differences or losses")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep both runs there (default: a temporary folder)")
    options = parser.parse_args()
    if options.kills < 1:
        parser.error("--kills must be at least 1")
    from reduced import REDUCED

    with tempfile.TemporaryDirectory() as temporary:
        folder, settings = options.folder or Path(temporary), (*REDUCED, *LONGER)
        straight = Series(folder / "straight", settings, folder / "straight" / "cache")
        started = time.monotonic()
        straight.finish()
        print(f"one run in one go: {time.monotonic() - started:.0f} s", file=sys.stderr)
        durations = {name: straight.stage(name)["seconds"] for name in STAGES}
        source = random.Random(options.seed)
        moments = sorted((STAGES[i % len(STAGES)] for i in range(options.kills)), key=STAGES.index)
        killed = Series(folder / "killed", settings, folder / "killed" / "cache")
        tallies = interrupt(killed, [(name, source.uniform(0.0, durations[name])) for name in moments])
        print(f"both runs: {time.monotonic() - started:.0f} s", file=sys.stderr)
        return verdict(tallies, straight.root, killed.root)


if __name__ == "__main__":
    sys.exit(main())
