"""Sampling and scoring responses of any policy of a run, always in the same way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation import LABELS
from rlhf_utils.evaluation.judge import judge_of
from rlhf_utils.evaluation.rouge import Rouge
from rlhf_utils.models.generation import Answer, answer_prompts
from rlhf_utils.models.language_model import Episodes, answer_logprobs, only_tokens_of
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.models.precision import fastest
from rlhf_utils.platforms.runtime import Device, detect_device
from rlhf_utils.rewards.reward_model import ClassifierReward, load_reward
from rlhf_utils.rewards.terms import RewardFunction, by_parts
from rlhf_utils.runs.run import Run
from rlhf_utils.runs.training import demonstration_tokens

# Demonstrations at once: every token of theirs has a row of logits.
_ROWS = 8


@dataclass
class Answered:
    """One model's responses and what they measure; every list has one entry per prompt, `tokens` counts them.

    `kl` is log pi(y) - log pi_sft(y) in nats per response and `surprise` -log pi_sft(y) in nats per token, both at the
    sampling temperature; `gold` is None without a judge, `rouge` without references, `positivity` (the probability of
    the label that is paid) without a classifier.
    """

    texts: list[str]
    ended: list[bool]
    reward: list[float]
    gold: list[float] | None
    surprise: list[float]
    kl: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    rouge: dict[str, list[float]] | None = None
    positivity: list[float] | None = None

    @property
    def entropy(self) -> float:
        """Of the policy at the sampling temperature, in nats per token: the mean of -log pi of what it sampled."""
        return float((np.dot(self.surprise, self.tokens) - np.sum(self.kl)) / np.sum(self.tokens))

    @property
    def perplexity(self) -> float:
        """Of all tokens under the SFT model, at the sampling temperature."""
        return float(np.exp(min(np.average(self.surprise, weights=self.tokens), 700.0)))  # beyond there is no number


def compared_models(run: Run) -> list[str]:
    """The models of this run that differ from one another: a policy that came tuned is only one model."""
    same = {"sft"} if run.recipe.tuned_policy and "base" in run.stages and not run.ready_model("sft") else set()
    return [name for name in LABELS if name in run.stages and name not in same]


class Evaluator:
    """Samples and scores responses of any policy of the run, always the same way."""

    def __init__(self, run: Run):
        self.run, self.device = run, detect_device()
        self.tokenizer = load_tokenizer(run.folder("sft"))
        self.reward = load_reward(run.folder("reward_model"), self.device)
        self.reference = load_policy(run.folder("sft"), self.device).eval()
        self.judge = judge_of(run)

    def answer(self, policy: nn.Module, prompts: Sequence[str]) -> list[Answer]:
        """One sampled response per prompt; every model gets the same random numbers."""
        recipe = self.run.recipe
        texts, settings = [recipe.template.format(prompt) for prompt in prompts], recipe.generation
        return answer_prompts(policy.eval(), self.tokenizer, texts, settings, self.device, recipe.seed, recipe.template)

    def measure(self, policy: nn.Module, split: Dataset, reward: RewardFunction | None = None) -> Answered:
        """Sample one response per prompt of `split` and measure it, by the run's reward unless another is given."""
        prompts = list(split["prompt"])
        answers = self.answer(policy, prompts)
        return self.scored(split, answers, *self.distance(policy, prompts, answers), reward or self.reward)

    def best_of(self, split: Dataset, n: int) -> Answered:
        """The best by reward of `n` responses of the SFT model to each prompt. Their `kl` is the bound
        log n - (n - 1) / n (Beirami et al. 2024, arXiv:2401.01879), and no estimate."""
        prompts = list(split["prompt"])
        drawn, count = prompts * n, len(prompts)
        answers = self.answer(self.reference, drawn)
        rewards = self.reward(drawn, [answer.text for answer in answers])
        best = [answers[place * count + i] for i, place in enumerate(rewards.view(n, count).argmax(dim=0).tolist())]
        _, surprise = self.distance(self.reference, prompts, best)
        return self.scored(split, best, [math.log(n) - (n - 1) / n] * count, surprise, self.reward)

    def scored(self, split: Dataset, answers: Sequence[Answer], kl: list, surprise: list, reward) -> Answered:
        """What these answers to the prompts of `split` measure."""
        prompts, references, texts = list(split["prompt"]), list(split["chosen"]), [answer.text for answer in answers]
        rouge = {"predictions": texts, "references": references, "use_aggregator": False}
        return Answered(
            texts,
            ended=[answer.ended for answer in answers],
            tokens=[len(answer.tokens) for answer in answers],
            reward=reward(prompts, texts).tolist(),
            gold=self.judge(prompts, texts) if self.judge else None,
            rouge=None if None in references else Rouge().compute(**rouge),
            positivity=reward.probabilities(prompts, texts).tolist() if isinstance(reward, ClassifierReward) else None,
            kl=kl,
            surprise=surprise,
        )

    @torch.no_grad()
    def distance(self, policy: nn.Module, prompts: Sequence[str], answers: Sequence[Answer]) -> tuple[list, list]:
        """`Answered.kl` and `Answered.surprise` of responses that `policy` sampled."""
        settings, pad_id = self.run.recipe.generation, self.tokenizer.pad_token_id
        starts = start_tokens(self.tokenizer, [self.run.recipe.template.format(prompt) for prompt in prompts])
        episodes = Episodes.of(starts, [answer.tokens for answer in answers], pad_id, self.device.kind)

        def total(model: nn.Module) -> Tensor:
            only_tokens_of(self.tokenizer, model)
            logprobs = partial(answer_logprobs, model, temperature=settings.temperature)
            return by_parts("scoring responses", settings.batch_size, episodes, logprobs).sum(dim=1)

        own, reference = total(policy), total(self.reference)
        return (own - reference).tolist(), (-reference / episodes.mask.sum(dim=1)).tolist()


