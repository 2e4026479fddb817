"""A GPT-2 of two layers and width 32 with a byte-level tokenizer, made in milliseconds, for tests that run models."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerFast

from rlhf_utils.models.loading import save_model
from rlhf_utils.models.lora import lora_config
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.ppo import PPOConfig, PPOTrainer
from rlhf_utils.settings.sections import LoraSettings
from rlhf_utils.settings.template import TEMPLATE

CPU = Device("cpu", "the tests' CPU", "fp32", 2**33)
CONTEXT = 96
# Bytes and the end-of-text token, no merges: one token is one byte, so tests can reason about tokens by characters.
VOCABULARY, END = 257, "<|endoftext|>"
TIMING = ("tokens_per_second", "seconds", "phase_seconds")
PROMPTS = ["a?", "Why is it so?", "tell me more about tea", "hm", "what now?", "Is bread good?", "say it again, please"]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """For modules that import it: models this small only wait for a second thread, long where the machine is busy."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(usual)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    bpe, names = ByteLevelBPETokenizer(), ("bos_token", "eos_token", "pad_token")
    bpe.train_from_iterator([], VOCABULARY, show_progress=False, special_tokens=[END])
    how = {"model_max_length": CONTEXT, "clean_up_tokenization_spaces": False, **dict.fromkeys(names, END)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), **how)


def tiny_model(
    seed: int = 0, eos_nats: float = 0.0, spread: float = 0.25, eos_id: int = 0, offset: float = 0.0
) -> GPT2LMHeadModel:
    """Random weights wide enough (`spread`) for words and positions to matter; `eos_nats` is added to the EOS logit,
    `offset` to all of them (those of the public GPT-2 lie around -100)."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    config = GPT2Config(**sizes, initializer_range=spread, bos_token_id=eos_id, eos_token_id=eos_id)
    model = GPT2LMHeadModel(config)
    if eos_nats:
        end = model.transformer.wte.weight.data[eos_id]
        # The head is the embedding itself, so a bias along one embedding raises that token's logit in every state.
        model.transformer.ln_f.bias.data += eos_nats * end / end.square().sum()
    if offset:
        model.transformer.wte.weight.data[:, 0] = spread
        model.transformer.ln_f.weight.data[0], model.transformer.ln_f.bias.data[0] = 0.0, offset / spread
    return model.eval()


def save_tiny(folder: Path, **how) -> Path:
    """A policy folder as the series writes it, with dropout in its config as in GPT-2's own."""
    tokenizer = tiny_tokenizer()
    save_model(tiny_model(eos_id=tokenizer.eos_token_id, **how), tokenizer, folder)
    return folder


def adapted(model: PreTrainedModel, task: str = "CAUSAL_LM") -> PeftModel:
    """`model` with an adapter that does something: peft starts its B matrices at 0."""
    torch.manual_seed(1)
    settings = LoraSettings(rank=4, alpha=8, modules=("c_attn", "c_proj", "c_fc"))
    model = get_peft_model(model, lora_config(settings, task, model.config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    return model.eval()


def token_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """One random list of ordinary token ids (no EOS) for each length."""
    source = random.Random(seed)
    return [[source.randrange(1, VOCABULARY) for _ in range(length)] for length in lengths]


@torch.no_grad()
def naive_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int], temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability [R], entropy [R] and trunk state [R, D] at each token of `answer`, one unpadded row at a time."""
    output = model(torch.tensor([[*prompt, *answer]]), output_hidden_states=True)
    before = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    distribution = torch.log_softmax(output.logits[0, before].double() / temperature, dim=-1)
    chosen = distribution[torch.arange(len(answer)), torch.tensor(answer)]
    return chosen, -(distribution.exp() * distribution).sum(dim=-1), output.hidden_states[-1][0, before]


def count_letter(letter: str):
    """A reward function: how often `letter` is in the response."""

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        return torch.tensor([float(response.count(letter)) for response in responses])

    return reward


def tiny_trainer(
    policy: Path, output_dir: Path, reward=None, prompts=PROMPTS, on_update=None, critic_model=None, judge=None,
    template=TEMPLATE, **config,
) -> PPOTrainer:  # fmt: skip
    """A PPO trainer in fp32 whose updates take a few hundredths of a second."""
    settings = {"updates": 3, "rollout_batch_size": 8, "minibatch_size": 4, "epochs": 2, "max_new_tokens": 10}
    settings |= {"learning_rate": 1e-3, "precision": "fp32", "save_every": 2, "sample_every": 2, **config}
    reward, config = reward or count_letter("e"), PPOConfig(**settings)
    return PPOTrainer(
        policy, tiny_tokenizer(), reward, prompts, config, output_dir, on_update, critic_model, judge, template
    )


def without_timing(lines: Sequence[dict]) -> list[dict]:
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]
