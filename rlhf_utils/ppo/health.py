"""What the figures of a PPO training look like when it goes wrong: warnings in plain words, with the likely cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median

from rlhf_utils.data.words import words_of
from rlhf_utils.settings.sections import PPOConfig

# Sampling noise of the mean KL of a rollout; a mean clearly below 0 cannot be a KL.
KL_NOISE = 0.5
EOS_FALL = 0.15
ENTROPY_LEFT = 0.3
FLAT_AFTER = 10
VALUE_LOSS_GROWTH = 10.0
PHRASE_WORDS = 4
PHRASE_SHARE = 0.5
PHRASE_GROWTH = 0.3


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    now, first, found = history[-1], history[0], {}
    if now["kl"] < -KL_NOISE:
        found["negative_kl"] = (
            f"KL is {now['kl']:.2f} nats per response, and a KL cannot be negative: the log-probabilities are not those "
            "of the distribution that was sampled from (temperature, masks, top-k)"
        )
    if config.kl_budget is not None and now["kl"] > config.kl_budget:
        found["over_budget"] = (
            f"KL of {now['kl']:.1f} nats per response at temperature {config.temperature:g} is over the budget of "
            f"{config.kl_budget:g}: training ends, and the policy before it, which is within, is the result; raise "
            "kl_coefficient or lower learning_rate"
        )
    best_eos = max(line["eos_rate"] for line in history)
    if now["eos_rate"] < best_eos - EOS_FALL:
        found["eos_falling"] = (
            f"only {now['eos_rate']:.0%} of the responses end with EOS, after {best_eos:.0%} earlier: longer responses "
            "may be rewarded; raise missing_eos_penalty or max_new_tokens"
        )
    if now["entropy"] < ENTROPY_LEFT * first["entropy"]:
        found["entropy_collapse"] = (
            f"entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats per token: the policy says nearly "
            "the same every time; raise kl_coefficient or lower learning_rate"
        )
    if len(history) >= FLAT_AFTER and _flat(history):
        found["reward_flat"] = (
            f"reward has not moved in {len(history)} updates ({first['reward']:+.2f} to {now['reward']:+.2f}): the "
            "steps may be too small, the KL coefficient too high, or the reward the same for every response"
        )
    losses = [line["value_loss"] for line in history if line["value_loss"] is not None]
    if len(losses) > 3 and losses[-1] > VALUE_LOSS_GROWTH * median(losses[:-1]):
        found["value_loss"] = (
            f"the value loss jumped to {losses[-1]:.2g}, from {median(losses[:-1]):.2g}: the critic no longer follows "
            "the rewards; lower value_learning_rate or scale the rewards"
        )
    if now["phrase_share"] > PHRASE_SHARE and now["phrase_share"] - now["phrase_share_at_start"] > PHRASE_GROWTH:
        found["one_phrase"] = (
            f"{now['phrase']!r} appears in {now['phrase_share']:.0%} of the responses, at first in "
            f"{now['phrase_share_at_start']:.0%}: the policy may be rewarded for the phrase"
        )
    return found


def _flat(history: Sequence[dict]) -> bool:
    """Whether the mean reward of the last third is within two standard errors of that of the first."""
    third = len(history) // 3
    early, late = history[:third], history[-third:]
    episodes = history[0]["episodes"]
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
    """The phrase whose share of the texts has grown most since it was that of `start`, with both shares."""
    shares = phrase_shares(texts)
    # By share, then by name, so that a tie is the same phrase on every machine.
    grown = max(shares, key=lambda phrase: (shares[phrase] - start.get(phrase, 0.0), phrase), default=None)
    return {
        "phrase": grown,
        "phrase_share": shares[grown] if grown else 0.0,
        "phrase_share_at_start": start.get(grown, 0.0),
    }