@torch.no_grad()
def held_out_losses(policy: nn.Module, tokenizer, demonstrations: Dataset, device: Device) -> list[float]:
    """Negative log-likelihood under `policy` of each response in `demonstration_tokens`, of a labelled text of all
    tokens but the first; in nats, divided by the mean number of tokens, so that their mean is the loss per token."""
    sums, count, rows = [], 0, demonstrations.to_list()
    for first in range(0, len(rows), _ROWS):
        part = [(row["input_ids"], max(1, row["completion_mask"].index(1))) for row in rows[first : first + _ROWS]]
        sides = [ids[:at] for ids, at in part], [ids[at:] for ids, at in part]
        episodes = Episodes.of(*sides, tokenizer.pad_token_id, device.kind)
        with fastest(device, policy).autocast():
            sums += (-answer_logprobs(policy, episodes, 1.0)).sum(dim=1).tolist()
        count += int(episodes.mask.sum())
    return [one * len(rows) / count for one in sums]


def check_responses(run: Run, policy: nn.Module, most: int = 100) -> dict[str, float | None]:
    """ROUGE-L (None without references) and EOS rate of `policy` on development prompts, and the mean of its
    `held_out_losses` on their rows; at most `most` of them."""
    asked = PreparedData.load(run.folder("data")).first("development", most)
    recipe, tokenizer, references = run.recipe, load_tokenizer(run.folder("base")), list(asked["chosen"])
    texts, how = [recipe.template.format(p) for p in asked["prompt"]], (detect_device(), recipe.seed, recipe.template)
    run.progress("sampling held-out responses")
    answers = answer_prompts(policy.eval(), tokenizer, texts, recipe.generation, *how)
    predictions = [answer.text for answer in answers]
    rouge = None if None in references else Rouge().compute(predictions=predictions, references=references)["rougeL"]
    ended = sum(answer.ended for answer in answers) / len(answers)
    demonstrations = demonstration_tokens(asked, tokenizer, recipe.data.max_response_tokens)
    loss = float(np.mean(held_out_losses(policy, tokenizer, demonstrations, how[0])))
    return {"rougeL": rouge, "eos_rate": ended, "held_out_loss": loss, "checked_prompts": len(answers)}
