"""The trials of notebook 4.3: PPO and each method beside it with three values of one setting, on development prompts.

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

# Of each: the setting and its values. DPO tries its own in one training of the notebook.
TRIALS = {
    "ppo": ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "dpo": ("betas", ((0.05, 0.1, 0.3),)),
    "rloo": ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "grpo": ("learning_rate", (1e-4, 3e-4, 1e-3)),
    "best_of_n": ("learning_rate", (2e-4, 5e-4, 1.5e-3)),
}
KEPT = ("base", "data", "sft", "sft_qlora", "reward_model")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("outputs/instruct-tiny"), help="a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/alternatives.md"), help="the page to write")
    asked = parser.parse_args()
    lines = []
    for stage, (setting, values) in TRIALS.items():
        for value in values:
            with tempfile.TemporaryDirectory() as folder:
                found = [*tried(asked.run, Path(folder), stage, {f"{stage}.{setting}": value})]
            for line in found:
                about = {"stage": stage, "setting": setting, "value": value}
                if stage == "dpo":
                    about |= {"setting": "beta", "value": line["beta"]}
                lines.append(about | {name: line[name] for name in ("reward", "reward_ci95", "kl_to_sft")})
                print(json.dumps(lines[-1]), file=sys.stderr, flush=True)
    asked.out.write_text(page(lines, read_json(asked.run / "run.json")), encoding="utf-8")


def objective(line: dict, price: float) -> float:
    """What all methods are after: the reward less the price of the KL from the SFT model."""
    return line["reward"] - price * line["kl_to_sft"]


def tried(source: Path, folder: Path, stage: str, overrides: dict) -> list[dict]:
    """The policies that `stage` made with `overrides` from the models of the run `source`: of each training the chosen
    one's point (`evaluation.frontier.measure_policies`), with its beta where it has one."""
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
    if stage == "dpo":
        return run.results("dpo")["trials"]
    used = frontier["chosen_update"] if stage == "ppo" else frontier["used"]
    return [next(point for point in frontier["points"] if point["update"] == used)]


def page(lines: list[dict], record: dict) -> str:
    """docs/alternatives.md."""
    price, names = record["settings"]["ppo"]["kl_coefficient"], LABELS | ALTERNATIVES
    rows = [
        f"| method | setting | value | reward | KL to SFT (nats) | reward − {price:g} × KL |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for line in lines:
        of_method = [other for other in lines if other["stage"] == line["stage"]]
        best = line is max(of_method, key=lambda other: objective(other, price))
        cells = [names[line["stage"]], f"`{line['stage']}.{line['setting']}`", f"{line['value']:g}"]
        cells += [shown(line["reward"], line["reward_ci95"]), shown(line["kl_to_sft"])]
        cells.append(shown(objective(line, price)))
        rows.append(f"| {' | '.join(f'**{cell}**' if best else cell for cell in cells)} |")
    head = (
        "# How PPO and the methods beside it were tuned\n\n"
        "Notebook 4.3 compares PPO with simpler methods. None of them was tuned more than another: each was tried with "
        f"three values of one setting, on the development prompts of seed {record['seed']} of `{record['recipe']}` at "
        f"`{record['scale']}`. What all of them are after decides (bold), the reward less PPO's price of the KL, of the "
        "policy chosen within each training; neither the judge nor a held-out prompt was asked. In brackets: 95% CIs "
        "over the prompts.\n\n"
        "Made by `python benchmarks/alternatives.py` ([source](../benchmarks/alternatives.py)).\n\n"
    )
    return head + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
