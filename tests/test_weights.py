"""No model runs with a weight that was not loaded, and no code runs while weights are read."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from architectures import save_encoder, save_policy
from safetensors.torch import load_file, save_file
from tiny import CPU, adapted, save_tiny, tiny_tokenizer, token_rows

from rlhf_utils.models.loading import (
    SHAPES_ONLY,
    load_classifier,
    load_policy,
    load_policy_4bit,
    load_reward_model,
    load_tokenizer,
    save_model,
)
from rlhf_utils.platforms.errors import InputError

TOKENS = torch.tensor(token_rows((20, 20), seed=3))


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture(scope="module")
def reward(policy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    save_model(load_reward_model(policy, CPU, fresh_head=True), tiny_tokenizer(), folder)
    return folder


def changed(source: Path, folder: Path, change) -> Path:
    """A copy of the model in `source` whose weights, as a dictionary, went through `change`."""
    shutil.copytree(source, folder)
    file = folder / "model.safetensors"
    weights = {name: tensor.contiguous() for name, tensor in change(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **settings) -> Path:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | settings))
    return folder


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(TOKENS).logits


def test_names_without_the_trunks_prefix_are_found(policy, reward, tmp_path):
    for source, load in ((policy, load_policy), (reward, load_reward_model)):
        bare = changed(source, tmp_path / source.name, lambda w: {n.removeprefix("transformer."): w[n] for n in w})
        load(bare, SHAPES_ONLY)
        assert torch.equal(logits(load(bare, CPU)), logits(load(source, CPU)))


def test_buffers_of_old_versions_and_other_heads_do_no_harm(policy, tmp_path):
    others = {
        "transformer.h.0.attn.bias": torch.ones(1, 1, 96, 96), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
        "v_head.summary.weight": torch.ones(1, 32), "score.weight": torch.ones(1, 32), "pooler.bias": torch.ones(2),
    }  # fmt: skip
    folder = changed(policy, tmp_path / "extras", lambda weights: {**others, **weights})
    assert torch.equal(logits(load_policy(folder, CPU)), logits(load_policy(policy, CPU)))
    head = {"lm_head.weight": torch.ones(257, 32)}
    load_reward_model(changed(policy, tmp_path / "lm", lambda weights: {**others, **head, **weights}), CPU)


def without(part):
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


MISFITS = {
    "names of another model": (
        lambda w: {f"blocks.{name[12:]}": t for name, t in without("wte")(w).items()}, {}, "missing.*not of.*blocks"),
    "a layer that is missing": (without("h.1."), {}, "missing transformer.h.1"),
    "a bias that it has no place for": (
        lambda w: {**w, "transformer.h.0.mlp.gate.bias": torch.ones(3)}, {}, "not of this model .*mlp.gate.bias"),
    "another shape": (lambda w: w, {"n_positions": 64}, r"wpe.weight has shape \[96, 32\] in the file"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_named(policy, reward, tmp_path, case):
    change, settings, words = MISFITS[case]
    for source, load, where in ((policy, load_policy, CPU), (reward, load_reward_model, SHAPES_ONLY)):
        folder = configured(changed(source, tmp_path / source.name, change), **settings)
        with pytest.raises(InputError, match=words) as told:
            load(folder, where)
        assert str(folder) in str(told.value)


def test_a_head_that_nobody_trained_gives_no_scores(policy, tmp_path):
    encoder = save_encoder(tmp_path / "encoder", "bert")
    headless = changed(encoder, tmp_path / "headless", without("classifier"))
    for folder in (policy, headless):
        for load in (load_reward_model, load_classifier):
            for where in (CPU, SHAPES_ONLY):
                with pytest.raises(InputError, match="has no trained head.*would be random"):
                    load(folder, where)
    assert load_reward_model(policy, CPU, fresh_head=True).score.weight.shape == (1, 32)
    # Llama's head is not its embedding, so that it has to be in the file.
    trunk = changed(save_policy(tmp_path / "llama", "llama"), tmp_path / "trunk", without("lm_head"))
    with pytest.raises(InputError, match="is no language model.*lm_head"):
        load_policy(trunk, CPU)


# Adapters


def adapter(folder: Path, base: Path) -> Path:
    adapted(load_policy(base, CPU)).save_pretrained(folder)
    return folder


def rewritten(folder: Path, change=lambda w: w, **settings) -> Path:
    about = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(about | settings))
    save_file(change(load_file(folder / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    "change, settings, words",
    [
        (lambda w: dict([*w.items()][1:]), {}, "does not fit the model.*missing"),
        (lambda w: {**w, "base_model.model.transformer.h.7.attn.c_attn.lora_A.weight": torch.ones(2, 32)}, {},
         "does not fit the model.*not of it"),
        (lambda w: w, {"task_type": "SEQ_CLS"}, r"adapter of another task \(SEQ_CLS\)"),
        (lambda w: w, {"base_model_name_or_path": "/kaggle/working/merged"},
         "belongs to the base /kaggle/working/merged, which is not there.*models.adapter_base="),
        (lambda w: w, {"base_model_name_or_path": None}, "does not say of which model.*models.adapter_base="),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_used_is_told(policy, tmp_path, change, settings, words):
    folder = rewritten(adapter(tmp_path / "adapter", policy), change, **settings)
    with pytest.raises(InputError, match=words) as told:
        load_policy(folder, CPU)
    assert str(folder) in str(told.value)


def test_the_base_of_an_adapter_can_be_said_and_prompt_tuning_is_refused(policy, tmp_path):
    from peft import PromptTuningConfig, get_peft_model

    folder = adapter(tmp_path / "adapter", policy)
    expected = logits(load_policy(folder, CPU))
    torch.testing.assert_close(expected, logits(adapted(load_policy(policy, CPU))), rtol=0, atol=1e-4)
    with pytest.raises(InputError, match=r"adapter of another task \(CAUSAL_LM\)"):
        load_reward_model(folder, CPU)
    rewritten(folder, base_model_name_or_path="/kaggle/working/merged")
    assert torch.equal(logits(load_policy(folder, CPU, base=str(policy))), expected)
    assert load_tokenizer(folder, str(policy)).get_vocab() == tiny_tokenizer().get_vocab()
    tuned = get_peft_model(load_policy(policy, CPU), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    tuned.save_pretrained(tmp_path / "tuned")
    with pytest.raises(InputError, match="is a PROMPT_TUNING adapter; only LoRA"):
        load_policy(tmp_path / "tuned", CPU)


def test_what_is_stored_in_4_bits_is_refused_and_an_adapter_cannot_be(policy, tmp_path):
    with pytest.raises(InputError, match="is an adapter, and 4-bit weights need a whole model"):
        load_policy_4bit(adapter(tmp_path / "first", policy), CPU)
    shutil.copytree(policy, tmp_path / "small")
    configured(tmp_path / "small", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(InputError, match="is stored quantized.*name the full model"):
        load_policy(tmp_path / "small", CPU)


# Pickled weights


class Evil:
    """What a pickle can do: this one would leave a file behind."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def pickled(source: Path, folder: Path, **more) -> Path:
    """A copy of `source` whose weights are in a pickled file."""
    shutil.copytree(source, folder)
    (file,) = folder.glob("*.safetensors")
    weights = load_file(file)
    file.unlink()
    name = "adapter_model.bin" if file.name.startswith("adapter") else "pytorch_model.bin"
    torch.save({**weights, **more}, folder / name)
    return folder


