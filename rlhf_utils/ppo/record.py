"""What a PPO training writes down: one line of figures per update, sample responses, which phrases spread, and warnings
in plain words where the figures look like trouble."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from rlhf_utils.data.tokens import words_of
from rlhf_utils.platforms.errors import InputError, visible
from rlhf_utils.platforms.files import append_text, read_json, write_json, write_text
from rlhf_utils.ppo.objective import explained_variance, kl_estimate, masked_mean
from rlhf_utils.ppo.rollout import Rollout
from rlhf_utils.settings.sections import PPOConfig

SAMPLES_SHOWN, PHRASE_WORDS = 4, 4
WARNINGS = {
    "negative_kl": "KL is {kl:.2f} nats per response, and a KL cannot be negative: the log-probabilities are not those "
    "of the distribution that was sampled from (temperature, masks, top-k)",
    "over_budget": "KL of {kl:.1f} nats per response at temperature {temperature:g} is over the budget of {budget:g}: "
    "training ends with the policy before it, which is within; raise kl_coefficient or lower learning_rate",
    "eos_falling": "only {eos_rate:.0%} of the responses end with EOS, after {best_eos:.0%} earlier: longer responses "
    "may be rewarded; raise missing_eos_penalty or max_new_tokens",
    "entropy_collapse": "entropy fell from {entropy_before:.2f} to {entropy:.2f} nats per token: the policy says "
    "nearly the same every time; raise kl_coefficient or lower learning_rate",
    "reward_flat": "reward has not moved in {updates} updates ({reward_before:+.2f} to {reward:+.2f}): the steps may "
    "be too small, the KL coefficient too high, or the reward the same for every response",
    "value_loss": "the value loss jumped to {loss:.2g}, from {usual:.2g}: the critic no longer follows the rewards; "
    "lower value_learning_rate or scale the rewards",
    "one_phrase": "{phrase!r} appears in {phrase_share:.0%} of the responses, at first in {phrase_share_at_start:.0%}: "
    "the policy may be rewarded for the phrase",
}


class Record:
    """The files `metrics.jsonl`, `samples.jsonl` and `phrases.json` of a training in `folder`."""

    def __init__(self, folder: Path):
        self.metrics, self.samples = folder / "metrics.jsonl", folder / "samples.jsonl"
        self.phrases = folder / "phrases.json"

    def cut(self, updates: int, samples: int) -> list[dict]:
        """Cut the files to where a checkpoint stands; updates after it are done again. Returns the lines of metrics."""
        if updates and not self.phrases.is_file():
            raise InputError(f"{self.phrases} is missing; restore the file, or train anew with resume=False")
        for path, count in ((self.samples, samples), (self.metrics, updates)):
            # What follows may be a line half written.
            lines = path.read_text(encoding="utf-8").split("\n")[:-1][:count] if path.exists() else []
            if len(lines) < count:
                raise InputError(
                    f"{path} has {len(lines)} lines, but the checkpoint beside it stands at {count}; restore the file, "
                    "or train anew with resume=False"
                )
            write_text(path, "".join(line + "\n" for line in lines))
        return [json.loads(line) for line in lines]

    def add(self, line: dict, samples: Sequence[dict] = ()) -> None:
        """Append an update's line of figures, and its samples."""
        for path, rows in ((self.metrics, [line]), (self.samples, samples)):
            append_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))

    def figures(self, rollout: Rollout, update: int, kl_coefficient: float) -> dict:
        """What a rollout says of the policy: rewards, KL in nats per response, entropy in nats per token, lengths in
        tokens, and the phrase whose share of the responses has grown most since update 0.

        `kl` is the KL of the sampled distribution, at the temperature of the training; `objective` is the mean of what
        a response is paid, after scale, clip, the penalty of a missing EOS and the price of its KL.
        """
        mask, episodes, texts = rollout.episodes.mask, len(rollout.scores), [a.text for a in rollout.answers]
        kl = (kl_estimate(rollout.logprobs, rollout.reference_logprobs, name) for name in ("k1", "k3"))
        k1, k3 = (estimate.masked_fill(~mask, 0.0).sum(dim=1).mean().item() for estimate in kl)
        if update == 0:
            write_json(self.phrases, dict(phrase_shares(texts).most_common()))
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
            **spreading_phrase(texts if update else (), read_json(self.phrases)),
            "gold": None if rollout.gold is None else rollout.gold.mean().item(),
        }


