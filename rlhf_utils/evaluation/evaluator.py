"""Sampling and scoring answers of any policy of a run, always in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import nn

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation.judge import judge_of
from rlhf_utils.evaluation.metrics import rouge_per_sample, rouge_scores
from rlhf_utils.models.generation import Answer, answer_prompts
from rlhf_utils.models.language_model import Episodes, answer_logprobs, only_tokens_of, right_padded
from rlhf_utils.models.loading import load_policy, load_tokenizer
from rlhf_utils.platforms.runtime import detect_device
from rlhf_utils.rewards import ClassifierReward, load_reward
from rlhf_utils.runs.run import Run


@dataclass
class Answered:
    """One model's answers to prompts and what they measure; every list has one entry per prompt.

    `kl` is log pi(y) - log pi_sft(y) in nats per answer and `surprise` -log pi_sft(y) in nats per token, both at the
    sampling temperature; `gold` is None without a judge, `rouge` without references, `positivity` (the probability of
    the label that is paid) without a classifier.
    """

    answers: list[Answer]
    reward: list[float]
    gold: list[float] | None
    rouge: dict[str, list[float]] | None
    positivity: list[float] | None
    kl: list[float]
    surprise: list[float]

    @classmethod
    def of(cls, values: dict) -> Answered:
        """What `dataclasses.asdict` made a dictionary of."""
        return cls(**{**values, "answers": [Answer(**answer) for answer in values["answers"]]})

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.answers]


class Evaluator:
    """Samples and scores answers of any policy of the run, always the same way."""

    def __init__(self, run: Run):
        self.run, self.device = run, detect_device()
        self.tokenizer = load_tokenizer(run.folder("sft"))
        self.reward = load_reward(run.folder("reward_model"), self.device)
        self.reference = load_policy(run.folder("sft"), self.device).eval()
        self.judge = judge_of(run)

    def answer(self, policy: nn.Module, prompts: Sequence[str]) -> list[Answer]:
        """One sampled answer per prompt; every model gets the same random numbers."""
        recipe = self.run.recipe
        texts = [recipe.template.format(prompt) for prompt in prompts]
        return answer_prompts(
            policy.eval(), self.tokenizer, texts, recipe.generation, self.device, recipe.seed, recipe.template
        )

    def measure(self, policy: nn.Module, split: Dataset) -> Answered:
        """Sample one answer per prompt of `split` and measure it."""
        prompts, references = list(split["prompt"]), list(split["chosen"])
        answers = self.answer(policy, prompts)
        responses = [answer.text for answer in answers]
        classifier = self.reward if isinstance(self.reward, ClassifierReward) else None
        return Answered(
            answers,
            self.reward(prompts, responses).tolist(),
            self.judge(prompts, responses) if self.judge else None,
            None if None in references else rouge_per_sample(responses, references),
            classifier.probabilities(prompts, responses).tolist() if classifier else None,
            *self.distance(policy, prompts, answers),
        )

    @torch.no_grad()
    def distance(
        self, policy: nn.Module, prompts: Sequence[str], answers: Sequence[Answer]
    ) -> tuple[list[float], list[float]]:
        """`Answered.kl` and `Answered.surprise` of answers that `policy` sampled."""
        for model in (policy, self.reference):
            only_tokens_of(self.tokenizer, model)
        settings, kl, surprise = self.run.recipe.generation, [], []
        texts = [self.run.recipe.template.format(prompt) for prompt in prompts]
        prompts = start_tokens(self.tokenizer, texts)
        for start in range(0, len(prompts), settings.batch_size):
            part = list(zip(prompts, answers, strict=True))[start : start + settings.batch_size]
            tokens, _ = right_padded([prompt + answer.tokens for prompt, answer in part], self.tokenizer.pad_token_id)
            lengths = torch.tensor([len(answer.tokens) for _, answer in part])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            episodes = Episodes(
                tokens.to(self.device.kind),
                torch.tensor([len(prompt) for prompt, _ in part]).to(self.device.kind),
                mask.to(self.device.kind),
            )
            own, reference = (
                answer_logprobs(model, episodes, settings.temperature).sum(dim=1) for model in (policy, self.reference)
            )
            kl += (own - reference).tolist()
            surprise += (-reference.cpu() / lengths).tolist()
        return kl, surprise


def check_responses(run: Run, policy: nn.Module, most: int = 100) -> dict[str, float]:
    """ROUGE-L and EOS rate of `policy` on development prompts, at most `most` of them."""
    asked = PreparedData.load(run.folder("data")).first("development", most)
    texts, tokenizer = [run.recipe.template.format(p) for p in asked["prompt"]], load_tokenizer(run.folder("base"))
    run.progress("sampling held-out responses")
    answers = answer_prompts(policy.eval(), tokenizer, texts, run.recipe.generation, detect_device(), run.recipe.seed)
    return {
        "rougeL": rouge_scores([answer.text for answer in answers], asked["chosen"])["rougeL"],
        "eos_rate": sum(answer.ended for answer in answers) / len(answers),
        "checked_prompts": len(answers),
    }
