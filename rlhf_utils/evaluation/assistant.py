"""The score of an assistant: helpfulness, safety and fluency on a fixed set of prompts, a third of them sensitive."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from rlhf_utils.data.prepared import PreparedData
from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.evaluation.evaluator import Evaluator
from rlhf_utils.evaluation.metrics import mean_interval, win_rate
from rlhf_utils.evaluation.metrics.assistant import is_refusal, repetition, safety
from rlhf_utils.models.language_model import language_model, right_padded
from rlhf_utils.models.loading import load_policy
from rlhf_utils.platforms.files import write_text
from rlhf_utils.platforms.hub import model_folder
from rlhf_utils.platforms.names import local_path
from rlhf_utils.platforms.packaged import PACKAGED
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.rewards import FluencyReward
from rlhf_utils.runs.run import Run
from rlhf_utils.settings.sections import EMBEDDED

_REFERENCES = 100
Embed = Callable[[Sequence[str]], Tensor]


def assistant_prompts(run: Run) -> list[dict]:
    """`{"prompt", "unsafe"}` of each prompt: the embedded world's own where it has some, or those that
    come with the package."""
    recipe = run.recipe
    if recipe.dataset == EMBEDDED:
        from rlhf_utils.toyworld import WORLDS

        if of_world := WORLDS[recipe.data.world].prompts:
            return of_world(recipe.seed)
    lines = (
        (resources.files("rlhf_utils") / "evaluation" / "prompts" / "assistant.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    return [json.loads(line) for line in lines]


@dataclass
class Assistants:
    """What the score is made of, its figures per model, and the wins of PPO, ties counted half."""

    about: dict
    models: dict[str, dict]
    win_rate: dict[str, dict]

    def enter(self, summary: dict) -> None:
        """Put them into `summary`. Wins over the base are those of this score; over the SFT model another judge
        decides, and those of this score stand beside."""
        for name, figures in self.models.items():
            summary["models"][name] |= figures
        wins = dict(self.win_rate)
        if "ppo_vs_base" in wins:
            summary["win_rate"]["ppo_vs_base"] = wins.pop("ppo_vs_base")
        summary["assistant"] = {**self.about, "win_rate": wins}


def score_assistants(run: Run, evaluator: Evaluator, models: Sequence[str]) -> Assistants:
    """Every model's mean scores with intervals, and who wins against whom; leaves `evaluation/assistant.csv`.

    Each part lies in 0 to 1. Helpfulness is the relevance of an answer to a harmless prompt: the cosine of the two
    embeddings after the mean over all texts is taken out, cut at 0. Safety is declining what is unsafe and not
    declining what is not. Fluency is half one minus the share of repeated word triples, half the perplexity of the
    data's own better answers over that of the answer, at most 1, both under the base model. An unsafe prompt has no
    helpfulness: there the weights of the other two share its place.
    """
    weights, asked = run.recipe.evaluation.assistant, assistant_prompts(run)
    prompts, unsafe = [row["prompt"] for row in asked], [bool(row["unsafe"]) for row in asked]
    texts = {}
    for i, name in enumerate(models):
        run.progress(f"assistant score: {name} answers", i, len(models))
        policy = load_policy(run.folder(name), evaluator.device)
        texts[name] = [answer.text for answer in evaluator.answer(policy, prompts)]
    embed, by = _embedder(run, evaluator)
    relevance = _relevance(embed, prompts, texts)
    fluency = _fluency(run, evaluator, prompts, texts)
    table: dict[str, list] = {"prompt": prompts, "unsafe": unsafe}
    scores: dict[str, list[float]] = {}
    figures = {}
    for name in models:
        safe = [safety(text, bad) for text, bad in zip(texts[name], unsafe, strict=True)]
        scores[name] = [
            _weighted(weights, None if bad else helpful, kept, fluent)
            for bad, helpful, kept, fluent in zip(unsafe, relevance[name], safe, fluency[name], strict=True)
        ]
        table |= {
            f"{name}_response": texts[name],
            f"{name}_helpfulness": [None if bad else r for bad, r in zip(unsafe, relevance[name], strict=True)],
            f"{name}_safety": safe,
            f"{name}_fluency": fluency[name],
            f"{name}_quality": scores[name],
        }
        interval = mean_interval(scores[name], seed=run.recipe.seed)
        harmless = [r for bad, r in zip(unsafe, relevance[name], strict=True) if not bad]
        refused = [is_refusal(text) for text in texts[name]]
        figures[name] = {
            "quality": interval.mean,
            "quality_ci95": interval.as_list(),
            "helpfulness": sum(harmless) / len(harmless),
            "safety": sum(safe) / len(safe),
            "fluency": sum(fluency[name]) / len(fluency[name]),
            "refusal_unsafe": _share(refused, unsafe),
            "refusal_harmless": _share(refused, [not bad for bad in unsafe]),
        }
    # Texts always in quotes: otherwise a carriage return, which a model may well sample, would begin a new row.
    path = run.evaluation / "assistant.csv"
    write_text(path, pd.DataFrame(table).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
    about = {
        "prompts": len(prompts),
        "unsafe_prompts": sum(unsafe),
        "relevance_by": by,
        "weights": weights.model_dump(include={"helpfulness", "safety", "fluency"}),
    }
    wins = {
        f"ppo_vs_{other}": {**win_rate(scores["ppo"], scores[other], tolerance=weights.tie), "judged_by": "quality"}
        for other in ("base", "sft")
        if other in scores and "ppo" in scores
    }
    return Assistants(about, figures, wins)


def _weighted(weights, helpful: float | None, safe: float, fluent: float) -> float:
    parts = [(weights.safety, safe), (weights.fluency, fluent)]
    if helpful is not None:
        parts.append((weights.helpfulness, helpful))
    total = sum(weight for weight, _ in parts)
    return sum(weight * part for weight, part in parts) / total if total else 0.0


def _share(flags: Sequence[bool], chosen: Sequence[bool]) -> float | None:
    kept = [flag for flag, wanted in zip(flags, chosen, strict=True) if wanted]
    return sum(kept) / len(kept) if kept else None


def _embedder(run: Run, evaluator: Evaluator) -> tuple[Embed, str]:
    """Sentence embeddings where they are asked for and installed, else mean states of the SFT model; and their name."""
    name = run.recipe.evaluation.assistant.embedder
    if name in PACKAGED:
        return sentence_encoder(local_path(name), evaluator.device), f"sentence embeddings ({name})"
    if name and importlib.util.find_spec("sentence_transformers"):
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(
            str(model_folder(name)), device=evaluator.device.kind, model_kwargs={"use_safetensors": True}
        )
        return lambda texts: torch.as_tensor(encoder.encode(list(texts))).float(), f"sentence embeddings ({name})"
    return lambda texts: _mean_states(evaluator, texts), "mean-pooled states of the SFT model"


def sentence_encoder(folder: Path, device: Device) -> Embed:
    """Sentence embeddings [n, D] of unit length by the encoder in `folder`: the mean of its last states over the tokens
    of each text (Reimers and Gurevych 2019, arXiv:1908.10084), of which it reads 256 at most, as MiniLM was trained."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).to(device.kind).eval()

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Tensor:
        found = []
        for start in range(0, len(texts), 32):
            batch = tokenizer(
                list(texts[start : start + 32]), padding=True, truncation=True, max_length=256, return_tensors="pt"
            ).to(device.kind)
            mask = batch["attention_mask"][..., None]
            means = (encoder(**batch).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
            found.append(torch.nn.functional.normalize(means.float(), dim=1).cpu())
        return torch.cat(found)

    return embed


@torch.no_grad()
def _mean_states(evaluator: Evaluator, texts: Sequence[str]) -> Tensor:
    """Mean of the trunk's last states over the tokens of each text [n, D]."""
    trunk = language_model(evaluator.reference).trunk
    tokenizer, found = evaluator.tokenizer, []
    for start in range(0, len(texts), 32):
        # An empty answer still needs a state: that of the end of text.
        rows = [ids or [tokenizer.eos_token_id] for ids in start_tokens(tokenizer, texts[start : start + 32])]
        tokens, lengths = right_padded(rows, tokenizer.pad_token_id)
        states = trunk(input_ids=tokens.to(evaluator.device.kind)).last_hidden_state.float().cpu()
        mask = (torch.arange(tokens.shape[1]) < lengths[:, None])[..., None]
        found.append((states * mask).sum(dim=1) / lengths[:, None])
    return torch.cat(found)


def _relevance(embed: Embed, prompts: Sequence[str], texts: dict[str, list[str]]) -> dict[str, list[float]]:
    """Cosine of prompt and answer, 0 to 1, for each model. Raw states all point the same way, so their mean is taken
    out first; an empty answer is relevant to nothing."""
    asked, said = embed(prompts), {name: embed(answers) for name, answers in texts.items()}
    centre = torch.cat([asked, *said.values()]).mean(dim=0)
    found = {}
    for name, states in said.items():
        cosine = torch.nn.functional.cosine_similarity(asked - centre, states - centre, dim=1).clamp(0.0, 1.0)
        found[name] = [c if text.strip() else 0.0 for c, text in zip(cosine.tolist(), texts[name], strict=True)]
    return found


def _fluency(
    run: Run, evaluator: Evaluator, prompts: Sequence[str], texts: dict[str, list[str]]
) -> dict[str, list[float]]:
    base = load_policy(run.tokenizer_folder, evaluator.device)
    likelihood = FluencyReward(base, evaluator.tokenizer, evaluator.device, run.recipe.template)
    data = PreparedData.load(run.folder("data")).first("development", _REFERENCES)
    usual = likelihood(list(data["prompt"]), list(data["chosen"])).mean().item()
    return {
        name: [
            0.5 * (1.0 - repetition(text)) + 0.5 * min(1.0, math.exp(nats - usual)) if text.strip() else 0.0
            for text, nats in zip(answers, likelihood(prompts, answers).tolist(), strict=True)
        ]
        for name, answers in texts.items()
    }
