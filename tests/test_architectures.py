"""Policies and reward models of other families than GPT-2: loaded, adapted, sampled, scored and trained by the code
that trains GPT-2."""

import re

import pytest
import torch
from architectures import CONTEXT, ENCODERS, POLICIES, save_encoder, save_policy, tokenizer_of
from tiny import CPU, PROMPTS, count_letter, one_thread  # noqa: F401
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.loading import load_config, load_policy, load_reward_model, load_tokenizer, save_model
from rlhf_utils.models.lora import lora_modules
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.ppo import PPOConfig, PPOTrainer
from rlhf_utils.rewards import load_reward
from rlhf_utils.rewards.reward_model import positions
from rlhf_utils.settings.sections import LoraSettings, QloraSettings
from rlhf_utils.settings.template import TEMPLATE

RESPONSES = ["Keep it dry.", "", "no", "a very good one, and a boring film", "x", "y y y", "and"]
TEXTS = [TEMPLATE.text(prompt, response) for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
NAMED = ["gpt2", "llama", "qwen3", "opt"]


@pytest.fixture(scope="module", params=list(POLICIES))
def policy(request, tmp_path_factory):
    return request.param, save_policy(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", params=list(ENCODERS))
def encoder(request, tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp(request.param), request.param)


def test_the_recipes_places_are_the_architectures_own_layers(policy):
    name, folder = policy
    config = load_config(folder)
    whole, transposed = lora_modules(LoraSettings(modules=("all-linear",)), config)
    weights = [name for name, weight in load_policy(folder, CPU).named_parameters() if weight.dim() == 2]
    assert set(whole) == {found[1] for name in weights if (found := re.search(r"\.\d+\.(.+)\.weight$", name))}
    assert lora_modules(QloraSettings(), config) == (whole, transposed) and transposed == (name == "gpt2")
    parts = [lora_modules(LoraSettings(modules=(place,)), config)[0] for place in ("attention", "mlp_in", "mlp_out")]
    assert sorted(sum(parts, [])) == whole and all(parts) and all("att" in layer for layer in parts[0])
    assert lora_modules(LoraSettings(modules=(whole[0],)), config)[0] == [whole[0]]
    with pytest.raises(InputError, match=f"no 'c_nothing'.*{whole[0]}"):
        lora_modules(LoraSettings(modules=("attention", "c_nothing")), config)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_ppo_trains_it_and_leaves_a_model_that_loads_alone(policy, tmp_path, method):
    """The trainer itself asserts that KL is 0 and the ratio 1 before the first step."""
    name, folder = policy
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
        if name not in NAMED:
            pytest.skip("an adapter is enough for these")
    how = {"rollout_batch_size": 4, "minibatch_size": 4, "epochs": 1, "max_new_tokens": 8, "precision": "fp32"}
    config = PPOConfig(method=method, updates=1, learning_rate=1e-3, **how)
    trainer = PPOTrainer(folder, load_tokenizer(folder), count_letter("e"), PROMPTS, config, tmp_path)
    (line,) = trainer.train()
    assert abs(line["kl"]) < 1e-3
    saved = trainer.store.policies()[-1] / "policy"
    model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    before = load_policy(folder, CPU).state_dict()
    assert any(not torch.equal(weight, before[key]) for key, weight in model.state_dict().items()), "nothing was learnt"


@torch.no_grad()
def test_a_reward_model_of_it_gives_a_text_one_score(policy, tmp_path):
    _, folder = policy
    tokenizer = load_tokenizer(folder)
    torch.manual_seed(0)
    model = load_reward_model(folder, CPU, fresh_head=True)
    model.score.weight.data.normal_()
    save_model(model, tokenizer, tmp_path)
    reward = load_reward(tmp_path, CPU)
    together = reward(PROMPTS, RESPONSES)
    alone = torch.cat([reward([p], [r]) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert together.std() > 0.05
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    expected = [theirs(torch.tensor(start_tokens(tokenizer, [text]))).logits[0, 0] for text in TEXTS]
    torch.testing.assert_close(together, torch.stack(expected), rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_encoder_scores_with_its_own_tokenizer_mask_and_head(encoder):
    reward, model = load_reward(encoder, CPU), AutoModelForSequenceClassification.from_pretrained(encoder).eval()
    expected = torch.cat([model(**reward.tokenizer(text, return_tensors="pt")).logits[:, 0] for text in TEXTS])
    assert expected.std() > 0.01 and positions(reward.model) == CONTEXT
    torch.testing.assert_close(reward(PROMPTS, RESPONSES), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", ["encoder", "causal"])
def test_a_score_is_the_same_wherever_it_is_asked_for(folder, tmp_path):
    """Inside the autocast of a trainer in 16 bit, and with a trunk in 16 bit: the head is computed in fp32."""
    if folder == "encoder":
        save_encoder(tmp_path, "bert")
    else:
        model = load_reward_model(save_policy(tmp_path / "policy", "llama"), CPU, fresh_head=True)
        model.score.weight.data.normal_()
        save_model(model, tokenizer_of("metaspace, bos"), tmp_path)
    for device in (CPU, Device("cpu", "16 bit", "bf16", 2**33)):
        reward = load_reward(tmp_path, device)
        outside = reward(PROMPTS, RESPONSES)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(reward(PROMPTS, RESPONSES), outside)
        assert not torch.equal(outside, outside.bfloat16().float()), "rounded to 16 bits"


def test_a_critic_that_cannot_be_is_refused_before_anything_is_loaded(tmp_path):
    policy, encoder = save_policy(tmp_path / "policy", "gpt2"), save_encoder(tmp_path / "encoder", "bert")
    other = save_policy(tmp_path / "other", "llama")
    save_model(load_reward_model(other, CPU, fresh_head=True), load_tokenizer(other), tmp_path / "reward")
    for critic, words in ((encoder, "reads a text as a whole"), (tmp_path / "reward", "another vocabulary")):
        config = PPOConfig(critic="separate", rollout_batch_size=4, minibatch_size=4)
        with pytest.raises(InputError, match=f"critic separate.*{words}.*critic=shared"):
            PPOTrainer(policy, load_tokenizer(policy), count_letter("e"), PROMPTS, config, tmp_path, critic=critic)
