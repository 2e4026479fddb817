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
        self._phrases = folder / "phrases.json"

    def clear(self) -> None:
        """Remove what an earlier training wrote."""
        for path in (self.metrics, self.samples, self._phrases):
            path.unlink(missing_ok=True)

    def cut(self, updates: int, samples: int) -> list[dict]:
        """Cut the files to where a checkpoint stands; updates after it are done again. Returns the lines of metrics."""
        if updates and not self._phrases.is_file():
            raise InputError(f"{self._phrases} is missing; restore the file, or train anew with resume=False")
        _cut(self.samples, samples)
        return _cut(self.metrics, updates)

    def add(self, line: dict) -> None:
        """Append an update's line of figures."""
        _append(self.metrics, [line])

    def add_samples(self, update: int, rollout: Rollout) -> list[dict]:
        """Append the first responses of a rollout; returns them as written."""
        shown = list(zip(rollout.prompts, rollout.answers, rollout.scores.tolist(), strict=True))[:SAMPLES_SHOWN]
        samples = [
            {"update": update, "prompt": prompt, "response": answer.text, "reward": score}
            for prompt, answer, score in shown
        ]
        _append(self.samples, samples)
        return samples

    def phrase(self, update: int, texts: Sequence[str]) -> dict:
        """The phrase whose share of the responses has grown most since update 0, with both shares."""
        if update == 0:
            write_json(self._phrases, dict(phrase_shares(texts).most_common()))
            return {"phrase": None, "phrase_share": 0.0, "phrase_share_at_start": 0.0}
        return spreading_phrase(texts, read_json(self._phrases))


def samples_table(samples: Sequence[dict]) -> str:
    """Samples of an update, one line each: reward, the end of the prompt, the start of the response."""

    def cut(text: str, width: int, end: bool = False) -> str:
        text = visible(" ".join(text.split()))
        if len(text) <= width:
            return text.ljust(width)
        return "…" + text[1 - width :] if end else text[: width - 1] + "…"

    lines = [f"  samples of update {samples[0]['update'] + 1}"] if samples else []
    lines += [
        f"  {sample['reward']:+7.2f}  {cut(sample['prompt'], 38, end=True)}  {cut(sample['response'], 68)}".rstrip()
        for sample in samples
    ]
    return "\n".join(lines)


def figures_of(rollout: Rollout, update: int, kl_coefficient: float) -> dict:
    """What a rollout says of the policy: rewards, KL in nats per response, entropy in nats per token, lengths in
    tokens.

    `kl` is the KL of the sampled distribution, at the temperature of the training; `objective` is the mean of what a
    response is paid, after scale, clip, the penalty of a missing EOS and the price of its KL.
    """
    mask, episodes = rollout.episodes.mask, len(rollout.scores)
    k1, k3 = (
        kl_estimate(rollout.logprobs, rollout.reference_logprobs, name).masked_fill(~mask, 0.0).sum(dim=1).mean().item()
        for name in ("k1", "k3")
    )
    variance = explained_variance(rollout.values, rollout.returns, mask).item()
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
    }


def times_of(rollout: Rollout) -> dict:
    """Seconds of an update in all and by phase, and tokens a second."""
    seconds = sum(rollout.seconds.values())
    tokens = int(rollout.episodes.mask.sum())
    return {"tokens_per_second": tokens / seconds, "seconds": seconds, "phase_seconds": rollout.seconds}


def progress(line: dict) -> str:
    """An update's figures in a few words."""
    return (
        f"reward {line['reward']:+.2f}, KL {line['kl']:.2f} nats, EOS {line['eos_rate']:.0%}, "
        f"{line['tokens_per_second']:.0f} tokens/s"
    )


def _append(path: Path, lines: list[dict]) -> None:
    append_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


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
