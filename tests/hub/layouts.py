"""What the loopback hub serves: repositories laid out as the real ones, with tiny random weights and made-up rows."""

import copy
import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas
import torch
from safetensors.torch import save
from tiny import adapted
from tokenizers import ByteLevelBPETokenizer
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from hub.server import LoopbackHub
from rlhf_utils.toyworld import WORLDS

ROWS = {"train": 700, "test": 90}
Files = dict[str, bytes]


def populate(hub: LoopbackHub) -> LoopbackHub:
    """Put every repository that the recipes name into `hub`, and those that tests are about."""
    gpt2 = gpt2_files()
    for name in ("gpt2", "gpt2-medium"):
        hub.add("model", name, gpt2)
    imdb = hub.add("model", "lvwerra/gpt2-imdb", tuned_files(pickled=True))
    imdb.commit(tuned_files(pickled=True) | tuned_files(pickled=False), "refs/pr/1")
    hub.add("model", "lvwerra/distilbert-imdb", classifier_files())
    hub.add("model", "sentence-transformers/all-MiniLM-L6-v2", classifier_files())  # only looked up
    hub.add("model", "sharded/gpt2", sharded_files(gpt2))
    hub.add("model", "nested/gpt2", {"README.md": b"", **{f"small/{name}": content for name, content in gpt2.items()}})
    hub.add("model", "only/config", {"config.json": gpt2["config.json"], "tf_model.h5": b"0"})
    hub.add("model", "only/readme", {"README.md": b"nothing"})
    for name, base in {"adapters/gpt2": "gpt2", "adapters/lost": "me/typo"}.items():
        hub.add("model", name, adapter_files(base))
    versions = hub.add("model", "several/gpt2", gpt2)
    versions.commit(gpt2_files(seed=7), "v2")
    for name, about in {"gated/gpt2": {"gated": True}, "private/gpt2": {"private": True}}.items():
        hub.add("model", name, gpt2, **about)
    hub.add("model", "behind/proxy", gpt2, behind_proxy=True)
    _datasets(hub)
    return hub


def _datasets(hub: LoopbackHub) -> None:
    made = {name: {s: list(world.rows(s, n, 0, 0.05)) for s, n in ROWS.items()} for name, world in WORLDS.items()}
    pairs = {"data/train-00000-of-00001-1e5f57d9a52be3c7.parquet": parquet(made["instruct"]["train"])}
    hub.add("dataset", "Dahoas/synthetic-instruct-gptj-pairwise", {"README.md": b"", **pairs})
    both = {f"data/{split}-00000-of-00001.parquet": parquet(made["helpful_harmless"][split]) for split in ROWS}
    hub.add("dataset", "yitingxie/rlhf-reward-datasets", both)
    reviews = {f"plain_text/{split}-00000-of-00001.parquet": parquet(made["imdb"][split]) for split in ROWS}
    unlabelled = [{**row, "label": -1} for row in made["imdb"]["test"]]
    reviews["plain_text/unsupervised-00000-of-00001.parquet"] = parquet(unlabelled)
    hub.add("dataset", "stanfordnlp/imdb", {"README.md": _IMDB_CARD, **reviews})
    votes = {
        f"{area}/{split}.json": lines(made["eli5"][source])
        for area in ("explainlikeimfive", "askacademia")
        for split, source in (("train", "train"), ("validation", "test"), ("test", "test"))
    }
    hub.add("dataset", "stanfordnlp/SHP", {"README.md": b"---\ntask_categories: [text-generation]\n---\n", **votes})
    plain = {"train.jsonl": lines(made["instruct"]["train"])}
    versions = hub.add("dataset", "several/pairs", {"train.jsonl": lines(made["instruct"]["train"][:300])})
    versions.revisions["v1"] = versions.revisions["main"]
    versions.commit(plain)
    card = b"---\nconfigs:\n- {config_name: one, data_files: one/*}\n- {config_name: two, data_files: two/*}\n---\n"
    hub.add("dataset", "several/configurations", {"README.md": card, "one/a.jsonl": b"{}", "two/b.jsonl": b"{}"})
    hub.add("dataset", "several/empty", {"README.md": b"soon", ".gitattributes": b""})
    hub.add("dataset", "gated/pairs", plain, gated=True)


_IMDB_CARD = b"""---
dataset_info:
  config_name: plain_text
  features:
  - {name: text, dtype: string}
  - name: label
    dtype: {class_label: {names: {'0': neg, '1': pos}}}
configs:
- config_name: plain_text
  default: true
  data_files:
  - {split: train, path: plain_text/train-*}
  - {split: test, path: plain_text/test-*}
  - {split: unsupervised, path: plain_text/unsupervised-*}
---
"""


def parquet(rows: list[dict]) -> bytes:
    buffer = io.BytesIO()
    pandas.DataFrame(rows).to_parquet(buffer, index=False)
    return buffer.getvalue()


