"""Tiny random models of the architectures that people use, each with a tokenizer of its kind, made in milliseconds."""

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
_BLOCKS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
_MODERN = {**_BLOCKS, "intermediate_size": 64, "attention_dropout": 0.1}
_GROUPED = {**_MODERN, "num_key_value_heads": 1}
_OLD = {"hidden_size": WIDTH, "hidden_dropout": 0.1, "attention_dropout": 0.1}
# Of each policy its configuration and its kind of tokenizer.
POLICIES = {
    "gpt2": ({"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}, "bytes"),
    "llama": (_MODERN, "metaspace, bos"),
    "qwen3": ({**_GROUPED, "head_dim": 16}, "bytes, pad"),
    "gpt_neox": (_MODERN, "bytes"),
    "opt": ({**_BLOCKS, "ffn_dim": 64, "dropout": 0.1, "word_embed_proj_dim": WIDTH}, "bytes, bos, pad"),
    "gpt_neo": ({"hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                 "max_position_embeddings": CONTEXT, "resid_dropout": 0.1, "embed_dropout": 0.1,
                 "attention_dropout": 0.1}, "bytes"),
    "gemma2": ({**_GROUPED, "head_dim": 16}, "metaspace, bos, pad"),
    "bloom": ({**_OLD, "n_layer": 2, "n_head": 2}, "bytes, pad"),
    "falcon": ({**_OLD, "num_hidden_layers": 2, "num_attention_heads": 2}, "bytes"),
}  # fmt: skip
_ENCODER = {**_BLOCKS, "intermediate_size": 64, "hidden_dropout_prob": 0.1, "type_vocab_size": 1}
ENCODERS = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "max_position_embeddings": CONTEXT + 2},
    "distilbert": {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": CONTEXT},
    "deberta-v2": {**_ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "type_vocab_size": 0},
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
    how = {"special_tokens": special, "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(TEXTS * 20, trainers.BpeTrainer(vocab_size=700, **how))
    if "bos" in kind or kind == "encoder":
        ids = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
        around = "<s> $A </s>" if kind == "encoder" else "<s> $A"
        made.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    names = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    if "pad" in kind or kind == "encoder":
        names["pad_token"] = "<pad>"
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def save_policy(folder: Path, name: str) -> Path:
    """The policy called `name`, with random weights wide enough for words to matter."""
    settings, kind = POLICIES[name]
    return _save(folder, AutoModelForCausalLM, name, tokenizer_of(kind), settings)


def save_encoder(folder: Path, name: str, labels: int = 1) -> Path:
    """The sequence classifier called `name` with a head of `labels` outputs, as if it had been trained."""
    settings = {**ENCODERS[name], "num_labels": labels}
    return _save(folder, AutoModelForSequenceClassification, name, tokenizer_of("encoder"), settings)


def _save(folder: Path, kind, name: str, tokenizer, settings: dict) -> Path:
    ids = {key: getattr(tokenizer, key) for key in ("eos_token_id", "bos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = kind.from_config(transformers.AutoConfig.for_model(name, vocab_size=len(tokenizer), **ids, **settings))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
