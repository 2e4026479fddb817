"""What a PPO training writes down: one line of figures per update, sample responses, and which phrases spread."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from rlhf_utils.platforms.errors import InputError, visible
from rlhf_utils.platforms.files import append_text, read_json, write_json, write_text
from rlhf_utils.ppo.health import phrase_shares, spreading_phrase
from rlhf_utils.ppo.objective import explained_variance, kl_estimate, masked_mean
from rlhf_utils.ppo.rollout import Rollout

SAMPLES_SHOWN = 4


class Record:
    """The files `metrics.jsonl`, `samples.jsonl` and `phrases.json` of a training in `folder`."""

    def __init__(self, folder: Path):
        self.metrics, self.samples = folder / "metrics.jsonl", folder / "samples.jsonl"
        self.phrases = folder / "phrases.json"

    def clear(self) -> None:
        """Remove what an earlier training wrote."""
        for path in (self.metrics, self.samples, self.phrases):
            path.unlink(missing_ok=True)

    def cut(self, updates: int, samples: int) -> list[dict]:
        """Cut the files to where a checkpoint stands; updates after it are done again. Returns the lines of metrics."""
        if updates and not self.phrases.is_file():
            raise InputError(f"{self.phrases} is missing; restore the file, or train anew with resume=False")
        _cut(self.samples, samples)
        return _cut(self.metrics, updates)

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
        phrase = spreading_phrase(texts if update else (), read_json(self.phrases))
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
            **phrase,
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


def _cut(path: Path, count: int) -> list[dict]:
    """Cut a jsonl file to its first `count` lines and return them; what follows may be a line half written."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1][:count] if path.exists() else []
    if len(lines) < count:
        raise InputError(
            f"{path} has {len(lines)} lines, but the checkpoint beside it stands at {count}; restore the file, or "
            "train anew with resume=False"
        )
    write_text(path, "".join(line + "\n" for line in lines))
    return [json.loads(line) for line in lines]
