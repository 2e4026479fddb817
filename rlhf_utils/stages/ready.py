"""Who makes which stage; and fetching what needs no training: ready models, and a policy that came tuned."""

from __future__ import annotations

from rlhf_utils.runs.run import Run
from rlhf_utils.stages.base import make_base, make_data
from rlhf_utils.stages.ppo import train_ppo
from rlhf_utils.stages.reward_model import train_judge_model, train_reward_model
from rlhf_utils.stages.sft import train_full, train_qlora

MAKERS = {
    "base": make_base,
    "data": make_data,
    "sft": train_full,
    "sft_qlora": train_qlora,
    "reward_model": train_reward_model,
    "judge_model": train_judge_model,
    "ppo": train_ppo,
}


def fetch_ready(run: Run) -> dict[str, dict]:
    """Make the stages of `run.fetched`; returns what each of them left as figures, by name."""
    for stage in run.fetched:
        MAKERS[stage](run)
    return {stage: run.results(stage) for stage in run.fetched}
