"""What learns in PPO: a policy, whole or by adapter, the reference it is held to, its critic, and their checkpoints:
complete or not there, the newest kept for resuming, earlier policies kept for the frontier.

checkpoints/update-000016/policy/     the policy, loads with from_pretrained; the value head lies beside it
checkpoints/update-000016/training/   what learns (safetensors), and accelerate's state: optimizer, random numbers
checkpoints/update-000016/state.json  where the loop stands; written last, so its presence means complete
"""

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_utils.models import language_model as lm
from rlhf_utils.models.loading import fp32_trainables, has_bitsandbytes, load_policy, load_policy_4bit, save_model
from rlhf_utils.models.lora import lora_config, merge_adapter
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, whole_folder, write_json
from rlhf_utils.platforms.names import Source
from rlhf_utils.platforms.runtime import Device
from rlhf_utils.rewards.reward_model import RewardModel
from rlhf_utils.settings.sections import PPOConfig

WEIGHTS_FILE = "trainable.safetensors"


class Policy:
    """The causal LM `model` that learns, as `config.method` says whole or by a LoRA adapter on frozen weights in fp32
    or 4 bits. Its reference is a frozen second load of the same model, or the model with the adapter off. Both say
    tokens of `tokenizer` alone."""

    def __init__(self, source: Source, device: Device, config: PPOConfig, tokenizer: PreTrainedTokenizerBase):
        self.source, self.model, self.frozen = source, trainable_policy(source, device, config), None
        if config.method == "full":
            self.frozen = load_policy(source, device).eval().requires_grad_(False)
        with self.reference() as reference:
            for model in (self.model, reference):
                lm.only_tokens_of(tokenizer, model)

    @contextlib.contextmanager
    def reference(self) -> Iterator[nn.Module]:
        """The model that the KL is measured against, usable inside the block."""
        with self.model.disable_adapter() if self.frozen is None else contextlib.nullcontext():
            yield self.frozen or self.model

    def save(self, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        """Write the policy into `folder`; see `save_policy`."""
        save_policy(self.model, self.source, tokenizer, folder)


def trainable_policy(source: Source, device: Device, config: PPOConfig) -> PreTrainedModel | PeftModel:
    """The causal LM at `source` as `config.method` trains it: whole, or by a LoRA adapter on frozen weights in fp32 or
    4 bits."""
    if config.method == "full":
        return load_policy(source, device)
    if config.method == "qlora" and not has_bitsandbytes():
        raise InputError("ppo.method qlora needs bitsandbytes; `pip install bitsandbytes`, or use lora")
    # An adapter's start is random; it is the seed's, and nobody else's random numbers change by it.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = (load_policy_4bit if config.method == "qlora" else load_policy)(source, device)
        model = get_peft_model(model, lora_config(config.lora, "CAUSAL_LM", model.config))
    fp32_trainables(model)
    return model


def save_policy(model: PreTrainedModel, source: Source, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a policy that began as `source` as a plain causal LM that loads with `from_pretrained` alone. An adapter is
    merged into the fp32 weights, from which 4-bit ones differ by the rounding, and lies beside it in `adapter/`."""
    if not isinstance(model, PeftModel):
        return save_model(model, tokenizer, folder)
    model.save_pretrained(folder / "adapter")
    on_cpu = Device("cpu", "", "fp32", 0)
    save_model(merge_adapter(load_policy(source, on_cpu), folder / "adapter"), tokenizer, folder)


class ActorCritic(nn.Module):
    """The policy that is trained and its critic: a linear value head on the policy's own hidden states (Ziegler et al.
    2019), or on those of `reward`'s trunk (Stiennon et al. 2020, arXiv:2009.01325, section 3.4), whose first values are
    the rewards that it gives to the unfinished responses."""

    def __init__(self, trained: Policy, reward: RewardModel | None = None):
        super().__init__()
        self.trained, self.policy, self.critic = trained, trained.model, reward and reward.model.base_model.train()
        width = reward.model.score.in_features if reward else lm.language_model(self.policy).width
        self.value_head = nn.Linear(width, 1)
        # Starting from value 0 the first advantages are the returns themselves, not the noise of a random head.
        for parameter in self.value_head.parameters():
            nn.init.zeros_(parameter)
        if reward is not None:
            self.value_head.weight.data = reward.model.score.weight[[reward.label]].detach().float() / reward.std
            self.value_head.bias.data = self.value_head.weight.new_full((1,), -reward.mean) / reward.std

    def forward(
        self, tokens: Tensor, prompt_lengths: Tensor, mask: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values [B, R] of the responses; of tensors, not `Episodes`, so that DDP can wrap it."""
        episodes, parts = lm.Episodes(tokens, prompt_lengths, mask), lm.language_model(self.policy)
        before = lm.states_before_answers(parts.trunk, episodes)
        logprobs = lm.chosen_logprobs(parts, before, episodes, temperature)
        return logprobs, lm.spread(self.value(before), mask) if self.critic is None else self.values(episodes)

    def values(self, episodes: lm.Episodes) -> Tensor:
        """The separate critic's value before every response token [B, R]."""
        return lm.spread(self.value(lm.states_before_answers(self.critic, episodes)), episodes.mask)

    def value(self, states: Tensor) -> Tensor:
        """The value head on states [..., D], in fp32: rollout and learning have to read the same value."""
        return lm.in_fp32(self.value_head, states).squeeze(-1)


def learning_weights(actor: ActorCritic) -> dict[str, Tensor]:
    """A copy, in the CPU's memory, of every weight that learns."""
    return {name: p.detach().to("cpu", copy=True) for name, p in actor.named_parameters() if p.requires_grad}


def put_back(actor: ActorCritic, weights: dict[str, Tensor]) -> None:
    """Give `actor` the weights that `learning_weights` copied."""
    if {name for name, p in actor.named_parameters() if p.requires_grad} != weights.keys():
        raise ValueError(f"{WEIGHTS_FILE} holds other weights than this training's")
    actor.load_state_dict(weights, strict=False)


class CheckpointStore:
    """The checkpoints in `folder` of a training of `actor`, whose optimizer `accelerator` has prepared."""

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator, actor: ActorCritic):
        self.folder, self.keep, self.accelerator, self.actor = folder, keep, accelerator, actor
        # Whole models are not saved: frozen weights, which may be in 4 bits, are the policy's own and need no copy.
        accelerator.register_save_state_pre_hook(lambda models, weights, training: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, training: models.clear())

    def save(self, tokenizer: PreTrainedTokenizerBase, state: dict) -> None:
        """Write the checkpoint after `state["update"]` updates; `state` is the JSON-able rest of the loop's state.

        Every process calls it: the main one writes, and each of the others its own random state.
        """
        main, place = processes.is_main(), self.folder / f"update-{state['update']:06d}"
        with whole_folder(place) if main else contextlib.nullcontext() as folder:
            folder = processes.from_main(folder)
            self.accelerator.save_state(str(folder / "training"))
            processes.wait()
            if main:
                save_file(learning_weights(self.actor), folder / "training" / WEIGHTS_FILE)
                self.actor.trained.save(tokenizer, folder / "policy")
                head = {name: tensor.cpu() for name, tensor in self.actor.value_head.state_dict().items()}
                save_file(head, folder / "policy" / "value_head.safetensors")
                write_json(folder / "state.json", state)
        if main:
            self.thin(place)
        processes.wait()

    def restore(self, settings: dict) -> dict | None:
        """Load the newest complete checkpoint; returns its state, None without one.

        A damaged one is passed over with a warning. Raises InputError for one that was made with other `settings`.
        """
        for folder in reversed([path for path in self.policies() if (path / "training").is_dir()]):
            failure, changed = None, []
            try:
                state = read_json(folder / "state.json")
                before = state["settings"]
                changed = [f"{k} {before.get(k)!r} -> {v!r}" for k, v in settings.items() if before.get(k) != v]
                if not changed:
                    put_back(self.actor, load_file(folder / "training" / WEIGHTS_FILE))
                    self.accelerator.load_state(str(folder / "training"))
            except Exception as error:  # whatever a half-written file makes a reader raise
                failure = repr(error)
            if changed:
                problem = f"{folder} was made with other settings ({', '.join(changed[:3])})"
                raise InputError(f"{problem}; use those, another output_dir, or resume=False to train anew")
            # Where any process failed to read it, all of them have to go on from the one before.
            failures = [told for told in processes.gathered(failure) if told]
            if not failures:
                return state
            warnings.warn(f"checkpoint {folder} is damaged ({failures[0]}); trying the one before", stacklevel=2)
        return None

    def policies(self) -> list[Path]:
        """Folders of all complete checkpoints, oldest first; each has a `policy` folder."""
        return sorted(path.parent for path in self.folder.glob("update-*/state.json"))

    def measured(self) -> dict[int, tuple[Path, float]]:
        """Each saved policy by its update: its folder, and its KL in nats per response at training's temperature."""
        states = {folder: read_json(folder / "state.json") for folder in self.policies()}
        return {state["update"]: (folder / "policy", state["kl"]) for folder, state in states.items()}

    def thin(self, newest: Path) -> None:
        """Remove what resuming needs from all but the last `keep` checkpoints up to `newest`; every policy stays.

        A checkpoint that was only made because somebody asked to stop goes altogether, so that an interrupted training
        leaves the same policies as one in one go.
        """
        for folder in self.policies():
            if folder < newest and read_json(folder / "state.json").get("on_request"):
                shutil.rmtree(folder)
        # A damaged checkpoint that was passed over may lie ahead of the newest one; it must not count as kept.
        for folder in [path for path in self.policies() if path <= newest][: -self.keep]:
            shutil.rmtree(folder / "training", ignore_errors=True)
