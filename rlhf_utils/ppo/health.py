"""What the figures of a PPO training look like when it goes wrong: warnings in plain words, with the likely cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from rlhf_utils.data.tokens import words_of
from rlhf_utils.settings.sections import PPOConfig

PHRASE_WORDS = 4


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    first, now = history[0], history[-1]
    best_eos = max(line["eos_rate"] for line in history)
    *earlier, loss = [line["value_loss"] for line in history if line["value_loss"] is not None] or [0.0]
    usual, share, budget = median(earlier or [loss]), now["phrase_share"], config.kl_budget
    checks = {
        # Within 0.5 nats it may be the noise of sampling.
        "negative_kl": (
            now["kl"] < -0.5,
            f"KL is {now['kl']:.2f} nats per response, and a KL cannot be negative: the log-probabilities are not "
            "those of the distribution that was sampled from (temperature, masks, top-k)",
        ),
        "over_budget": (
            budget is not None and now["kl"] > budget,
            f"KL of {now['kl']:.1f} nats per response at temperature {config.temperature:g} is over the budget of "
            f"{budget or 0:g}: training ends with the policy before it, which is within; raise kl_coefficient or lower "
            "learning_rate",
        ),
        "eos_falling": (
            now["eos_rate"] < best_eos - 0.15,
            f"only {now['eos_rate']:.0%} of the responses end with EOS, after {best_eos:.0%} earlier: longer responses "
            "may be rewarded; raise missing_eos_penalty or max_new_tokens",
        ),
        "entropy_collapse": (
            now["entropy"] < 0.3 * first["entropy"],
            f"entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats per token: the policy says nearly "
            "the same every time; raise kl_coefficient or lower learning_rate",
        ),
        "reward_flat": (
            len(history) >= 10 and _flat(history),
            f"reward has not moved in {len(history)} updates ({first['reward']:+.2f} to {now['reward']:+.2f}): the "
            "steps may be too small, the KL coefficient too high, or the reward the same for every response",
        ),
        "value_loss": (
            len(earlier) > 2 and loss > 10 * usual,
            f"the value loss jumped to {loss:.2g}, from {usual:.2g}: the critic no longer follows the rewards; lower "
            "value_learning_rate or scale the rewards",
        ),
        "one_phrase": (
            share > 0.5 and share - now["phrase_share_at_start"] > 0.3,
            f"{now['phrase']!r} appears in {share:.0%} of the responses, at first in "
            f"{now['phrase_share_at_start']:.0%}: the policy may be rewarded for the phrase",
        ),
    }
    return {name: text for name, (wrong, text) in checks.items() if wrong}


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
