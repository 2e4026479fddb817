"""Warnings in plain words: what the figures of a PPO training look like when it goes wrong, and the likely cause."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from rlhf_utils.settings.sections import PPOConfig

# Sampling noise of the mean KL of a rollout; a mean clearly below 0 cannot be a KL.
KL_NOISE = 0.5
EOS_FALL = 0.15
ENTROPY_LEFT = 0.3
FLAT_AFTER = 10
VALUE_LOSS_GROWTH = 10.0
PHRASE_SHARE = 0.5
PHRASE_GROWTH = 0.3


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    now, first, found = history[-1], history[0], {}
    if now["kl"] < -KL_NOISE:
        found["negative_kl"] = (
            f"KL is {now['kl']:.2f} nats per answer, and a KL cannot be negative: the log-probabilities are not those "
            "of the distribution that was sampled from (temperature, masks, top-k)"
        )
    if config.kl_budget is not None and now["kl"] > config.kl_budget:
        cause = (
            "training ends, and the policy before it, which is within, is the result"
            if config.kl_budget_action == "stop"
            else "the policy has left the responses that the reward model knows"
        )
        found["over_budget"] = (
            f"KL of {now['kl']:.1f} nats per response at temperature {config.temperature:g} is over the budget of "
            f"{config.kl_budget:g}: {cause}; raise kl_coefficient or lower learning_rate"
        )
    best_eos = max(line["eos_rate"] for line in history)
    if now["eos_rate"] < best_eos - EOS_FALL:
        found["eos_falling"] = (
            f"only {now['eos_rate']:.0%} of the answers end by themselves, after {best_eos:.0%} earlier: longer "
            "answers may be paid better; raise missing_eos_penalty or max_new_tokens"
        )
    if now["entropy"] < ENTROPY_LEFT * first["entropy"]:
        found["entropy_collapse"] = (
            f"entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats per token: the policy says nearly "
            "the same every time; raise kl_coefficient or lower learning_rate"
        )
    if len(history) >= FLAT_AFTER and _flat(history):
        found["reward_flat"] = (
            f"reward has not moved in {len(history)} updates ({first['reward']:+.2f} to {now['reward']:+.2f}): the "
            "steps may be too small, the KL coefficient too high, or the reward the same for every answer"
        )
    losses = [line["value_loss"] for line in history if line["value_loss"] is not None]
    if len(losses) > 3 and losses[-1] > VALUE_LOSS_GROWTH * median(losses[:-1]):
        found["value_loss"] = (
            f"the value loss jumped to {losses[-1]:.2g}, from {median(losses[:-1]):.2g}: the critic no longer follows "
            "the rewards; lower value_learning_rate or scale the rewards"
        )
    if now["phrase_share"] > PHRASE_SHARE and now["phrase_share"] - now["phrase_share_at_start"] > PHRASE_GROWTH:
        found["one_phrase"] = (
            f"{now['phrase']!r} stands in {now['phrase_share']:.0%} of the answers, at first in "
            f"{now['phrase_share_at_start']:.0%}: the reward may be paying for the phrase"
        )
    return found


def _flat(history: Sequence[dict]) -> bool:
    """Whether the mean reward of the last third is within two standard errors of that of the first."""
    third = len(history) // 3
    early, late = history[:third], history[-third:]
    answers = history[0]["episodes"]
    error = (sum(fmean(line["reward_std"] ** 2 for line in part) / (third * answers) for part in (early, late))) ** 0.5
    return abs(fmean(line["reward"] for line in late) - fmean(line["reward"] for line in early)) < 2 * error
