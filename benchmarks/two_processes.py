"""Two processes on two CPU cores against one process on both: seconds of a supervised fine-tuning of the same steps.

    python benchmarks/two_processes.py [--json FILE] [--repeats 3]

The same stage with the same settings, in turns: one process with two threads, and two processes (gloo) with one thread
each. They compute the same losses; the point is what dividing the work costs where it cannot gain anything.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = 480
# A base model of hardly any steps: what is measured is the fine-tuning.
SETTINGS = ["base.steps=20", f"data.split_rows.sft={ROWS}", "sft.evaluations=1", "sft.checkpoints=1"]
PROCESSES = {"one process, two threads": 1, "two processes, one thread each": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "outputs"
        train(1, "data", output)
        for _ in range(asked.repeats):
            for name, processes in PROCESSES.items():
                seconds[name].append(train(processes, "sft", output)["seconds"])
                shutil.rmtree(output / "instruct-tiny" / "checkpoints" / "sft")
    one, two = (statistics.median(found) for found in seconds.values())
    result = {"rows": ROWS, "seconds": seconds, "throughput_of_two_to_one": one / two}
    print(json.dumps(result, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n")


def train(processes: int, stage: str, output: Path) -> dict:
    """Make `stage` of the smallest recipe in so many processes; its figures."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []
    command = [sys.executable, "-m", *launcher, "rlhf_utils", "train", stage, "--output-dir", str(output)]
    command += [word for setting in SETTINGS for word in ("--set", setting)]
    threads = str(2 // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"failed: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


if __name__ == "__main__":
    main()
