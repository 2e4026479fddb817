"""What can be set: one typed section per part of the series, checked whether the values come from YAML or Python."""

from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from rlhf_utils.platforms.names import PACKAGED


def _number(value: Any) -> Any:
    # YAML 1.1 reads `1e-5` as a string and `no` as False; pydantic would take True for the number 1.
    if isinstance(value, bool):
        raise ValueError("must be a number (YAML reads yes/no/on/off as true/false)")
    with suppress(TypeError, ValueError, OverflowError):
        return int(float(value)) if float(value).is_integer() else value
    return value


def _name(value: Any) -> Any:
    """A name, which null and nothing at all unset."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "null", "none") else value


def _installed(value: Any) -> Any:
    """The embedder that `installed` means on this machine, so that a run's settings name the one that it used."""
    return value if value != "installed" else "minilm" if PACKAGED["minilm"].source else None


Number = BeforeValidator(_number)
Fraction = Annotated[float, Number, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Number, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Number, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Number, Field(ge=1)]
Seed = Annotated[int, Number, Field(ge=0, lt=2**31)]
Name = Annotated[str, BeforeValidator(_name)]
OptionalName = Annotated[str | None, BeforeValidator(_name)]
Split = Literal["sft", "reward", "ppo", "development", "evaluation", "judge"]
Alternative = Literal["dpo", "rloo", "grpo", "best_of_n"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Section(BaseModel):
    """Base of every section, frozen and without unknown keys; of `multiples`, the first is a multiple of the second."""

    model_config = ConfigDict(frozen=True, validate_default=True)
    multiples: ClassVar[tuple[tuple[str, str], ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _are_known(cls, values):
        for key in values if isinstance(values, Mapping) else ():
            if key not in cls.model_fields:
                near = [f" (did you mean {name!r}?)" for name in get_close_matches(str(key), cls.model_fields, 1)]
                accepted = f"accepted here: {', '.join(cls.model_fields)}"
                raise ValueError(f"unknown key {str(key)!r}{''.join(near)}; {accepted}")
        return values

    @model_validator(mode="after")
    def _are_multiples(self):
        for name, part in self.multiples:
            whole, each = getattr(self, name), getattr(self, part)
            if each and whole % each:
                raise ValueError(f"{name} {whole} is not a multiple of {part} {each}")
        return self


def flat(values: Any, separator: str = ".") -> dict[str, Any]:
    """Nested dictionaries as one, the keys joined: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    if not isinstance(values, Mapping):
        return {"": values}
    inner = {str(key): flat(value, separator) for key, value in values.items()}
    return {separator.join(filter(None, (key, name))): v for key, part in inner.items() for name, v in part.items()}


class Shares(Section):
    """How the prompts of a dataset are divided, relative to one another. `judge` is for a second reward model that only
    judges, where there is no gold preference."""

    sft: NonNegative = 0.4
    reward: NonNegative = 0.35
    ppo: NonNegative = 0.1
    development: NonNegative = 0.05
    evaluation: NonNegative = 0.1
    judge: NonNegative = 0.0


class DataSettings(Section):
    """Where rows come from and which of them are used. Token counts are of the policy's tokenizer.

    world: the synthetic dataset of `dataset: embedded`
    test_split: where the dataset has it, it is the evaluation split
    revision: branch, tag, or commit of the dataset on the hub
    label_noise: share of the synthetic dataset's preferences that is wrong
    max_rows: the most rows that are used of either split
    split_rows: the most rows of single splits, such as {sft: 1000}
    min_score_ratio: of responses with votes, the better one has at least this many times the votes of the worse one
    prompt_tokens: least and most tokens of the prompts that are cut from the beginning of labeled texts
    min_text_characters: shorter labeled texts are not used
    """

    world: Literal["instruct", "helpful_harmless", "imdb", "eli5"] = "instruct"
    split: str = "train"
    test_split: str = "test"
    data_dir: OptionalName = None
    revision: OptionalName = None
    embedded_rows: Count = 26_000
    embedded_test_rows: Count = 1_500
    label_noise: Annotated[float, Number, Field(ge=0.0, lt=0.5)] = 0.07
    max_prompt_tokens: Count = 256
    max_response_tokens: Count = 256
    max_rows: Count | None = None
    split_rows: dict[Split, Count | None] = {}
    min_score_ratio: Annotated[float, Number, Field(ge=1.0, allow_inf_nan=False)] = 1.0
    prompt_tokens: tuple[Count, Count] = (2, 8)
    min_text_characters: Annotated[int, Number, Field(ge=0)] = 200
    shares: Shares = Shares()


class BaseSettings(Section):
    """The small GPT-2 that is pretrained here when `policy: embedded`, on `documents` texts."""

    multiples = (("width", "heads"),)
    layers: Count = 4
    heads: Count = 4
    width: Count = 128
    vocabulary: Annotated[int, Number, Field(ge=300)] = 1024
    context: Count = 256
    documents: Count = 12_000
    block_tokens: Count = 96
    batch_size: Count = 16
    steps: Count = 800
    learning_rate: Positive = 2e-3


class TrainingSettings(Section):
    """What supervised fine-tuning and reward modeling share. One optimizer step sees `batch_size` rows.

    micro_batch_size: rows computed at once, None for all; halved automatically on out-of-memory
    gradient_checkpointing: the same gradients from far less memory, for a third more time. QLoRA has it from `sft`
    evaluations: how often the model is evaluated in the whole training
    checkpoints: how often it is saved, to resume from
    """

    multiples = (("batch_size", "micro_batch_size"),)
    epochs: Positive = 1.0
    batch_size: Count = 16
    micro_batch_size: Count | None = None
    gradient_checkpointing: bool = False
    learning_rate: Positive = 2e-5
    warmup_ratio: Fraction = 0.03
    weight_decay: NonNegative = 0.0
    evaluations: Count = 5
    checkpoints: Count = 4


# Places in a model for a LoRA adapter, whatever the architecture calls its layers.
LORA_PLACES = ("attention", "attention_in", "attention_out", "mlp", "mlp_in", "mlp_out", "all-linear")


class LoraSettings(Section):
    """A low-rank adapter (Hu et al. 2021, arXiv:2106.09685): W + (alpha / rank) B A.

    modules: `attention`, `mlp`, either with `_in` (what reads the block's input) or `_out` (its last layer),
        `all-linear`, or the architecture's own names (`c_attn`, `q_proj`)
    """

    rank: Count = 16
    alpha: Positive = 32.0
    dropout: Annotated[float, Number, Field(ge=0.0, lt=1.0)] = 0.0
    modules: Names = ("attention", "mlp_out")


class QloraSettings(LoraSettings):
    """QLoRA (Dettmers et al. 2023, arXiv:2305.14314). Epochs and batch size are those of `sft`: the same budget."""

    learning_rate: Positive = 2e-4
    modules: Names = ("attention", "mlp")


class RewardModelSettings(TrainingSettings):
    """The reward model, trained through a LoRA adapter on the fine-tuned policy's trunk.

    label: the class whose logit is the reward, where it is a classifier of labeled texts
    ending: what a classifier that is trained here reads after each text, a question whose answer is the label
    words: answers to it for label 0 and for label 1. The head begins as the language model's own rows for these words,
        and learns from fewer texts than one that starts without an opinion (Schick and Schuetze 2021, arXiv:2001.07676)
    """

    label: Name = "POSITIVE"
    ending: OptionalName = None
    words: tuple[str, str] | None = None
    learning_rate: Positive = 1e-4
    lora: LoraSettings = LoraSettings()


class RewardTerms(Section):
    """Weights of the terms of PPO's reward beside the reward model; 0 leaves a term out.

    fluency: mean log-likelihood under the SFT model, nats per token
    length: minus the share of words over `length_words`
    """

    fluency: NonNegative = 0.0
    length: NonNegative = 0.0
    length_words: Count = 60


class ReadyModels(Section):
    """Finished models to use in place of training: a hub id, `owner/name:subfolder@revision`, or a folder of a model or
    LoRA adapter. `judge` is a reward model that decides which policy is better, in place of the gold preference or a
    second reward model. `adapter_base` is the base of adapters, in place of the one that their adapter_config.json
    names."""

    sft: OptionalName = None
    sft_qlora: OptionalName = None
    reward_model: OptionalName = None
    judge: OptionalName = None
    ppo: OptionalName = None
    adapter_base: OptionalName = None


class GenerationSettings(Section):
    """How responses are sampled for every comparison; the same for every model."""

    max_new_tokens: Count = 64
    temperature: Positive = 0.7
    batch_size: Count = 64


class PPOConfig(Section):
    """Proximal policy optimization (Schulman et al. 2017, arXiv:1707.06347) on whole responses. Batches count
    episodes (one prompt with one response), lengths tokens, and KL nats per response at the sampling `temperature`.

    method: train all weights, or a LoRA adapter (`qlora`: on 4-bit weights)
    critic: the value head shares the policy's trunk, or has a model of its own
    microbatch_size: episodes learned from at once, None for all; halved automatically on out-of-memory
    final_learning_rate_ratio: the share of the learning rate that is left after the linear decay
    warmup_ratio: the share of all steps over which the learning rate rises linearly
    value_clip_range: in standard deviations of the returns
    kl_coefficient: reward per nat
    kl_horizon: of the adaptive controller, in episodes
    kl_budget: training stops when the KL passes it
    missing_eos_penalty: taken from the reward of a response that does not end with EOS
    reward_clip: rewards are cut to plus or minus this, after `reward_scale`
    save_every: updates from one checkpoint to the next; the policy of each is kept (GPT-2: 0.5 GB) and measured
    keep_checkpoints: the newest checkpoints that also keep what resuming needs (GPT-2: 1.5 GB)
    sample_every: updates from one to the next whose first responses are written down
    """

    multiples = (("rollout_batch_size", "minibatch_size"), ("minibatch_size", "microbatch_size"))
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
    report_to: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    seed: Annotated[int, Number, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _possible_together(self):
        if self.kl_controller == "adaptive" and self.kl_horizon < self.rollout_batch_size:
            size = self.rollout_batch_size
            raise ValueError(f"kl_horizon {self.kl_horizon:g} is shorter than one rollout of {size} episodes; raise it")
        if self.lora.dropout:
            raise ValueError("lora.dropout must be 0 in PPO: it would show up as KL between sampling and learning")
        return self


class DPOSettings(TrainingSettings):
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290) on the reward model's pairs, once for
    each of `betas`, the strengths of its KL penalty; development prompts choose."""

    betas: Annotated[tuple[Positive, ...], Field(min_length=1)] = (0.05, 0.1, 0.3)


class GroupSettings(Section):
    """RLOO (Ahmadian et al. 2024, arXiv:2402.14740) or GRPO (Shao et al. 2024, arXiv:2402.03300): responses to one
    prompt are compared with one another in place of a critic. Batches, updates and lengths are those of `ppo`.

    learning_rate: null is that of `ppo`
    kl_coefficient: null is that of `ppo`
    """

    responses_per_prompt: Annotated[int, Number, Field(ge=2)] = 4
    learning_rate: Positive | None = None
    kl_coefficient: NonNegative | None = None


class BestOfNSettings(TrainingSettings):
    """Supervised fine-tuning on the best of `n` responses by reward (rejection sampling, as in Touvron et al. 2023,
    arXiv:2307.09288, section 3.2.3)."""

    n: Annotated[int, Number, Field(ge=2)] = 8


class AssistantScore(Section):
    """Weights of the score of an assistant: relevance, safety, and fluency, each 0 to 1.

    embedder: measures relevance: minilm (a package), the hub id of a mean-pooled encoder, null for the SFT model;
        installed is minilm where its package is there, else null, and the run's record says which
    """

    relevance: NonNegative = 0.4
    safety: NonNegative = 0.35
    fluency: NonNegative = 0.25
    embedder: Annotated[OptionalName, BeforeValidator(_installed)] = "installed"


class OveroptimiseSettings(Section):
    """PPO against a reward model of few pairs without a KL penalty, to show what reward hacking looks like."""

    pairs: Count = 800
    updates: Count = 24
    kl_coefficient: NonNegative = 0.0
    learning_rate: Positive | None = None


class EvaluationSettings(Section):
    """The comparison at the end, on `prompts` held-out prompts that every model responds to."""

    prompts: Count = 200
    reward_pairs: Count = 1_000
    frontier_prompts: Count = 64
    bootstrap_samples: Annotated[int, Number, Field(ge=100)] = 2_000
    assistant: AssistantScore | None = None
    overoptimise: OveroptimiseSettings | None = None


class Needs(Section):
    """What the whole series takes at a scale: measured where a run is published or the recipe tells of one, else an
    estimate."""

    machine: str = "two CPU cores"
    minutes: Positive = 10.0
    memory_gb: Positive = 1.0
    download_gb: NonNegative = 0.0
