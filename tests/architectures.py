"""Tiny random models of the architectures that people use, each with a tokenizer of its kind, made in milliseconds."""

from __future__ import annotations

import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

TEXTS = [
    "Human: How do I store my bike?\n\nAssistant: Keep it dry, and cover it.",
    "a boring film, and a very good one",
]
WIDTH, CONTEXT = 32, 96
_MODERN = {
    "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "max_position_embeddings": CONTEXT, "attention_dropout": 0.1,
}  # fmt: skip
_GROUPED = {**_MODERN, "num_key_value_heads": 1}
_ENCODER = {
    **{key: value for key, value in _MODERN.items() if key != "attention_dropout"},
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
# Of each policy: its configuration, its kind of tokenizer, and the layers that `attention` and `mlp` mean.
POLICIES = {
    "gpt2": ({"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}, "bytes",
             ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    "llama": (_MODERN, "metaspace, bos", [*(f"self_attn.{x}_proj" for x in "qkvo"),
                                          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    "qwen2": (_GROUPED, "bytes, pad", [*(f"self_attn.{x}_proj" for x in "qkvo"),
                                       "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    "qwen3": ({**_GROUPED, "head_dim": 16}, "bytes, pad", [*(f"self_attn.{x}_proj" for x in "qkvo"),
                                                           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    "gpt_neox": (_MODERN, "bytes", ["attention.query_key_value", "attention.dense",
                                    "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
    "opt": ({"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "dropout": 0.1,
             "word_embed_proj_dim": WIDTH, "max_position_embeddings": CONTEXT}, "bytes, bos, pad",
            [*(f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")), "fc1", "fc2"]),
    "gpt_neo": ({"hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                 "max_position_embeddings": CONTEXT, "resid_dropout": 0.1, "embed_dropout": 0.1,
                 "attention_dropout": 0.1}, "bytes",
                [*(f"attn.attention.{x}_proj" for x in ("k", "v", "q", "out")), "mlp.c_fc", "mlp.c_proj"]),
    "gemma2": ({**_GROUPED, "head_dim": 16}, "metaspace, bos, pad",
               [*(f"self_attn.{x}_proj" for x in "qkvo"), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    "phi": ({**_MODERN, "resid_pdrop": 0.1, "embd_pdrop": 0.1}, "bytes",
            [*(f"self_attn.{x}" for x in ("q_proj", "k_proj", "v_proj", "dense")), "mlp.fc1", "mlp.fc2"]),
    "bloom": ({"hidden_size": WIDTH, "n_layer": 2, "n_head": 2, "hidden_dropout": 0.1, "attention_dropout": 0.1},
              "bytes, pad", ["self_attention.query_key_value", "self_attention.dense",
                             "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
    "falcon": ({"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout": 0.1,
                "attention_dropout": 0.1}, "bytes",
               ["self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]),
}  # fmt: skip
ENCODERS = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": CONTEXT + 2},
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": CONTEXT},
    "deberta-v2": {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "electra": {**_ENCODER, "embedding_size": WIDTH},
}


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """bytes, as of GPT-2, or metaspace, as SentencePiece's of Llama; with `bos` it puts one first, with `pad` padding
    is a token of its own; `encoder` puts one token before a text and one after it."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    if "metaspace" in kind:
        made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        alphabet = list(string.printable)
    else:
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS * 20,
        trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    around = "<s> $A </s>" if kind == "encoder" else "<s> $A"
    if "bos" in kind or kind == "encoder":
        ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    names = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    if "pad" in kind or kind == "encoder":
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def save_policy(folder: Path, name: str) -> Path:
    """The policy called `name`, with random weights wide enough for words to matter."""
    settings, kind, _ = POLICIES[name]
    tokenizer = tokenizer_of(kind)
    _save(folder, AutoModelForCausalLM, name, tokenizer, settings)
    return folder


def save_encoder(folder: Path, name: str, labels: int = 1) -> Path:
    """The sequence classifier called `name` with a head of `labels` outputs, as if it had been trained."""
    tokenizer = tokenizer_of("encoder")
    settings = {**ENCODERS[name], "num_labels": labels, "type_vocab_size": 1 if name != "deberta-v2" else 0}
    _save(folder, AutoModelForSequenceClassification, name, tokenizer, settings)
    return folder


def _save(folder: Path, kind, name: str, tokenizer, settings: dict) -> None:
    ids = {
        "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if name == "distilbert":
        settings = {key: value for key, value in settings.items() if key != "type_vocab_size"}
    torch.manual_seed(0)
    model = kind.from_config(transformers.AutoConfig.for_model(name, **ids, **settings))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
