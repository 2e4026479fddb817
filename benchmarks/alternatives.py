"""The trials of notebook 4.3: PPO and each method beside it with five settings, on development prompts.

    python benchmarks/alternatives.py [--run outputs/instruct-tiny] [--out docs/alternatives.md]

Each trial trains in a copy of a finished run, from its SFT and reward model, and measures its policies on the
development prompts; held-out prompts are not read. What was best stands in the recipe.
"""

import argparse
import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlhf_utils.evaluation import ALTERNATIVES, LABELS
from rlhf_utils.platforms import processes, runtime
from rlhf_utils.platforms.files import link_or_copy, read_json
from rlhf_utils.report.findings import shown
from rlhf_utils.runs.run import Run
from rlhf_utils.series import SERIES, run_cells
from rlhf_utils.settings.recipes import load_recipe

# Of each two settings: the values of the first are tried with the first value of the second, then, with the best of
# them, the other values of the second.
RATES = (1e-4, 3e-4, 1e-3)
TRIALS = {
    "ppo": ("learning_rate", RATES, "gae_lambda", (0.95, 0.99, 1.0)),
    "dpo": ("betas", ([0.1], [0.3], [1.0]), "learning_rate", (3e-4, 1e-4, 1e-3)),
    "rloo": ("learning_rate", RATES, "responses_per_prompt", (4, 2, 8)),
    "grpo": ("learning_rate", RATES, "responses_per_prompt", (8, 4, 16)),
    "best_of_n": ("learning_rate", (2e-4, 5e-4, 1.5e-3), "n", (8, 4, 16)),
}
KEPT = ("base", "data", "sft", "sft_qlora", "reward_model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("outputs/instruct-tiny"), help="a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/alternatives.md"), help="the page to write")
    asked = parser.parse_args()
    record, lines = read_json(asked.run / "run.json"), []
    price = record["settings"]["ppo"]["kl_coefficient"]
    for stage, (first, values, second, (usual, *others)) in TRIALS.items():
        tried = [trial(asked.run, stage, {first: value, second: usual}, price) for value in values]
        best = max(tried, key=lambda line: line["objective"])["settings"]
        tried += [trial(asked.run, stage, best | {second: value}, price) for value in others]
        lines += [line | {"best": line is max(tried, key=lambda one: one["objective"])} for line in tried]
    asked.out.write_text(page(lines, record), encoding="utf-8")


def trial(source: Path, stage: str, settings: dict, price: float) -> dict:
    """The policy chosen of a training of `stage` with `settings`, and what all methods maximize: its reward minus the
    `price` of its KL from the SFT model."""
    with tempfile.TemporaryDirectory() as folder:
        point = chosen(source, Path(folder), stage, {f"{stage}.{name}": value for name, value in settings.items()})
    line = {"stage": stage, "settings": settings} | {
        name: point[name] for name in ("reward", "reward_ci95", "kl_to_sft")
    }
    line["objective"] = line["reward"] - price * line["kl_to_sft"]
    print(json.dumps(line), file=sys.stderr, flush=True)
    return line


def chosen(source: Path, folder: Path, stage: str, overrides: dict) -> dict:
    """The point (`evaluation.frontier.measure_policies`) of the policy that `stage` chose in a training with
    `overrides`, from the models of the run `source`."""
    record = read_json(source / "run.json")
    own = {"seed": record["seed"], "alternatives": [stage] if stage != "ppo" else None, **overrides}
    run = Run(load_recipe(record["recipe"], record["scale"], own), folder)
    kept = (*KEPT, "ppo", "evaluation") if stage != "ppo" else KEPT
    shutil.copytree(source / "evaluation", run.evaluation)
    for name in kept:
        shutil.copytree(source / "checkpoints" / name, run.folder(name), copy_function=link_or_copy)
    run.make_folders()
    entry = next(notebook for notebook in SERIES if stage in notebook.makes)
    with (
        processes.environment(**{runtime.HEADLESS: "1"}),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        run_cells(run, entry, until=stage)
    frontier = read_json(run.folder(stage) / "frontier.json")
    used = frontier["chosen_update"] if stage == "ppo" else frontier["used"]
    return next(point for point in frontier["points"] if point["update"] == used)


def page(lines: list[dict], record: dict) -> str:
    """docs/alternatives.md."""
    price, names = record["settings"]["ppo"]["kl_coefficient"], LABELS | ALTERNATIVES
    rows = [f"| method | settings | reward | KL to SFT (nats) | reward − {price:g} × KL |", "|---|---|--:|--:|--:|"]
    for line in lines:
        settings = ", ".join(f"`{name}` {json.dumps(value)}" for name, value in line["settings"].items())
        cells = [names[line["stage"]], settings, shown(line["reward"], line["reward_ci95"])]
        cells += [shown(line["kl_to_sft"]), shown(line["objective"])]
        rows.append(f"| {' | '.join(f'**{cell}**' if line['best'] else cell for cell in cells)} |")
    head = (
        "# How PPO and the methods beside it were tuned\n\n"
        "Notebook 4.3 compares PPO with simpler methods. None of them was tuned more than another: each was tried with "
        "three values of one setting and, at the best of these, two more of another, on the development prompts of "
        f"seed {record['seed']} of `{record['recipe']}` at `{record['scale']}`. Bold: the trial with the "
        "highest reward minus PPO's price of the KL, of the policy chosen within each training. Neither the judge nor "
        "any held-out prompt was used. PPO's other settings come from earlier work, and the others share them. In "
        "brackets: 95% CIs over the prompts.\n\n"
        "Made by `python benchmarks/alternatives.py` ([source](../benchmarks/alternatives.py)).\n\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
