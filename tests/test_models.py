"""Loading, adapting, merging and saving models."""

import json

import pytest
import torch
from tiny import CPU, adapted, one_thread, save_tiny, tiny_model, token_rows  # noqa: F401
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_utils.models.loading import (
    copy_model,
    fp32_trainables,
    load_policy,
    load_policy_4bit,
    load_reward_model,
    load_tokenizer,
    save_model,
)
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.settings.sections import LoraSettings

TOKENS = torch.tensor(token_rows((24, 24, 24), seed=4))
LORA = LoraSettings(rank=4, alpha=8, modules=("c_attn", "c_proj", "c_fc"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"))


def dropouts(model: torch.nn.Module) -> set[float]:
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    return model(TOKENS).logits.float()


def test_a_policy_has_no_dropout_unless_it_is_asked_for_and_is_fp32(folder):
    model = load_policy(folder, CPU)
    assert dropouts(model) == {0.0}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.train()
    assert torch.equal(outputs(model), outputs(model)), "the training mode must not change what PPO compares"
    assert dropouts(load_policy(folder, CPU, dropout=True)) == {0.1}


def test_the_fused_gelu_computes_what_gelu_new_does(folder):
    ours, theirs = load_policy(folder, CPU).eval(), GPT2LMHeadModel.from_pretrained(folder).eval()
    assert [m.config.activation_function for m in (ours, theirs)] == ["gelu_pytorch_tanh", "gelu_new"]
    torch.testing.assert_close(outputs(ours), outputs(theirs), rtol=0, atol=1e-5)


def test_a_tokenizer_without_padding_pads_with_its_eos_and_one_without_eos_is_refused(folder, tmp_path):
    tokenizer, config = load_tokenizer(folder), json.loads((folder / "config.json").read_text())

    def saved(**about):
        tokenizer.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({**config, **about}))
        return tmp_path

    tokenizer.pad_token = None
    assert load_tokenizer(saved()).pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token.*add an eos_token"):
        load_tokenizer(saved(eos_token_id=None))


def test_merging_a_reward_models_adapter_brings_its_head_along(folder, tmp_path):
    model = adapted(load_reward_model(folder, CPU, fresh_head=True), "SEQ_CLS")
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(99)
    merged = merge_adapter(load_reward_model(folder, CPU, fresh_head=True), tmp_path / "adapter").eval()
    save_model(merged, load_tokenizer(folder), tmp_path / "saved")
    again = GPT2ForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(outputs(again), outputs(model), rtol=0, atol=1e-5)


def test_a_4bit_model_trains_on_this_machine_also_after_an_evaluation(folder):
    pytest.importorskip("bitsandbytes")
    from peft import get_peft_model, prepare_model_for_kbit_training

    model = load_policy_4bit(folder, CPU)
    assert any(parameter.dtype == torch.uint8 for parameter in model.parameters()), "nothing is stored in 4 bits"
    # On a CPU with AVX512-BF16 an evaluation would repack the weights, and no training step follow.
    assert not any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())
    assert dropouts(model) == {0.0}
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    model = get_peft_model(model, lora_config(LORA, "CAUSAL_LM", model.config))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    fp32_trainables(model)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trainable} == {torch.float32}
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses = []
    for _ in range(3):
        outputs(model.eval())
        loss = model.train()(TOKENS, labels=TOKENS).loss
        loss.backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trainable)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_saved_folder_holds_safetensors_only_and_loads_by_itself(folder, tmp_path):
    save_model(tiny_model(seed=5), load_tokenizer(folder), tmp_path / "saved")
    (tmp_path / "saved" / "stage.json").write_text("{}")
    (tmp_path / "copy").mkdir()
    copy_model(tmp_path / "saved", tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"} and "stage.json" not in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    copied = GPT2LMHeadModel.from_pretrained(tmp_path / "copy").eval()
    torch.testing.assert_close(outputs(copied), outputs(tiny_model(seed=5)))


@pytest.mark.parametrize("source", ["nobody/nothing", "with blank", "/no/such/folder", "./nowhere", "~/nowhere-at-all"])
def test_a_model_that_is_not_there_is_an_input_error_that_says_what_to_do(source):
    """A folder is not looked for on the hub."""
    words = "is not a model folder" if source[0] in "/.~" else f"cannot load {source} from the Hugging Face hub"
    for load in (load_policy, load_reward_model):
        with pytest.raises(InputError, match=words):
            load(source, CPU)
