"""Logits in fp32 from any causal language model: what sampling draws from is what learning and scoring compute."""

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tiny import CPU, PROMPTS, VOCABULARY, naive_logprobs, one_thread, tiny_model, tiny_tokenizer, token_rows  # noqa: F401
from tiny_sft import sft
from transformers import AutoModelForCausalLM

from rlhf_utils.models.generation import Sampled, answer_prompts, left_padded, sample
from rlhf_utils.models.language_model import Episodes, answer_logprobs, end_ids, language_model, only_tokens_of
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.runs.training import head_in_fp32
from rlhf_utils.settings.sections import GenerationSettings

EOS = 0
ROWS = token_rows((3, 9, 14, 6) * 8)
SIXTEEN = ["bf16", "fp16"]


def drawn(model, rows=ROWS, new=32, eos=EOS, **more) -> tuple[Sampled, Episodes]:
    """Answers to `rows`, and both as episodes."""
    tokens, mask = left_padded(rows, EOS, "cpu")
    sampled = sample(model, tokens, mask, new, 1.0, eos, torch.Generator().manual_seed(0), **more)
    return sampled, Episodes.of(rows, said(sampled), EOS, "cpu")


def said(sampled: Sampled) -> list[list[int]]:
    return [tokens[real].tolist() for tokens, real in zip(sampled.tokens, sampled.mask, strict=True)]


@torch.no_grad()
def log_ratio(model, sampled, episodes) -> torch.Tensor:
    return (sampled.logprobs - answer_logprobs(model, episodes, 1.0))[sampled.mask]


# The head in fp32


@pytest.mark.parametrize("precision", SIXTEEN)
def test_logits_around_minus_100_lose_nothing_in_16_bits(precision):
    """In bf16 one step there is 0.5 nats: from a 16-bit head log-ratios are 0.49 at most, 0.4 % of tokens lie outside
    the clip, and the model has 0.015 nats per response of KL to itself; in fp16 0.065 at most."""
    model, device = tiny_model(offset=-100.0), Device("cpu", "", precision, 2**33)
    with device.autocast():
        sampled, episodes = drawn(model)
        difference = log_ratio(model, sampled, episodes)
    assert -200 < model(torch.tensor(ROWS[:1])).logits.mean() < -60
    assert difference.abs().max() < (0.04 if precision == "bf16" else 0.01)
    assert ((difference.exp() - 1.0).abs() < 0.2).all()
    assert (torch.expm1(-difference) + difference).sum() / len(ROWS) < 0.002
    assert log_ratio(model, sampled, episodes).abs().max() > 1e-5, "this was no 16-bit pass"


@pytest.mark.parametrize("adapter", [False, True])
def test_trl_computes_its_loss_from_fp32_logits_under_autocast(tmp_path, adapter):
    """After four epochs on sentences the held-out loss is 1.324 in fp32 and so, and 1.380 from a bf16 head."""
    trainer, model = sft(tmp_path, offset=-100.0)
    whole = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)) if adapter else model
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])

    def error() -> float:
        with torch.no_grad():
            exact = whole(**batch, fused_lm_head=True).loss
            with torch.autocast("cpu", torch.bfloat16):
                return (whole(**batch, fused_lm_head=True).loss - exact).abs().item()

    usual = error()
    head_in_fp32(whole)
    assert error() < min(0.002, usual / 2)
    forward = model.forward
    head_in_fp32(whole)
    assert model.forward is forward, "where a cell runs again, nothing may stand above accelerate's autocast"


# Architectures with a rule of their own; the usual ones are in test_architectures.py

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=96, initializer_range=0.3, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
GROUPED = COMMON | {"num_key_value_heads": 2, "head_dim": 8}
OPT_350M = dict(word_embed_proj_dim=16, ffn_dim=64, init_std=0.3, do_layer_norm_before=False, dropout=0.0)
ARCHITECTURES = {
    "Mistral": GROUPED | {"sliding_window": 8},
    "OPT": COMMON | OPT_350M,
    "Granite": GROUPED | {"logits_scaling": 8.0},
    "Cohere": GROUPED | {"logit_scale": 0.25},
    "Gemma2": GROUPED | {"sliding_window": 8, "final_logit_softcapping": 3.0},
}


def of(architecture: str, **other):
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**(ARCHITECTURES.get(architecture, COMMON) | other))
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampling_and_learning_compute_the_models_own_logits(architecture):
    model, rows = of(architecture), ROWS[:6]
    sampled, episodes = drawn(model, rows, 12, eos=range(30))
    assert 1 < len({*sampled.mask.sum(dim=1).tolist()}), "rows that end at different times"
    assert log_ratio(model, sampled, episodes).abs().max() < 1e-4
    for i, (row, answer) in enumerate(zip(rows, said(sampled), strict=True)):
        expected, entropy, _ = naive_logprobs(model, row, answer, 1.0)
        real = sampled.mask[i]
        torch.testing.assert_close(sampled.logprobs[i][real].double(), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(sampled.entropy[i][real].double(), entropy, rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["Bert", "Mamba"])
def test_what_cannot_be_sampled_or_has_another_head_is_refused_in_words(architecture):
    model = of(architecture, **({"is_decoder": True} if architecture == "Bert" else {}))
    with pytest.raises(InputError, match="choose another|choose a policy"):
        language_model(model)
    with pytest.raises(InputError, match="no causal language model"):
        language_model(tiny_model().transformer)


def test_weights_that_are_nan_are_told_at_once():
    model = tiny_model()
    model.transformer.h[1].mlp.c_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(InputError, match="logits are no numbers"):
        language_model(model)


# Tokens


def test_rows_without_a_token_are_never_sampled_and_do_not_count():
    """Here 43 rows more than the tokenizer has tokens, all of them likely."""
    torch.manual_seed(1)
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.resize_token_embeddings(300)
    model.lm_head.weight.data[VOCABULARY:].normal_(std=1.0)
    assert (drawn(model)[0].tokens >= VOCABULARY).sum() > 50
    settings = GenerationSettings(max_new_tokens=20, batch_size=8)
    answers = answer_prompts(model, tokenizer, PROMPTS, settings, CPU, seed=0)
    assert all(token < VOCABULARY for answer in answers for token in answer.tokens)
    only_tokens_of(tokenizer, model)
    sampled, episodes = drawn(model)
    assert (sampled.tokens < VOCABULARY).all() and sampled.entropy[sampled.mask].isfinite().all()
    assert log_ratio(model, sampled, episodes).abs().max() < 1e-4


def test_the_model_may_name_several_tokens_that_end_an_answer():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    assert end_ids(tokenizer, model) == [tokenizer.eos_token_id]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    # A configuration's default may be a word of this tokenizer, which ends nothing.
    model.config.eos_token_id, model.generation_config.eos_token_id = 7, [turn, tokenizer.eos_token_id]
    assert end_ids(tokenizer, model) == [tokenizer.eos_token_id, turn]
    ends = [5, 60, 61, *range(200, 230)]
    sampled, _ = drawn(model, eos=ends)
    for answer, ended in zip(said(sampled), sampled.ended, strict=True):
        stops = [token in ends for token in answer]
        assert not any(stops[:-1]) and stops[-1] == ended
    assert len({answer[-1] for answer in said(sampled)}) > 3