def test_pickled_weights_are_read_as_tensors(policy, reward, tmp_path):
    single = pickled(policy, tmp_path / "single")
    assert torch.equal(logits(load_policy(single, CPU)), logits(load_policy(policy, CPU)))
    load_reward_model(pickled(reward, tmp_path / "reward"), CPU)
    lora = adapter(tmp_path / "lora", policy)
    assert torch.equal(logits(load_policy(pickled(lora, tmp_path / "old"), CPU)), logits(load_policy(lora, CPU)))


def test_files_that_are_missing_are_named(policy, tmp_path):
    (adapter(tmp_path / "adapter", policy) / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="is an adapter without weights"):
        load_policy(tmp_path / "adapter", CPU)
    load_policy(policy, CPU).save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert torch.equal(logits(load_policy(tmp_path / "shards", CPU)), logits(load_policy(policy, CPU)))
    lost = sorted((tmp_path / "shards").glob("model-*"))[1]
    lost.unlink()
    for where in (CPU, SHAPES_ONLY):
        with pytest.raises(InputError, match=f"cannot load .*{lost.name}"):
            load_policy(tmp_path / "shards", where)


def test_code_in_a_pickled_file_is_never_run(policy, reward, tmp_path):
    evil = Evil(trace := tmp_path / "trace")
    lora = adapter(tmp_path / "lora", policy)
    sources = {load_policy: policy, load_policy_4bit: policy, load_reward_model: reward, load_classifier: reward}
    for i, (load, source) in enumerate([*sources.items(), (load_policy, lora)]):
        folder = pickled(source, tmp_path / str(i), evil=evil)
        for where in (CPU, SHAPES_ONLY) if load is load_policy else (CPU,):
            with pytest.raises(InputError, match="cannot load .*never run"):
                load(folder, where)
        assert not trace.exists()
    torch.load(tmp_path / "0" / "pytorch_model.bin", weights_only=False)
    assert trace.exists(), "the file would have run it"
    shutil.copytree(policy, tmp_path / "both")
    torch.save({"evil": evil}, tmp_path / "both" / "pytorch_model.bin")
    assert torch.equal(logits(load_policy(tmp_path / "both", CPU)), logits(load_policy(policy, CPU)))
