"""Memory and time of each training stage, from GPT-2 to 7 billion parameters and from one GPU to a cluster.

    python -m rlhf_utils.scaling

prints the table of docs/scaling.md, where the model is explained. What a stage computes, the bytes of weights,
gradients and optimizer state, and the rate that a machine reaches are those of `rlhf_utils.costs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlhf_utils import costs
from rlhf_utils.costs import ADAM, GB, GRADIENT, RUNTIME, WEIGHT, Machine, Shape
from rlhf_utils.recipes import Recipe, load_recipe

SIZES = {
    "GPT-2, 124 M": costs.GPT2,
    "medium, 355 M": costs.SHAPES["gpt2-medium"],
    "large, 774 M": Shape(36, 1280, 50_257, 1024),
    "XL, 1.6 B": Shape(48, 1600, 50_257, 1024),
    "7 B": Shape(32, 4096, 50_257, 2048),
}
# Under 16-bit autocast or DeepSpeed's bf16; the rest is kept in fp32.
HALF = 2
# PyTorch's DDP keeps its gradients a second time, in the buckets that it sends.
DDP_BUCKETS = GRADIENT
# Part of a GPU's memory that can be planned with; the rest goes to fragments and to the libraries.
USABLE = 0.9


@dataclass(frozen=True)
class Cluster:
    """`gpus` GPUs of `memory` bytes, each of which computes like `machine`, reads its memory at `read` bytes per second
    and exchanges gradients at `exchange` bytes per second (data sheets; nothing here was measured)."""

    name: str
    machine: Machine
    gpus: int
    memory: float
    read: float
    exchange: float


CLUSTERS = (
    Cluster("1 T4", costs.MACHINES["t4"], 1, 16 * GB, 320 * GB, 6 * GB),
    Cluster("2 T4", costs.MACHINES["t4"], 2, 16 * GB, 320 * GB, 6 * GB),
    Cluster("1 H100", costs.MACHINES["full"], 1, 80 * GB, 3350 * GB, 300 * GB),
    Cluster("8 H100", costs.MACHINES["full"], 8, 80 * GB, 3350 * GB, 300 * GB),
    Cluster("64 H100", costs.MACHINES["full"], 64, 80 * GB, 3350 * GB, 40 * GB),
)


@dataclass(frozen=True)
class Plan:
    """How a stage is run: `method`, rows computed at once by a GPU, bytes on each GPU, seconds, and how many of them go
    to the exchange of gradients (taken as not overlapped with computing)."""

    method: str
    rows: int
    memory: float
    seconds: float
    exchange: float


def plan_sft(recipe: Recipe, shape: Shape, cluster: Cluster) -> Plan | None:
    """Fine-tuning every weight: the first of DDP, ZeRO-2 and FSDP that fits; None where none does."""
    settings, text = recipe.sft, _longest(recipe)
    weights, gpus = shape.parameters, cluster.gpus
    methods = {
        # A GPU alone has nothing to exchange and nobody to divide with.
        "DDP" if gpus > 1 else "alone": weights * (WEIGHT + GRADIENT + ADAM + (DDP_BUCKETS if gpus > 1 else 0)),
        "ZeRO-2": weights * (HALF + (HALF + WEIGHT + ADAM) / gpus),
        "FSDP": weights * (WEIGHT + GRADIENT + ADAM) / gpus + 2 * WEIGHT * weights / shape.layers,
    }
    steps = costs.rows_of(recipe)["sft"] * settings.epochs / settings.batch_size
    for method, held in methods.items():
        # Dividing the state pays with many GPUs, and the configurations for it are for eight.
        if gpus < 8 and method not in ("alone", "DDP"):
            break
        rows = _rows(
            settings.batch_size // gpus, held, cluster, lambda rows: costs.activations(recipe, shape, rows, text, text)
        )
        if rows:
            # FSDP fetches every layer for the forward and for the backward pass of each microbatch.
            passes = 1 if method != "FSDP" else 1.5 * settings.batch_size / gpus / rows
            exchange = steps * passes * _reduced(WEIGHT * weights, cluster)
            memory = held + costs.activations(recipe, shape, rows, text, text)
            return _plan(method, rows, memory, costs.work(recipe, shape)["sft"], exchange, shape, cluster)
    return None


def plan_reward_model(recipe: Recipe, shape: Shape, cluster: Cluster) -> Plan | None:
    """A LoRA adapter and a score head on the frozen policy, under DDP; a row is a pair."""
    settings, text = recipe.reward_model, _longest(recipe)
    adapter = _adapter(shape, settings.lora.rank)
    held = WEIGHT * shape.parameters + (WEIGHT + GRADIENT + ADAM + DDP_BUCKETS) * adapter

    def needs(rows: float) -> float:
        return costs.activations(recipe, shape, 2 * rows, text, 0)

    rows = _rows(settings.batch_size // cluster.gpus, held, cluster, needs)
    if not rows:
        return None
    steps = costs.rows_of(recipe)["reward"] * settings.epochs / settings.batch_size
    exchange = steps * _reduced(WEIGHT * adapter, cluster)
    work = costs.work(recipe, shape)["reward_model"]
    return _plan(_ddp("LoRA", cluster), rows, held + needs(rows), work, exchange, shape, cluster)


def plan_ppo(recipe: Recipe, shape: Shape, cluster: Cluster) -> Plan | None:
    """PPO with a reward model of the policy's size under DDP: every weight where that fits, else a LoRA adapter, whose
    reference is the policy itself."""
    ppo, (prompt, _) = recipe.ppo, costs.tokens_of(recipe)
    said, buckets = ppo.max_new_tokens, DDP_BUCKETS if cluster.gpus > 1 else 0
    weights, trained = WEIGHT * shape.parameters, WEIGHT + GRADIENT + ADAM + buckets
    sampled = ppo.rollout_batch_size // cluster.gpus * kv_cache(shape, 2 * prompt + said)

    def needs(rows: float) -> float:
        # Sampling and learning take turns.
        return max(sampled, costs.activations(recipe, shape, rows, 2 * prompt + said, said))

    adapter = _adapter(shape, ppo.lora.rank)
    methods = {
        "full": (trained * shape.parameters + 2 * weights, shape.parameters),
        "lora": (2 * weights + trained * adapter, adapter),
    }
    for method, (held, exchanged) in methods.items():
        rows = _rows(ppo.minibatch_size // cluster.gpus, held, cluster, needs)
        if rows:
            steps = ppo.updates * ppo.epochs * ppo.rollout_batch_size / ppo.minibatch_size
            work = costs.work(recipe.model_copy(update={"ppo": ppo.model_copy(update={"method": method})}), shape)[
                "ppo"
            ]
            exchange = steps * _reduced(WEIGHT * exchanged, cluster)
            return _plan(_ddp(method, cluster), rows, held + needs(rows), work, exchange, shape, cluster)
    return None


def kv_cache(shape: Shape, tokens: float) -> float:
    """Bytes of keys and values of one episode of so many tokens, in 16 bits."""
    return 2 * shape.layers * shape.width * HALF * tokens


def token_seconds(shape: Shape, cluster: Cluster) -> float:
    """Time for one more token of a batch: the latency of its layers, or reading every weight once if that is longer."""
    return max(cluster.machine.step * shape.layers / costs.GPT2.layers, WEIGHT * shape.parameters / cluster.read)


def table(recipe: Recipe) -> str:
    """The workload, and plans for every size and cluster, as Markdown."""
    rows, ppo = costs.rows_of(recipe), recipe.ppo
    workload = (
        f"Workload: {recipe.sft.epochs:g} epochs of {rows['sft']:,.0f} demonstrations in batches of "
        f"{recipe.sft.batch_size}, {recipe.reward_model.epochs:g} of {rows['reward']:,.0f} pairs in batches of "
        f"{recipe.reward_model.batch_size}, {ppo.updates} PPO updates of {ppo.rollout_batch_size} answers of up to "
        f"{ppo.max_new_tokens} tokens, learnt from {ppo.epochs} times in minibatches of {ppo.minibatch_size}."
    )
    stages = {"SFT": plan_sft, "reward model": plan_reward_model, "PPO": plan_ppo}
    heads = ["policy", "machine", *stages]
    lines = [workload, "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for size, shape in SIZES.items():
        for cluster in CLUSTERS:
            cells = [_cell(plan(recipe, shape, cluster)) for plan in stages.values()]
            lines.append(f"| {' | '.join([size, cluster.name, *cells])} |")
    return "\n".join(lines)


def _cell(plan: Plan | None) -> str:
    if plan is None:
        return "does not fit"
    share = f", {plan.exchange / plan.seconds:.0%} of it exchange" if plan.exchange > 0.005 * plan.seconds else ""
    return f"{plan.method}, {plan.rows} at once: {plan.memory / GB:.1f} GB, {_duration(plan.seconds)}{share}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _plan(
    method: str, rows: int, memory: float, work: costs.Work, exchange: float, shape: Shape, cluster: Cluster
) -> Plan:
    # More GPUs divide the operations, and not the tokens that have to be sampled one after the other.
    seconds = work.flops / cluster.machine.flops / cluster.gpus + work.steps * token_seconds(shape, cluster) + exchange
    return Plan(method, rows, RUNTIME + memory, seconds, exchange)


def _ddp(method: str, cluster: Cluster) -> str:
    return f"{method}, DDP" if cluster.gpus > 1 else f"{method}, alone"


def _rows(share: int, held: float, cluster: Cluster, needs: Callable[[float], float]) -> int:
    """How many rows at once fit beside `held` bytes: the share of a GPU, or half of it, or half of that; 0 for none."""
    rows = share
    while rows and RUNTIME + held + needs(rows) > USABLE * cluster.memory:
        rows //= 2
    return rows


def _reduced(size: float, cluster: Cluster) -> float:
    """Seconds of a ring all-reduce of `size` bytes, which sends each of them 2 (n - 1) / n times."""
    return 2 * (cluster.gpus - 1) / cluster.gpus * size / cluster.exchange


def _adapter(shape: Shape, rank: int) -> float:
    """Parameters of a LoRA adapter on a GPT-2's `c_attn` and both `c_proj`."""
    return shape.layers * rank * 11 * shape.width


def _longest(recipe: Recipe) -> float:
    # Padded to the longest of a batch, which seldom reaches both limits; as in `costs`.
    return 0.7 * (recipe.data.max_prompt_tokens + recipe.data.max_response_tokens)


if __name__ == "__main__":
    print(table(load_recipe("instruct", "full")))
