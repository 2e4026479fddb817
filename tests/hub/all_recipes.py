"""The stages of all four recipes at scale t4, one after the other in this process, with as little of each as possible.

Models and data come by the names that the recipes give them; `HF_ENDPOINT` says from where. Prints one line of JSON per
recipe: its commits by stage, and the models of its summary.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rlhf_utils.platforms.runtime import prepare_environment, quiet_libraries
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.recipes import load_recipe, recipe_names

REDUCED = {
    "data.max_rows": 420,
    "data.max_prompt_tokens": 96,
    "data.max_response_tokens": 96,
    "generation.max_new_tokens": 8,
    "sft.epochs": 1,
    "reward_model.epochs": 1,
    "ppo.updates": 1,
    "ppo.rollout_batch_size": 16,
    "ppo.minibatch_size": 8,
    "ppo.microbatch_size": 8,
    "ppo.epochs": 1,
    "ppo.max_new_tokens": 8,
    "ppo.save_every": 1,
    "evaluation.prompts": 16,
    "evaluation.reward_pairs": 32,
    "evaluation.frontier_prompts": 8,
    "evaluation.bootstrap_samples": 100,
}


def main(output_dir: str, names: list[str]) -> None:
    prepare_environment()
    sys.path[:0] = [str(Path(__file__).resolve().parents[1])]
    from made import make

    from rlhf_utils.evaluation.compare import evaluate_models
    from rlhf_utils.runs.named import check_named_models, check_names

    quiet_libraries()
    for name in names:
        started = time.perf_counter()
        reduced = {key: value for key, value in REDUCED.items() if name != "imdb" or key != "data.max_response_tokens"}
        run = Run(load_recipe(name, "t4", reduced), output_dir)
        run.make_folders()
        check_named_models(run, check_names(run, run.stages))
        make(run, *(stage for stage in run.stages if stage not in ("evaluation", "overoptimise")))
        summary = evaluate_models(run)
        commits = {stage: about["hub"] for stage, about in run.record()["stages"].items() if about["hub"]}
        told = {"recipe": name, "commits": commits, "models": sorted(summary["models"])}
        print(json.dumps({**told, "seconds": round(time.perf_counter() - started, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or recipe_names())
