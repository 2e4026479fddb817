"""What a PPO training writes down: one line of figures per update, sample responses, and warnings in plain words where
the figures look like trouble."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import write_text
from rlhf_utils.ppo.objective import explained_variance, kl_estimate, masked_mean
from rlhf_utils.ppo.rollout import Rollout
from rlhf_utils.settings.sections import PPOConfig

METRICS, SAMPLES, SAMPLES_SHOWN = "metrics.jsonl", "samples.jsonl", 4


def figures_of(rollout: Rollout, update: int, kl_coefficient: float) -> dict:
    """What a rollout says of the policy: rewards, KL in nats per response, entropy in nats per token, response length.

    `kl` is the KL of the sampled distribution, at the temperature of the training; `objective` is the mean of what a
    response is paid, after scale, clip, the penalty of a missing EOS and the price of its KL.
    """
    mask, episodes = rollout.episodes.mask, len(rollout.scores)
    kl = (kl_estimate(rollout.logprobs, rollout.reference_logprobs, name) for name in ("k1", "k3"))
    k1, k3 = (estimate.masked_fill(~mask, 0.0).sum(dim=1).mean().item() for estimate in kl)
    variance = explained_variance(rollout.values, rollout.returns, mask)
    return {
        "update": update,
        "episodes": (update + 1) * episodes,
        "reward": rollout.scores.mean().item(),
        "reward_std": rollout.scores.std(correction=0).item(),
        "reward_terms": {name: term.mean().item() for name, term in rollout.terms.items()},
        "kl": k1,
        "kl_k3": k3,
        "kl_coefficient": kl_coefficient,
        "objective": rollout.rewards.sum(dim=1).mean().item(),
        "entropy": masked_mean(rollout.entropy, mask).item(),
        "explained_variance": variance if math.isfinite(variance) else None,
        "response_tokens": int(mask.sum()) / episodes,
        "eos_rate": sum(answer.ended for answer in rollout.answers) / episodes,
        "gold": None if rollout.gold is None else rollout.gold.mean().item(),
    }


def samples_of(rollout: Rollout, update: int) -> list[dict]:
    """The first responses of a rollout, as they are written down."""
    shown = list(zip(rollout.prompts, rollout.answers, rollout.scores.tolist(), strict=True))[:SAMPLES_SHOWN]
    return [{"update": update, "prompt": p, "response": a.text, "reward": score} for p, a, score in shown]


def progress(line: dict) -> str:
    """An update's figures in a few words."""
    figures = "reward {reward:+.2f}, KL {kl:.2f} nats, EOS {eos_rate:.0%}, {tokens_per_second:.0f} tokens/s"
    return figures.format(**line)


def cut_to(folder: Path, updates: int, samples: int) -> list[dict]:
    """Cut metrics and samples to where a checkpoint stands; updates after it are done again. Returns the metrics."""
    for name, count in ((SAMPLES, samples), (METRICS, updates)):
        path = folder / name
        # What follows may be a line half written.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1][:count] if path.exists() else []
        if len(lines) < count:
            raise InputError(
                f"{path} has {len(lines)} lines, but the checkpoint beside it stands at {count}; restore the file, "
                "or train anew with resume=False"
            )
        write_text(path, "".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    first, now, budget, found = history[0], history[-1], config.kl_budget, {}
    best_eos = max(line["eos_rate"] for line in history)
    if now["kl"] < -0.5:  # within 0.5 nats it may be the noise of sampling
        found["negative_kl"] = (
            f"KL is {now['kl']:.2f} nats per response, and a KL cannot be negative: the log-probabilities are not "
            "those of the distribution that was sampled from (temperature, masks, top-k)"
        )
    if budget is not None and now["kl"] > budget:
        found["over_budget"] = (
            f"KL of {now['kl']:.1f} nats per response at temperature {config.temperature:g} is over the budget of "
            f"{budget:g}: training ends with the policy before it, which is within; raise kl_coefficient or lower "
            "learning_rate"
        )
    if now["eos_rate"] < best_eos - 0.15:
        found["eos_falling"] = (
            f"only {now['eos_rate']:.0%} of the responses end with EOS, after {best_eos:.0%} earlier: longer responses "
            "may be rewarded; raise missing_eos_penalty or max_new_tokens"
        )
    if now["entropy"] < 0.3 * first["entropy"]:
        found["entropy_collapse"] = (
            f"entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats per token: the policy says nearly "
            "the same every time; raise kl_coefficient or lower learning_rate"
        )
    return found
