"""What a recipe needs at a scale: download, GPU memory and time, by a small model of the settings.

Time is floating-point operations over what a device of that scale really does, plus the latency of sampling token by
token; memory is weights, gradients, optimizer state and activations of the hungriest stage. The constants below are
written down with where they come from. Only those of `tiny` and the memory of one GPT-2 have been compared with
measurements; no GPU has been timed, so t4 and full are estimates.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_utils.platforms.names import DATASET, hub_name, known_as
from rlhf_utils.platforms.packaged import PACKAGED
from rlhf_utils.settings.recipes import Recipe
from rlhf_utils.settings.sections import EMBEDDED

GB = 1e9


@dataclass(frozen=True)
class Shape:
    """A GPT-2: layers, width, vocabulary, positions."""

    layers: int
    width: int
    vocabulary: int
    positions: int

    @property
    def parameters(self) -> int:
        """Weights of the model, the head being the embedding."""
        blocks = self.layers * (12 * self.width**2 + 13 * self.width)
        return blocks + (self.vocabulary + self.positions + 2) * self.width


@dataclass(frozen=True)
class Machine:
    """flops: operations per second that training reaches, a fraction of the data sheet's matrix rate; step: seconds for
    one token of a batch while sampling, where the rate does not matter; start: seconds a notebook needs to begin."""

    name: str
    flops: float
    step: float
    start: float


@dataclass(frozen=True)
class Work:
    """What a stage computes: floating-point operations, and how many tokens are sampled one after the other."""

    flops: float
    steps: float = 0.0

    def seconds(self, machine: Machine) -> float:
        """How long `machine` takes for it."""
        return self.flops / machine.flops + self.steps * machine.step


@dataclass(frozen=True)
class Estimate:
    """Bytes to download, bytes of GPU memory (host memory at `tiny`), seconds. None where the policy is not known."""

    download: float | None
    memory: float | None
    seconds: float | None


GPT2 = Shape(12, 768, 50_257, 1024)
SHAPES = {
    "gpt2": GPT2,
    "lvwerra/gpt2-imdb": GPT2,
    "gpt2-medium": Shape(24, 1024, 50_257, 1024),
    # A Llama: its positions have no weights, and GPT-2's form counts 10 % too many.
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 49_152, 0),
}
# Parameters of ready reward models.
OTHERS = {"lvwerra/distilbert-imdb": 67e6}
# Rows (train and test) and about how many bytes of them are downloaded.
DATASETS = {
    "Dahoas/synthetic-instruct-gptj-pairwise": (33_000, 40e6),
    "yitingxie/rlhf-reward-datasets": (81_000, 75e6),
    "stanfordnlp/imdb": (50_000, 84e6),
    "stanfordnlp/SHP": (21_000, 60e6),
}
# tiny: two CPU cores, fitted to runs of this repository. T4: 65 TFLOP/s in fp16; H100: 990 in bf16; a fifth and a
# quarter of it, as small models reach them.
MACHINES = {
    "tiny": Machine("2 CPU cores", 45e9, 0.012, 9.0),
    "t4": Machine("one T4", 13e12, 0.025, 15.0),
    "full": Machine("one H100", 250e12, 0.015, 15.0),
}
# Texts are on average this part of the limits in the settings.
FILLED = 0.45
# Forward once, backward twice; with an adapter the frozen weights need no gradient, which is one of the two.
TRAINING_PASSES = 3
ADAPTER_PASSES = 2
# Notebooks of the series, each a process of its own.
NOTEBOOKS = 8
# Bytes of activations per token, layer and unit of width, for the backward pass; measured in fp32 on GPT-2 at about 70,
# about half of it under 16-bit autocast.
ACTIVATION = {"tiny": 70, "t4": 40, "full": 40}
# Logits of a token, their softmax and their gradient, in fp32.
LOGIT_BYTES = 12
WEIGHT, GRADIENT, ADAM = 4, 4, 8
# The stages that train on the policy's shape, in their order.
TRAINED = ("sft", "sft_qlora", "reward_model", "ppo")
RUNTIME = 0.6 * GB


def shape_of(recipe: Recipe) -> Shape | None:
    """The shape of the recipe's policy, by its configuration where that is on this machine; None for a model that is
    not listed here."""
    if recipe.policy == EMBEDDED:
        base = recipe.base
        return Shape(base.layers, base.width, base.vocabulary, base.context)
    return SHAPES.get(known_as(recipe.policy))


def estimate(recipe: Recipe) -> Estimate:
    """What a run of the whole series needs."""
    shape = shape_of(recipe)
    if shape is None:
        return Estimate(None, None, None)
    return Estimate(_download(recipe, shape), _memory(recipe, shape), _seconds(recipe, shape))


def rows_of(recipe: Recipe) -> dict[str, float]:
    """Rows of each split: what the settings allow of the dataset, before the filters."""
    data = recipe.data
    rows = data.embedded_rows if recipe.dataset == EMBEDDED else _about_data(recipe)[0]
    rows = min(rows, data.max_rows or rows)
    shares = data.shares.model_dump()
    total = sum(shares.values())
    return {name: min(rows * share / total, getattr(data.split_rows, name) or rows) for name, share in shares.items()}


def _about_data(recipe: Recipe) -> tuple[int, float]:
    return DATASETS.get(hub_name(recipe.dataset, DATASET)[0], (20_000, 0.0))


def _download(recipe: Recipe, shape: Shape) -> float:
    data = 0.0 if recipe.dataset == EMBEDDED else _about_data(recipe)[1]
    policy = 0.0 if recipe.policy in (EMBEDDED, *PACKAGED) else 4.0 * shape.parameters
    ready = [name for name in recipe.models.model_dump().values() if name and name not in PACKAGED]
    return data + policy + sum(4.0 * OTHERS.get(known_as(name), shape.parameters) for name in ready)


def tokens_of(recipe: Recipe) -> tuple[float, float]:
    """Mean tokens of a prompt and of an answer."""
    if recipe.form == "continuation":
        return sum(recipe.data.prompt_tokens) / 2, FILLED * recipe.data.max_response_tokens
    return FILLED * recipe.data.max_prompt_tokens, FILLED * recipe.data.max_response_tokens


def _seconds(recipe: Recipe, shape: Shape) -> float:
    machine = MACHINES[recipe.scale]
    return sum(part.seconds(machine) for part in work(recipe, shape).values()) + NOTEBOOKS * machine.start


def work(recipe: Recipe, shape: Shape) -> dict[str, Work]:
    """What each stage of a run computes; measuring the policies along the way counts as evaluation."""
    rows, prompt, answer = rows_of(recipe), *tokens_of(recipe)
    pass_flops, text, ppo = 2.0 * shape.parameters, prompt + answer, recipe.ppo
    found: dict[str, Work] = {}
    if recipe.policy == EMBEDDED:
        base = recipe.base
        found["base"] = Work(TRAINING_PASSES * pass_flops * base.steps * base.batch_size * base.block_tokens)
    if not (recipe.tuned_policy or recipe.models.sft):
        tuned = Work(TRAINING_PASSES * pass_flops * recipe.sft.epochs * rows["sft"] * text)
        found |= {"sft": tuned} if recipe.models.sft_qlora else {"sft": tuned, "sft_qlora": tuned}
    if not recipe.models.reward_model:
        texts = 2 if recipe.form == "dialogue" else 1
        seen = recipe.reward_model.epochs * rows["reward"] * texts * text
        found["reward_model"] = Work(ADAPTER_PASSES * pass_flops * seen)
    said = FILLED * ppo.max_new_tokens if recipe.form == "dialogue" else ppo.max_new_tokens
    # Sampling, reference and reward model each read an episode once.
    learning = (TRAINING_PASSES if ppo.method == "full" else ADAPTER_PASSES) * ppo.epochs + 3
    episodes = ppo.updates * ppo.rollout_batch_size
    found["ppo"] = Work(learning * pass_flops * episodes * (prompt + said), ppo.updates * ppo.max_new_tokens)
    policies = 4 + ppo.updates / ppo.save_every
    asked = policies * recipe.evaluation.prompts
    batches = -(-recipe.evaluation.prompts // recipe.generation.batch_size)
    found["evaluation"] = Work(
        3 * pass_flops * asked * (prompt + FILLED * recipe.generation.max_new_tokens),
        policies * batches * recipe.generation.max_new_tokens,
    )
    return found


def _memory(recipe: Recipe, shape: Shape) -> float:
    """The hungriest of the stages that train."""
    trained = [stage for stage in TRAINED if not getattr(recipe.models, stage)]
    if recipe.tuned_policy and "sft" in trained:
        trained.remove("sft")
    return max((stage_memory(recipe, stage) or 0.0 for stage in trained), default=RUNTIME + WEIGHT * shape.parameters)


def stage_memory(recipe: Recipe, stage: str, rows: int | None = None) -> float | None:
    """Bytes that training `stage` takes; None where nothing is trained or the policy's shape is not known.

    `rows` at once in place of those that the settings name.
    """
    shape = shape_of(recipe)
    if shape is None or stage not in TRAINED:
        return None
    frozen = WEIGHT * shape.parameters
    trained = frozen + (GRADIENT + ADAM) * shape.parameters
    text = 0.7 * (recipe.data.max_prompt_tokens + recipe.data.max_response_tokens)
    if stage == "ppo":
        settings = recipe.ppo
        prompt, _ = tokens_of(recipe)
        # The policy, its reference (the policy itself under an adapter), and the reward model.
        states = trained + 2 * frozen if settings.method == "full" else 2 * frozen
        rows = rows or settings.microbatch_size or settings.minibatch_size
        text, with_logits = 2 * prompt + settings.max_new_tokens, settings.max_new_tokens
    elif stage == "reward_model":
        settings, states = recipe.reward_model, frozen
        # Chosen and rejected answer in one batch, and no logits over the vocabulary.
        rows = (2 if recipe.form == "dialogue" else 1) * (rows or settings.micro_batch_size or settings.batch_size)
        with_logits = 0.0
    else:
        settings, states = recipe.sft, trained if stage == "sft" else frozen
        rows, with_logits = rows or settings.micro_batch_size or settings.batch_size, text
    return RUNTIME + states + activations(recipe, shape, rows, text, with_logits, settings.gradient_checkpointing)


def activations(
    recipe: Recipe, shape: Shape, rows: float, tokens: float, with_logits: float, checkpointing: bool = False
) -> float:
    """Bytes kept for the backward pass of `rows` rows of `tokens` tokens, `with_logits` of which have logits over the
    vocabulary."""
    # With checkpointing the input of every layer, and one layer at a time as it is computed again.
    layer = ACTIVATION[recipe.scale]
    per_width = WEIGHT * shape.layers + layer if checkpointing else layer * shape.layers
    states = per_width * shape.width * tokens
    return rows * (states + LOGIT_BYTES * shape.vocabulary * with_logits)
