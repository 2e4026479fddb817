"""What can be set: one typed section per part of the series.

A recipe (`settings.recipes`) is these sections with values. Unknown keys, wrong types and values out of range
are refused when a section is built, whether the value comes from YAML, the command line, papermill or Python.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

# As a dataset or a policy: made here, without a network.
EMBEDDED = "embedded"
# What unsets a name: YAML's word and Python's, and nothing at all.
UNSET = ("", "null", "none")

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: frozen, no unknown keys, and numbers and nothing read the way a person means them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_values(cls, values: Any) -> Any:
        # YAML 1.1 reads `1e-5` as a string and `no` as False; pydantic would take True for the number 1.
        if not isinstance(values, dict):
            return values
        values = dict(values)
        for name, value in values.items():
            field = cls.model_fields.get(name)
            kinds = _kinds(field.annotation) if field else set()
            if kinds == {str, NoneType} and isinstance(value, str) and value.strip().lower() in UNSET:
                values[name] = None
            if not kinds & {int, float}:
                continue
            if isinstance(value, bool) and bool not in kinds:
                raise ValueError(
                    f"{name} must be a number, not {str(value).lower()} (YAML reads yes/no/on/off as true/false)"
                )
            if isinstance(value, str) and int in kinds and float not in kinds:
                try:
                    number = float(value)
                except ValueError:
                    continue
                if number.is_integer():
                    values[name] = int(number)
        return values


def _kinds(annotation: Any) -> set:
    """The plain Python types inside an annotation such as `Annotated[int, ...] | None`."""
    inner = get_args(annotation)
    return {annotation} if not inner else set().union(*(_kinds(part) for part in inner))


def flat(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Nested dictionaries as one, the keys joined: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, separator) if isinstance(value, Mapping) else {"": value}
        found |= {f"{key}{separator}{name}" if name else key: item for name, item in inner.items()}
    return found


class Shares(Section):
    """How the prompts of a dataset are divided; the shares are relative and need not add up to one.

    `judge` is for a second reward model that only judges, where there is no gold preference; 0 leaves it out.
    """

    sft: NonNegative = 0.4
    reward: NonNegative = 0.35
    ppo: NonNegative = 0.1
    development: NonNegative = 0.05
    evaluation: NonNegative = 0.1
    judge: NonNegative = 0.0


class SplitRows(Section):
    """At most so many rows of the train rows in each split; None for no limit."""

    sft: Count | None = None
    reward: Count | None = None
    ppo: Count | None = None
    development: Count | None = None
    evaluation: Count | None = None
    judge: Count | None = None


class DataSettings(Section):
    """Where rows come from and which of them are used. Token counts are of the policy's tokenizer.

    min_score_ratio: of answers with votes, the better one has at least so many times the votes of the worse one
    prompt_tokens: least and most tokens of the prompts that are cut from the beginning of labelled texts
    min_text_characters: labelled texts shorter than this are not used
    """

    world: Literal["instruct", "helpful_harmless", "imdb", "eli5"] = "instruct"
    split: str = "train"
    test_split: str = "test"
    data_dir: str | None = None
    revision: str | None = None
    embedded_rows: Count = 26_000
    embedded_test_rows: Count = 1_500
    label_noise: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.07
    max_prompt_tokens: Count = 256
    max_response_tokens: Count = 256
    max_rows: Count | None = None
    split_rows: SplitRows = SplitRows()
    rows_per_prompt: Count = 1
    min_score_ratio: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] = 1.0
    prompt_tokens: tuple[Count, Count] = (2, 8)
    min_text_characters: Annotated[int, Field(ge=0)] = 200
    shares: Shares = Shares()

    @model_validator(mode="after")
    def _prompt_tokens_in_order(self):
        if self.prompt_tokens[0] > self.prompt_tokens[1]:
            raise ValueError(f"prompt_tokens {list(self.prompt_tokens)} must be the least and the most, in this order")
        return self


class BaseSettings(Section):
    """The small GPT-2 trained here when `policy: embedded`; unused when the policy is a ready model."""

    layers: Count = 4
    heads: Count = 4
    width: Count = 128
    vocabulary: Annotated[int, Field(ge=300)] = 1024
    context: Count = 256
    documents: Count = 12_000
    block_tokens: Count = 96
    batch_size: Count = 16
    steps: Count = 800
    learning_rate: Positive = 2e-3

    @model_validator(mode="after")
    def _heads_divide_width(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads; choose a multiple")
        return self


class TrainingSettings(Section):
    """What supervised fine-tuning and reward modelling share. One optimizer step sees `batch_size` rows.

    micro_batch_size: rows computed at once, None for all; halved by itself where memory runs out
    gradient_checkpointing: keep only each layer's input and compute the rest again in the backward pass: the same
        gradients from far less memory, for about a third more time. QLoRA takes it from `sft`
    """

    epochs: Positive = 1.0
    batch_size: Count = 16
    micro_batch_size: Count | None = None
    gradient_checkpointing: bool = False
    learning_rate: Positive = 2e-5
    warmup_ratio: Fraction = 0.03
    weight_decay: NonNegative = 0.0
    evaluations: Count = 5
    checkpoints: Count = 4

    @model_validator(mode="after")
    def _micro_batches_divide(self):
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


# Places in a model for a LoRA adapter, whatever the architecture calls its layers.
LORA_PLACES = ("attention", "attention_in", "attention_out", "mlp", "mlp_in", "mlp_out", "all-linear")


class LoraSettings(Section):
    """A low-rank adapter (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A.

    modules: where it is put, in the names of `LORA_PLACES` or in the architecture's own (`c_attn`, `q_proj`). In a
        place, `in` is what reads the block's input, `out` its last layer; `all-linear` is both of both
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("attention", "mlp_out")


class QloraSettings(LoraSettings):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314). Epochs and batch are those of `sft`, so the budget is the
    same."""

    learning_rate: Positive = 2e-4
    modules: Annotated[tuple[str, ...], Field(min_length=1)] = ("attention", "mlp")


class RewardModelSettings(TrainingSettings):
    """The reward model, trained through a LoRA adapter on the fine-tuned policy's trunk.

    From pairs: one output logit. From labelled texts: a classifier, whose logit of `label` is the reward.
    """

    label: Annotated[str, Field(min_length=1)] = "POSITIVE"
    learning_rate: Positive = 1e-4
    lora: LoraSettings = LoraSettings()


class RewardTerms(Section):
    """Weights of what PPO is paid for beside the reward model; 0 leaves a term out.

    fluency: mean log-likelihood under the SFT model, nats per token; length: minus the share of words over
    `length_words`
    """

    fluency: NonNegative = 0.0
    length: NonNegative = 0.0
    length_words: Count = 60


class ReadyModels(Section):
    """Finished models to use in place of training: a hub id, `owner/name:subfolder@revision` (either part may be
    left out), a folder, or a LoRA adapter's folder.

    adapter_base: the base of those that are adapters, in place of the one that their adapter_config.json names
    """

    sft: str | None = None
    sft_qlora: str | None = None
    reward_model: str | None = None
    ppo: str | None = None
    adapter_base: str | None = None


class GenerationSettings(Section):
    """How answers are sampled for every comparison; every model gets the same."""

    max_new_tokens: Count = 64
    temperature: Positive = 0.7
    batch_size: Count = 64


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017, arXiv:1707.06347) on whole answers.

    Units: batches count episodes (one prompt with one answer), lengths count tokens, KL is in nats per answer,
    the KL coefficient is reward per nat. `kl_budget` and `kl_target` are nats per answer of the distribution that is
    sampled from while training, at `temperature`. `value_clip_range` is in standard deviations of the
    returns. The learning rate rises linearly over the first `warmup_ratio` of all steps. `lora` matters for
    the methods lora and qlora (the same on 4-bit weights).
    `microbatch_size` episodes are learnt from at once (None for all), fewer where memory runs out;
    `gradient_checkpointing` computes the layers again in the backward pass instead of keeping them.
    """

    method: Literal["full", "lora", "qlora"] = "full"
    lora: LoraSettings = LoraSettings()
    critic: Literal["shared", "separate"] = "shared"
    updates: Count = 32
    rollout_batch_size: Count = 128
    minibatch_size: Count = 64
    microbatch_size: Count | None = None
    gradient_checkpointing: bool = False
    epochs: Count = 2
    max_new_tokens: Count = 64
    temperature: Positive = 1.0
    learning_rate: Positive = 1e-5
    value_learning_rate: Positive | None = None
    final_learning_rate_ratio: Fraction = 0.1
    warmup_ratio: Fraction = 0.05
    gamma: Fraction = 1.0
    gae_lambda: Fraction = 0.95
    clip_range: Positive = 0.2
    value_clip_range: Positive | None = 0.2
    value_coefficient: NonNegative = 0.1
    kl_coefficient: NonNegative = 0.05
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    kl_target: Positive = 6.0
    kl_horizon: Positive = 10_000.0
    kl_budget: Positive | None = None
    kl_budget_action: Literal["stop", "shrink"] = "stop"
    missing_eos_penalty: NonNegative = 1.0
    reward_clip: Positive | None = None
    reward_scale: Positive = 1.0
    whiten_advantages: bool = True
    max_grad_norm: Positive = 1.0
    adam_epsilon: Positive = 1e-5
    weight_decay: NonNegative = 0.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    save_every: Count = 8
    keep_checkpoints: Count = 2
    sample_every: Count = 8
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="before")
    @classmethod
    def _no_estimator(cls, values: Any) -> Any:
        if isinstance(values, dict) and "kl_estimator" in values:
            raise ValueError(
                "kl_estimator is no setting any more: the KL penalty is always k1, since the gradient of a k3 penalty "
                "is not that of the KL; leave it out"
            )
        return values

    @model_validator(mode="after")
    def _batches_divide(self):
        if self.rollout_batch_size % self.minibatch_size:
            raise ValueError(
                f"rollout_batch_size {self.rollout_batch_size} is not a multiple of "
                f"minibatch_size {self.minibatch_size}"
            )
        if self.microbatch_size and self.minibatch_size % self.microbatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} is not a multiple of microbatch_size {self.microbatch_size}"
            )
        if self.kl_controller == "adaptive" and self.kl_horizon < self.rollout_batch_size:
            raise ValueError(
                f"kl_horizon {self.kl_horizon:g} is shorter than one rollout of {self.rollout_batch_size} episodes, "
                "so the KL coefficient would jump; raise kl_horizon"
            )
        if self.lora.dropout:
            raise ValueError("lora.dropout must be 0 in PPO: dropout would show up as KL between sampling and learning")
        if self.kl_budget_action == "shrink" and self.kl_budget is None:
            raise ValueError("kl_budget_action is shrink but kl_budget is not set; give the budget in nats per answer")
        return self


class AssistantScore(Section):
    """Weights of the score of an assistant: helpfulness, safety and fluency, each 0 to 1.

    embedder: what measures the relevance of an answer: minilm (a package), or the hub id of a sentence-transformers
        model where that library is installed; None for the SFT model's own states
    tie: answers whose scores differ by less are a tie
    """

    helpfulness: NonNegative = 0.4
    safety: NonNegative = 0.35
    fluency: NonNegative = 0.25
    embedder: str | None = None
    tie: NonNegative = 0.02


class OveroptimiseSettings(Section):
    """PPO against a reward model of few pairs with a small KL penalty, to see reward hacking."""

    pairs: Count = 800
    updates: Count = 24
    kl_coefficient: NonNegative = 0.0
    learning_rate: Positive | None = None


class EvaluationSettings(Section):
    """The comparison at the end. `prompts` held-out prompts are answered by every model."""

    prompts: Count = 200
    reward_pairs: Count = 1_000
    frontier_prompts: Count = 64
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2_000
    assistant: AssistantScore | None = None
    overoptimise: OveroptimiseSettings | None = None
