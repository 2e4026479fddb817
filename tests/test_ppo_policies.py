"""What learns in PPO: the whole policy or an adapter on it, and a critic on the same trunk or its own."""

import pytest
import torch
from tiny import CPU, PROMPTS, one_thread, save_tiny, tiny_tokenizer, tiny_trainer, without_timing  # noqa: F401
from transformers import AutoModelForCausalLM

from rlhf_utils.models.loading import has_bitsandbytes, load_classifier, load_policy, load_reward_model, save_model
from rlhf_utils.platforms.files import content_hash, read_jsonl, write_json
from rlhf_utils.rewards import RewardModel
from rlhf_utils.rewards.reward_model import LABEL_FILE
from rlhf_utils.settings.sections import LoraSettings

ADAPTERS = ["lora", pytest.param("qlora", marks=pytest.mark.skipif(not has_bitsandbytes(), reason="no bitsandbytes"))]
LORA = LoraSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("policy"), eos_nats=3.0)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, policy):
    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(5)
    reward = RewardModel(load_reward_model(policy, CPU, fresh_head=True), tiny_tokenizer(), CPU, mean=0.5, std=2.0)
    save_model(reward.model, reward.tokenizer, folder)
    reward.save_scale(folder)
    return folder


def frozen_weights(trainer):
    return {name: p.clone() for name, p in trainer.actor.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_learns_the_rest_stays_and_a_plain_model_is_saved(policy, tmp_path, method):
    trainer = tiny_trainer(policy, tmp_path, method=method, lora=LORA, learning_rate=5e-3)
    before = frozen_weights(trainer)
    history = trainer.train()
    # The adapter starts as nothing, and switched off it is the reference.
    assert abs(history[0]["kl"]) < 1e-4 and history[-1]["kl_k3"] > 1e-3
    assert all(torch.equal(weight, before[name]) for name, weight in frozen_weights(trainer).items())
    learning = [name for name, p in trainer.actor.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("value_head") for name in learning) and len(learning) > 10
    saved = AutoModelForCausalLM.from_pretrained(trainer.store.policies()[-1] / "policy").eval()
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        found, expected = saved(tokens).logits, trainer.policy().eval()(tokens).logits
        assert (found - load_policy(policy, CPU).eval()(tokens).logits).abs().max() > 0.05
    if method == "lora":  # 4-bit weights differ from the fp32 ones by their rounding
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


KINDS = [{"method": "lora", "lora": LORA}, {"critic": "separate"}, {"kl_controller": "adaptive", "kl_horizon": 80}]
OTHERS = [{"method": "qlora", "lora": LORA}, {"method": "lora", "lora": LORA, "precision": "bf16"}]


@pytest.mark.parametrize("how", [*KINDS[:2], *OTHERS])
def test_every_kind_resumes_exactly(policy, reward_model, tmp_path, how):
    if how.get("method") == "qlora" and not has_bitsandbytes():
        pytest.skip("no bitsandbytes")

    def trainer(name, on_update=None):
        critic = reward_model if how.get("critic") else None
        return tiny_trainer(policy, tmp_path / name, updates=4, on_update=on_update, critic_model=critic, **how)

    def stop(line):
        if line["update"] == 3:
            raise KeyboardInterrupt

    straight = trainer("straight").train()
    with pytest.raises(KeyboardInterrupt):
        trainer("stopped", stop).train()
    torch.manual_seed(99)
    assert without_timing(trainer("stopped").train()) == without_timing(straight)
    last = "checkpoints/update-000004/policy/model.safetensors"
    assert content_hash(tmp_path / "stopped" / last) == content_hash(tmp_path / "straight" / last)


@pytest.mark.parametrize("how", KINDS)
def test_training_anew_starts_where_the_first_one_did(policy, reward_model, tmp_path, how):
    critic = reward_model if how.get("critic") else None
    trainer = tiny_trainer(policy, tmp_path, critic_model=critic, updates=2, **how)
    first = trainer.train(resume=False)
    assert without_timing(trainer.train(resume=False)) == without_timing(first)
    again = tiny_trainer(policy, tmp_path, critic_model=critic, updates=2, **how)
    assert again.train() == trainer.history
    assert without_timing(again.train(resume=False)) == without_timing(first), "not from the weights it had restored"
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == len(first)


def test_a_separate_critic_starts_as_the_reward_model_in_its_units(policy, reward_model, tmp_path):
    trainer = tiny_trainer(policy, tmp_path, critic="separate", critic_model=reward_model, rollout_batch_size=12)
    rollout = trainer.rollouts.collect(trainer.actor.eval(), 0, 0.05)
    model = load_reward_model(reward_model, CPU)
    for i in range(12):
        length, answer = int(rollout.episodes.prompt_lengths[i]), int(rollout.episodes.mask[i].sum())
        row = rollout.episodes.tokens[i, : length + answer - 1][None]
        with torch.no_grad():
            states = model.base_model(input_ids=row).last_hidden_state[0, length - 1 :]
            expected = (model.score(states)[:, 0] - 0.5) / 2.0
        torch.testing.assert_close(rollout.values[i, :answer], expected, rtol=0, atol=1e-4)
        assert not rollout.values[i, answer:].any()


def test_a_classifier_becomes_a_critic_by_the_label_that_is_paid(policy, tmp_path):
    model = load_classifier(policy, CPU, ("NEGATIVE", "POSITIVE"))
    save_model(model, tiny_tokenizer(), tmp_path / "classifier")
    write_json(tmp_path / "classifier" / LABEL_FILE, {"label": "POSITIVE", "joint": ""})
    trainer = tiny_trainer(policy, tmp_path / "out", critic="separate", critic_model=tmp_path / "classifier", updates=1)
    assert torch.equal(trainer.actor.value_head.weight, model.score.weight[1:])


def test_a_separate_critic_learns_apart_from_the_policy(policy, reward_model, tmp_path):
    """With the policy's own rate at nothing the policy stays, while the critic comes to know the returns."""
    how = {"updates": 8, "epochs": 4, "learning_rate": 1e-12, "value_learning_rate": 3e-3, "value_clip_range": None}
    how |= {"value_coefficient": 1.0, "final_learning_rate_ratio": 1.0}
    trainer = tiny_trainer(policy, tmp_path, critic="separate", critic_model=reward_model, **how)
    history = trainer.train()
    assert history[-1]["value_loss"] < 0.5 * history[0]["value_loss"]
    for name, weight in load_policy(policy, CPU).state_dict().items():
        torch.testing.assert_close(trainer.policy().state_dict()[name], weight, rtol=0, atol=1e-6)
