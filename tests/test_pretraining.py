"""The small GPT-2 made here: tokenizer, training, resuming, cache."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.runs import pretraining
from rlhf_utils.runs.pretraining import cached_base, train_base, train_tokenizer
from rlhf_utils.settings.sections import BaseSettings
from rlhf_utils.toyworld.corpus import corpus

SETTINGS = BaseSettings(
    layers=1, heads=2, width=32, vocabulary=400, context=64, block_tokens=32, batch_size=4, steps=12, documents=30
)


@pytest.fixture(scope="module")
def texts():
    return corpus(SETTINGS.documents, seed=0)


def weights(folder):
    # Copies: loaded weights are mapped from the file, and one test damages the file.
    return {name: value.clone() for name, value in AutoModelForCausalLM.from_pretrained(folder).state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_any_text_survives_the_tokenizer(texts, tmp_path):
    tokenizer = train_tokenizer(texts, 400, context=64)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    samples = ["How do I clean my sofa?", "  two  spaces , and .", "ünï 日本 😀", "\x00\x1b[31m\r\n\t", "don't <b>"]
    for made in (tokenizer, loaded):
        assert [made.decode(made(text)["input_ids"]) for text in samples] == samples
        assert made.eos_token == made.bos_token == made.pad_token == "<|endoftext|>"
        assert made.model_max_length == 64
        assert len(made) == 400
    assert tokenizer(samples)["input_ids"] == loaded(samples)["input_ids"]


def test_a_model_is_trained_and_loads_with_from_pretrained_alone(texts, tmp_path):
    seen = []
    result = train_base(texts, SETTINGS, 0, tmp_path / "base", progress=lambda *entry: seen.append(entry))
    assert result["steps"] == 12 and result["tokens"] == 12 * 4 * 32
    assert result["final_loss"] == pytest.approx(seen[-1][2])
    assert [step for step, _, _ in seen] == list(range(1, 13)) and {total for _, total, _ in seen} == {12}
    assert seen[-1][2] < seen[0][2] - 0.05
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = model.config
    end = AutoTokenizer.from_pretrained(tmp_path / "base").eos_token_id
    assert config.bos_token_id == config.eos_token_id == config.pad_token_id == end
    assert model.lm_head.weight is model.transformer.wte.weight
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    assert config.activation_function == "gelu_pytorch_tanh"
    assert (tmp_path / "base" / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_an_interrupted_training_goes_on_to_the_same_weights(texts, tmp_path):
    train_base(texts, SETTINGS, 0, tmp_path / "straight")

    def interrupt(step, steps, loss):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base(texts, SETTINGS, 0, tmp_path / "resumed", progress=interrupt)
    assert not (tmp_path / "resumed").exists()
    # A checkpoint that was cut off while it was written: newest, and without its marker.
    (tmp_path / ".resumed.work" / "checkpoint-6").mkdir()
    steps = []
    train_base(texts, SETTINGS, 0, tmp_path / "resumed", progress=lambda step, *_: steps.append(step))
    assert steps[0] == 5
    assert same(weights(tmp_path / "straight"), weights(tmp_path / "resumed"))


def test_checkpoints_of_another_training_are_not_used(texts, tmp_path):
    def interrupt(step, steps, loss):
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_base(texts, SETTINGS, 0, tmp_path / "base", progress=interrupt)
    steps = []
    train_base(texts, SETTINGS, 1, tmp_path / "base", progress=lambda step, *_: steps.append(step))
    assert steps[0] == 1


def test_too_little_text_is_refused(tmp_path):
    for texts in ([], ["", "  "], ["a few words only"]):
        with pytest.raises(InputError, match="text"):
            train_base(texts, SETTINGS, 0, tmp_path / "base")
        assert not (tmp_path / "base").exists()
    with pytest.raises(InputError, match="block_tokens"):
        train_base(["word " * 5000], SETTINGS.model_copy(update={"block_tokens": 128}), 0, tmp_path / "base")


def test_any_real_text_will_do(tmp_path):
    texts = ["\n\nHuman: naïve <b>HTML</b> \x1b[1m?\n\nAssistant: 😀 yes & no.", "日本語 " * 30] * 40
    assert train_base(texts, SETTINGS, 0, tmp_path / "base")["steps"] == 12


def test_the_cache_is_keyed_by_content_and_repairs_itself(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    made = []
    train = pretraining.train_base
    monkeypatch.setattr(pretraining, "train_base", lambda *a: made.append(1) or train(*a))
    folder = cached_base(texts, SETTINGS, 0)
    assert folder == cached_base(list(texts), SETTINGS, 0) and folder.is_relative_to(tmp_path) and len(made) == 1
    others = {
        cached_base(texts, SETTINGS, 1),
        cached_base(texts[:-1], SETTINGS, 0),
        cached_base([texts[0] + texts[1], *texts[2:]], SETTINGS, 0),
        cached_base(texts, SETTINGS.model_copy(update={"steps": 3}), 0),
    }
    assert len(others | {folder}) == 5 and len(made) == 5
    before = weights(folder)
    (folder / "model.safetensors").write_bytes(b"damaged")
    assert cached_base(texts, SETTINGS, 0) == folder and len(made) == 6
    assert same(weights(folder), before)
    (folder / "base.json").write_text("{")
    cached_base(texts, SETTINGS, 0)
    assert len(made) == 7


def test_two_callers_at_once_train_once(texts, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    made = []
    train = pretraining.train_base
    monkeypatch.setattr(pretraining, "train_base", lambda *a: made.append(1) or train(*a))
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(lambda _: cached_base(texts, SETTINGS, 0), range(2)))
    assert folders[0] == folders[1] and len(made) == 1


def test_the_module_imports_without_the_libraries():
    code = "import sys, rlhf_utils.runs.pretraining; print({'torch', 'transformers', 'tokenizers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
