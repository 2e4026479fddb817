"""How near rlhf_utils/runs/costs.py is to what finished runs measured, stage by stage.

python benchmarks/stage_seconds.py                      prints the table of docs/scaling.md
python benchmarks/stage_seconds.py --record RUN ...     first reads the figures of finished runs into stage_seconds.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rlhf_utils.runs import costs  # noqa: E402
from rlhf_utils.settings.recipes import Recipe  # noqa: E402

MEASURED, BENCHMARK = HERE / "stage_seconds.json", HERE / "ppo_vs_trl.json"
STAGES = ("base", "sft", "sft_qlora", "reward_model", "ppo", "evaluation")
# A base model that was only copied from the cache says nothing about training one.
COPIED_SECONDS = 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    asked = parser.parse_args()
    if asked.record:
        MEASURED.write_text(json.dumps([measured(run) for run in asked.record], indent=1) + "\n")
    print(table(json.loads(MEASURED.read_text()), json.loads(BENCHMARK.read_text())))


def measured(run: Path) -> dict:
    """A run's settings and, of each stage, seconds, device and peak memory in bytes where it was noted."""
    record = json.loads((run / "run.json").read_text())
    stages = {
        name: {
            "seconds": about["seconds"],
            "device": about["device"]["name"],
            "peak_memory_bytes": about["results"].get("peak_memory_bytes"),
        }
        for name, about in record["stages"].items()
        if about["state"] == "complete" and name in STAGES and about["seconds"] > COPIED_SECONDS
    }
    return {"settings": record["settings"], "stages": stages}


def table(runs: list[dict], benchmark: dict) -> str:
    """Estimates beside measurements, as Markdown."""
    lines = ["| what | estimated | measured | ratio |", "|---|---|---|---|"]
    for what, estimated, found, unit in comparisons(runs, benchmark):
        lines.append(f"| {what} | {estimated:.3g} {unit} | {found:.3g} {unit} | {estimated / found:.2f} |")
    return "\n".join(lines)


def comparisons(runs: list[dict], benchmark: dict) -> list[tuple[str, float, float, str]]:
    """What, estimate, measurement, unit."""
    found = []
    for run in runs:
        recipe = Recipe.model_validate(run["settings"])
        shape, machine = costs.shape_of(recipe), costs.MACHINES[recipe.scale]
        work = costs.work(recipe, shape)
        for stage, about in run["stages"].items():
            if stage in work:
                found.append((f"{recipe.name}, {stage}", work[stage].seconds(machine), about["seconds"], "s"))
        if peaks := [about["peak_memory_bytes"] for about in run["stages"].values() if about["peak_memory_bytes"]]:
            found.append((f"{recipe.name}, memory", costs.estimate(recipe).memory / 1e9, max(peaks) / 1e9, "GB"))
    return [*found, *of_benchmark(benchmark)]


def of_benchmark(benchmark: dict) -> list[tuple[str, float, float, str]]:
    """The time of one PPO update of GPT-2 124M, whose policy, reference and value head share the work of the update;
    its reward model is tiny."""
    found, machine = [], costs.MACHINES["tiny"]
    for name in ("fixed", "ragged"):
        for run in benchmark["raw"][f"{name}_fp32"]["ours"]:
            tokens = run["episodes"] * (run["prompt_tokens"] + run["response_tokens"][0])
            # Four epochs; sampling and reference once.
            passes = 4 * costs.TRAINING_PASSES + 2
            work = costs.Work(passes * 2 * costs.GPT2.parameters * tokens, run["response_tokens"][0])
            seconds = run["seconds_per_update"][0]
            found.append((f"GPT-2 124M, one PPO update, {name}", work.seconds(machine), seconds, "s"))
    return found


if __name__ == "__main__":
    main()