def times_of(rollout: Rollout) -> dict:
    """Seconds of an update in all and by phase, and tokens a second."""
    seconds, tokens = sum(rollout.seconds.values()), int(rollout.episodes.mask.sum())
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "phase_seconds": rollout.seconds}


def samples_of(rollout: Rollout, update: int) -> list[dict]:
    """The first responses of a rollout, as they are written down."""
    shown = list(zip(rollout.prompts, rollout.answers, rollout.scores.tolist(), strict=True))[:SAMPLES_SHOWN]
    return [{"update": update, "prompt": p, "response": a.text, "reward": score} for p, a, score in shown]


def samples_table(samples: Sequence[dict]) -> str:
    """Samples of an update, one line each: reward, the end of the prompt, the start of the response."""
    lines = [f"  samples of update {samples[0]['update'] + 1}"]
    for sample in samples:
        prompt, response = (visible(" ".join(sample[key].split())) for key in ("prompt", "response"))
        prompt = prompt if len(prompt) <= 38 else "…" + prompt[-37:]
        response = response if len(response) <= 68 else response[:67] + "…"
        lines.append(f"  {sample['reward']:+7.2f}  {prompt:<38}  {response}")
    return "\n".join(lines)


def progress(line: dict) -> str:
    """An update's figures in a few words."""
    figures = "reward {reward:+.2f}, KL {kl:.2f} nats, EOS {eos_rate:.0%}, {tokens_per_second:.0f} tokens/s"
    return figures.format(**line)


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    first, now, budget = history[0], history[-1], config.kl_budget
    best_eos = max(line["eos_rate"] for line in history)
    *earlier, loss = [line["value_loss"] for line in history if line["value_loss"] is not None] or [0.0]
    usual, spread = median(earlier or [loss]), now["phrase_share"] - now["phrase_share_at_start"]
    told = {"temperature": config.temperature, "budget": budget, "best_eos": best_eos, "updates": len(history)}
    told |= {"entropy_before": first["entropy"], "reward_before": first["reward"], "loss": loss, "usual": usual}
    wrong = {
        "negative_kl": now["kl"] < -0.5,  # within 0.5 nats it may be the noise of sampling
        "over_budget": budget is not None and now["kl"] > budget,
        "eos_falling": now["eos_rate"] < best_eos - 0.15,
        "entropy_collapse": now["entropy"] < 0.3 * first["entropy"],
        "reward_flat": len(history) >= 10 and _flat(history),
        "value_loss": len(earlier) > 2 and loss > 10 * usual,
        "one_phrase": now["phrase_share"] > 0.5 and spread > 0.3,
    }
    return {name: WARNINGS[name].format(**now | told) for name in wrong if wrong[name]}


def _flat(history: Sequence[dict]) -> bool:
    """Whether the mean reward of the last third is within two standard errors of that of the first."""
    third, episodes = len(history) // 3, history[0]["episodes"]
    early, late = history[:third], history[-third:]
    error = (sum(fmean(line["reward_std"] ** 2 for line in part) / (third * episodes) for part in (early, late))) ** 0.5
    return abs(fmean(line["reward"] for line in late) - fmean(line["reward"] for line in early)) < 2 * error


def phrase_shares(texts: Sequence[str]) -> Counter[str]:
    """Share of the texts, 0 to 1, in which each phrase of four words appears, lower-cased."""
    counts: Counter[str] = Counter()
    for text in texts:
        words = words_of(text.lower())
        counts.update({" ".join(words[i : i + PHRASE_WORDS]) for i in range(len(words) - PHRASE_WORDS + 1)})
    return Counter({phrase: count / len(texts) for phrase, count in counts.items()})


def spreading_phrase(texts: Sequence[str], start: Mapping[str, float]) -> dict:
    """The phrase whose share of the texts has grown most from what it is in `start`, with both shares."""
    shares = phrase_shares(texts)
    # By share, then by name, so that a tie is the same phrase on every machine.
    grown = max(shares, key=lambda phrase: (shares[phrase] - start.get(phrase, 0.0), phrase), default=None)
    return {"phrase": grown, "phrase_share": shares.get(grown, 0.0), "phrase_share_at_start": start.get(grown, 0.0)}