def lines(rows: list[dict]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def in_folder(write: Callable[[Path], object]) -> Files:
    """What `write` puts into a folder, by the names there."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name))
        files = sorted(path for path in Path(name).rglob("*") if path.is_file())
        return {path.relative_to(name).as_posix(): path.read_bytes() for path in files}


@cache
def vocabulary() -> Files:
    """GPT-2's kind of tokenizer: vocab.json, merges.txt, and <|endoftext|> at the end of it."""
    texts = [
        str(value) for world in WORLDS.values() for row in world.rows("train", 60, 0, 0.0) for value in row.values()
    ]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=500, special_tokens=[], show_progress=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    files = in_folder(lambda folder: tokenizer.save_model(str(folder)))
    entries = json.loads(files["vocab.json"])
    entries["<|endoftext|>"] = len(entries)
    return {"vocab.json": json.dumps(entries).encode(), "merges.txt": files["merges.txt"]}


@cache
def _model(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    size = len(json.loads(vocabulary()["vocab.json"]))
    ends = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    return GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=1, n_head=2, **ends))


def gpt2_files(seed: int = 0) -> Files:
    """`gpt2`: names without `transformer.`, the mask among the weights, one file of weights per framework."""
    model = _model(seed)
    state = {name: value.contiguous() for name, value in model.transformer.state_dict().items()}
    state["h.0.attn.bias"] = torch.tril(torch.ones(1, 1, 1024, 1024))
    config = model.config.to_diff_dict() | {"architectures": ["GPT2LMHeadModel"]}
    return {
        **vocabulary(),
        **dict.fromkeys(("README.md", "tf_model.h5", "flax_model.msgpack", "64.tflite", "onnx/config.json"), b"{}"),
        "config.json": json.dumps(config).encode(),
        "generation_config.json": json.dumps({"bos_token_id": 1, "eos_token_id": config["eos_token_id"]}).encode(),
        "tokenizer_config.json": b'{"model_max_length": 1024}',
        "model.safetensors": save(state, metadata={"format": "pt"}),
        "pytorch_model.bin": in_pickle(state),
    }


def in_pickle(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def tuned_files(pickled: bool) -> Files:
    """`lvwerra/gpt2-imdb`: pytorch_model.bin alone on its main branch, and no tokenizer.json."""
    model, special = _model(2), {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "unk_token")}
    state = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    config = model.config.to_diff_dict() | {"architectures": ["GPT2LMHeadModel"]}
    kind = "pytorch_model.bin" if pickled else "model.safetensors"
    return {
        **vocabulary(),
        kind: in_pickle(state) if pickled else save(state, {"format": "pt"}),
        "config.json": json.dumps(config).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
        "tokenizer_config.json": b'{"model_max_length": 1024}',
        "training_args.bin": b"pickled",
    }


def classifier_files() -> Files:
    """`lvwerra/distilbert-imdb`: a DistilBERT with two labels, pytorch_model.bin, vocab.txt."""
    texts = [row["text"].lower().replace(".", " .") for row in WORLDS["imdb"].rows("train", 200, 0, 0.0)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in texts for word in text.split()})]
    torch.manual_seed(3)
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = DistilBertConfig(vocab_size=len(vocab), dim=32, hidden_dim=64, n_layers=1, n_heads=2, id2label=labels)
    model = DistilBertForSequenceClassification(config)
    about = model.config.to_diff_dict() | {"architectures": ["DistilBertForSequenceClassification"]}
    return {
        "config.json": json.dumps(about).encode(),
        "pytorch_model.bin": in_pickle(model.state_dict()),
        "vocab.txt": "\n".join(vocab).encode(),
        "tokenizer_config.json": b'{"do_lower_case": true, "model_max_length": 512}',
        "special_tokens_map.json": b"{}",
        "training_args.bin": b"pickled",
    }


def sharded_files(files: Files) -> Files:
    """The same model with its weights in two files and an index."""
    from safetensors.torch import load

    state = load(files["model.safetensors"])
    held = {f"model-0000{i + 1}-of-00002.safetensors": sorted(state)[i::2] for i in range(2)}
    index = {"metadata": {}, "weight_map": {name: file for file, names in held.items() for name in names}}
    weights = {file: save({name: state[name] for name in names}, {"format": "pt"}) for file, names in held.items()}
    kept = {name: content for name, content in files.items() if name not in ("model.safetensors", "pytorch_model.bin")}
    return {**kept, **weights, "model.safetensors.index.json": json.dumps(index).encode()}


@cache
def adapter_files(base: str) -> Files:
    """A LoRA adapter on `gpt2`, which says of which model it is."""
    files = in_folder(adapted(copy.deepcopy(_model(0))).save_pretrained)
    about = json.loads(files["adapter_config.json"]) | {"base_model_name_or_path": base}
    return files | {"adapter_config.json": json.dumps(about).encode()}
