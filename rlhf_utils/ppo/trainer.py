"""The PPO loop: collect a rollout, learn from it for a few epochs, record, maybe checkpoint."""

import hashlib
import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.memory import clear_device_cache
from transformers import PreTrainedTokenizerBase

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.loading import padding
from rlhf_utils.models.precision import fastest
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError
from rlhf_utils.platforms.files import append_text, disk_errors, write_text
from rlhf_utils.platforms.names import check_trackers
from rlhf_utils.platforms.runtime import Device, detect_device
from rlhf_utils.ppo.learner import NOT_LEARNT, SAME, Learner
from rlhf_utils.ppo.objective import adapted_kl_coefficient, masked_mean
from rlhf_utils.ppo.policies import ActorCritic, CheckpointStore, Policy, learning_weights, put_back
from rlhf_utils.ppo.rollout import Rollout, RolloutCollector
from rlhf_utils.ppo.tracking import log_table, trackers
from rlhf_utils.rewards.reward_model import check_critic, load_reward
from rlhf_utils.rewards.terms import RewardFunction
from rlhf_utils.runs.stopping import safe_points, stop_asked
from rlhf_utils.settings.sections import PPOConfig, flat
from rlhf_utils.settings.template import TEMPLATE, Template

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
# Settings that say how a training is watched, kept and fitted into memory; a resumed training may change them.
_FREE = {"gradient_checkpointing", "microbatch_size", "save_every", "keep_checkpoints", "sample_every", "report_to"}


class PPOTrainer:
    """Proximal policy optimization of a causal language model against any reward function.

    policy: folder or hub id of the policy to start from; the frozen reference is the same model
    tokenizer: its tokenizer; one without a padding token pads with its EOS
    reward_function: `(prompts: list[str], responses: list[str]) -> FloatTensor[n]`
    prompts: plain prompts; the template is put around them here
    config: see `PPOConfig`
    output_dir: gets `metrics.jsonl`, `samples.jsonl` and `checkpoints/`
    on_update: called after each update with its line of metrics
    critic: folder or hub id of a reward model that a separate critic starts from (`critic: separate` only)
    judge: like `reward_function`, but nothing is learnt from it: its mean is `gold` in the metrics
    template: what is put around a prompt, see `rlhf_utils.settings.template`

    Under a launcher (`accelerate launch`) every process builds one with the same arguments. The batch sizes of `config`
    are those of all processes together; `microbatch_size` is a process's own. The main process alone writes.
    """

    def __init__(
        self,
        policy: str | Path,
        tokenizer: PreTrainedTokenizerBase,
        reward_function: RewardFunction,
        prompts: Sequence[str],
        config: PPOConfig,
        output_dir: str | Path,
        on_update: Callable[[dict], None] | None = None,
        critic: str | Path | None = None,
        judge: RewardFunction | None = None,
        template: Template = TEMPLATE,
    ):
        if not prompts:
            raise InputError("PPO has no prompts to answer; give at least one")
        if (config.critic == "separate") != (critic is not None):
            raise InputError("ppo.critic separate needs a reward model to start from: PPOTrainer(critic=FOLDER)")
        if critic is not None:
            check_critic(critic, tokenizer)
        check_trackers(config.report_to)
        processes.divided(config.rollout_batch_size, "ppo.rollout_batch_size")
        processes.divided(config.minibatch_size, "ppo.minibatch_size")
        processes.start()
        self.source, self.critic, self.tokenizer, self.config = policy, critic, padding(tokenizer), config
        self.on_update, self.output_dir, self.device = on_update, Path(output_dir), detect_device(config.precision)
        self.rollouts = RolloutCollector(list(prompts), self.tokenizer, reward_function, judge, config, template)
        # What a resumed training may not change.
        asked = hashlib.sha256(json.dumps(self.rollouts.prompts).encode()).hexdigest()[:16]
        self._settings = {**config.model_dump(mode="json", exclude=_FREE), "prompts": asked}
        with disk_errors(self.output_dir):
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self._build()
        limit = getattr(self.actor.policy.config, "max_position_embeddings", None)
        longest = max(map(len, start_tokens(self.tokenizer, [template.format(prompt) for prompt in prompts])))
        if limit and longest + config.max_new_tokens > limit:
            told = f"the longest prompt has {longest} tokens and ppo.max_new_tokens is {config.max_new_tokens}"
            advice = "lower data.max_prompt_tokens or ppo.max_new_tokens"
            raise InputError(f"{told}, but the policy's context is {limit}; {advice}")

    def train(self, resume: bool = True) -> list[dict]:
        """Run to `config.updates` updates, from the newest complete checkpoint if `resume`; returns the lines of
        metrics.jsonl. See `remaining` for how it ends and what it raises."""
        for _ in self.remaining(resume):
            rollout = self.collect()
            losses = self.learn(rollout)
            self.record(rollout, losses)
        return self.history

    def remaining(self, resume: bool = True) -> Iterator[int]:
        """The updates that are still to be made, from the newest complete checkpoint if `resume`.

        Each policy is measured by a rollout before anything is learnt from it, the last one too. The first that is over
        `kl_budget` ends the training: the one before it is the result, and the last line of the metrics has no losses.

        Raises InputError where the checkpoint is of other settings or prompts, and `stopping.Stopped` after a
        checkpoint where SIGINT or SIGTERM asked for it.
        """
        _accelerator(self.device)  # Another training of this process may have left it in another precision.
        self._begin(resume)
        with self._trackers(), safe_points():
            yield from self._updates()

    def log_table(self, name: str, rows: Sequence[dict]) -> None:
        """Add `rows` as a table to what the trackers of `report_to` have of this training."""
        if self.config.report_to and processes.is_main():
            with self._trackers() as opened:
                for tracker in opened:
                    log_table(tracker, name, rows)

    def _updates(self) -> Iterator[int]:
        while not self.finished:
            if not (asked := stop_asked()) and len(self.history) < self.config.updates:
                yield len(self.history)
            else:
                rollout = self.collect()
                if self.over_budget:
                    self.record(rollout, NOT_LEARNT)
            if self.over_budget:
                # The figures of the policy that has left the budget are written down; the one before it is saved.
                update, kl, weights = self._within
                put_back(self.actor, weights)
                self.finished = True
                self._save(update, kl, on_request=False)
            elif asked:
                break

    def collect(self) -> Rollout:
        """Sample, score and shape a batch with the present policy, and measure the policy by it: `rollout.figures`.

        A policy within the KL budget is remembered, and saved when due. TrainingError where a reward is not finite.
        """
        update, budget = len(self.history), self.config.kl_budget
        coefficient = self.kl_coefficient
        with self.accelerator.autocast():
            rollout = self.rollouts.collect(self.actor.eval(), update, coefficient)
        # Before the first step policy and reference are the same model, so the KL of every token has to be 0.
        squares = (rollout.logprobs - rollout.reference_logprobs).square()
        difference = masked_mean(squares, rollout.episodes.mask).item() ** 0.5
        if update == 0 and difference > SAME[self.device.precision]:
            raise TrainingError(
                f"update 0: policy and reference differ by {difference:.2g} nats per token although they are the same "
                "model; padding, positions or dropout are handled differently in sampling and in scoring"
            )
        # What is decided by the figures (the KL coefficient, when to stop) has to be decided alike everywhere.
        rollout.figures = processes.from_main(rollout.measured(update, coefficient))
        kl = rollout.figures["kl"]
        # At update 0 policy and reference are one model, whatever rounding says of their KL.
        self.over_budget = budget is not None and update > 0 and kl > budget
        if not self.over_budget:
            if budget is not None:
                self._within = None  # two of them at once would need twice the memory
                self._within = update, kl, learning_weights(self.actor)
            self.finished = update == self.config.updates
            due = self.finished or update % self.config.save_every == 0
            if update not in (0, self._saved_at) and (due or stop_asked()):
                self._save(update, kl, on_request=not due)
        return rollout

    def learn(self, rollout: Rollout) -> dict:
        """A few epochs of clipped steps on the rollout; returns the mean losses. Nothing is learnt from the policy that
        is over the KL budget. Raises TrainingError where a loss or gradient is not finite."""
        if self.over_budget:
            return NOT_LEARNT
        started = time.perf_counter()
        losses = self.learner.learn(rollout, len(self.history))
        rollout.seconds["learning"] = time.perf_counter() - started
        return processes.from_main(losses)

    def record(self, rollout: Rollout, losses: dict) -> None:
        """Write the update down, and say what is newly wrong with it."""
        config, known = self.config, self.history[-1]["warnings"] if self.history else {}
        tokens, seconds = int(rollout.episodes.mask.sum()), sum(rollout.seconds.values())
        timing = {"tokens_per_second": tokens / seconds, "seconds": seconds, "phase_seconds": rollout.seconds}
        line = {**rollout.figures, **losses, **timing}
        self.history.append(line)
        line["warnings"], done = warnings_of(self.history, config), len(self.history)
        shown = (done - 1) % config.sample_every == 0 or done == config.updates or self.over_budget
        samples = rollout.samples(done - 1) if shown else []
        if processes.is_main():
            for name, rows in ((METRICS, [line]), (SAMPLES, samples)):
                append_text(self.output_dir / name, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
            numbers = {name: value for name, value in flat(line, "/").items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, step=line["update"])
            for name in [name for name in line["warnings"] if name not in known]:
                print(f"update {line['update']}: {line['warnings'][name]}", flush=True)
            if line["update"] % max(1, config.updates // 8) == 0 or done == config.updates:
                told = "reward {reward:+.2f}, KL {kl:z.2f} nats, EOS {eos_rate:.0%}, {tokens_per_second:.0f} tokens/s"
                print(f"update {line['update']:>4}/{config.updates}   {told.format(**line)}", flush=True)
            if self.on_update:
                self.on_update(line)

    @property
    def kl_coefficient(self) -> float:
        """The price of a nat of KL in the next update."""
        config = self.config
        if config.kl_controller == "fixed" or not self.history:
            return config.kl_coefficient
        last, how = self.history[-1], (config.kl_target, config.rollout_batch_size, config.kl_horizon)
        return adapted_kl_coefficient(last["kl_coefficient"], last["kl"], *how)

    def policy(self) -> torch.nn.Module:
        """The policy as it is now: a causal language model, with its adapter if it has one."""
        return self.actor.policy

    def _build(self) -> None:
        """Load what learns, as it is before the first update; for the trackers it is a training of its own."""
        if hasattr(self, "accelerator"):
            # Two would need twice the memory, and accelerate keeps what it has prepared.
            self.actor = self.learner = self.store = None
            self.accelerator.free_memory()
            clear_device_cache(garbage_collection=True)
        config, folder = self.config, self.output_dir
        trained = Policy(self.source, self.device, config, self.tokenizer)
        if config.precision == "auto" and config.method != "qlora":  # whose 4-bit weights compute in one precision
            chosen = processes.from_main(fastest(self.device, trained.model, learning=True).precision)
            self.device = replace(self.device, precision=chosen)
        device = self.device
        self.accelerator = _accelerator(device, log_with=list(config.report_to) or None, project_dir=folder)
        self._trackers = partial(trackers, self.accelerator, config, folder, name=uuid.uuid4().hex[:8])
        critic = load_reward(self.critic, device) if self.critic else None
        self.actor = ActorCritic(trained, critic).to(device.kind)
        if config.gradient_checkpointing:
            for model in filter(None, (self.actor.policy, self.actor.critic)):
                # The reentrant form loses the gradient where a layer's input needs none, as under an adapter.
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        self.learner = Learner(self.actor, self.accelerator, config, device.precision)
        self.store = CheckpointStore(folder / "checkpoints", config.keep_checkpoints, self.accelerator, self.actor)
        self._touched = False

    def _begin(self, resume: bool) -> None:
        """Stand where the newest complete checkpoint says if `resume`, or before the first update."""
        state = self.store.restore(self._settings) if resume else None
        begun = (state or {}).get("precision", self.device.precision)
        if self.device.kind == "cpu" and begun != self.device.precision:
            # It goes on in the precision that it began in, whatever is faster now.
            self.device = replace(self.device, precision=begun, fixed=True)
            self._build()
            state = self.store.restore(self._settings)
        if state is None:
            # What an earlier training of this trainer has changed, or a damaged checkpoint that was read in part.
            if self._touched or self.store.policies():
                self._build()
            if processes.is_main():
                shutil.rmtree(self.store.folder, ignore_errors=True)
            processes.wait()
            state = {"lines": 0, "finished": False, "update": None}
        self._touched = True
        self.finished, self.over_budget = state["finished"], False
        # The update of the newest checkpoint; of the last policy within the KL budget update, KL and weights.
        self._saved_at: int | None = state["update"]
        self._within: tuple[int, float, dict] | None = None
        lines = cut_to(self.output_dir, state["lines"]) if processes.is_main() else []
        self.history: list[dict] = processes.from_main(lines)

    def _save(self, update: int, kl: float, on_request: bool) -> None:
        state = {"update": update, "kl": kl, "lines": len(self.history), "finished": self.finished}
        state |= {"settings": self._settings, "on_request": on_request, "precision": self.device.precision}
        self.store.save(self.tokenizer, state)
        self._saved_at = update


def _accelerator(device: Device, **how) -> Accelerator:
    """accelerate in this device's precision, whatever came before: it keeps one state and refuses to change it."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=device.precision.replace("fp32", "no"), cpu=device.kind == "cpu", **how)


def cut_to(folder: Path, updates: int) -> list[dict]:
    """Cut metrics and samples to the first `updates` updates; those after it are done again. Returns the metrics."""
    for name in (SAMPLES, METRICS):
        path = folder / name
        # What follows the last line break is a line half written.
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        kept = [line for line in lines if json.loads(line)["update"] < updates]
        if name == METRICS and len(kept) < updates:
            told = f"{path} has {len(kept)} lines, but the checkpoint beside it stands at {updates}"
            raise InputError(f"{told}; restore the file, or train anew with resume=False")
        write_text(path, "".join(line + "\n" for line in kept))
    return [json.loads(line) for line in kept]


def warnings_of(history: Sequence[dict], config: PPOConfig) -> dict[str, str]:
    """What is wrong after the last update of `history` (lines of metrics.jsonl): name -> one sentence with the cause.

    A pure function of the figures, so that a resumed training says the same as one in one go.
    """
    first, now, budget, found = history[0], history[-1], config.kl_budget, {}
    best_eos = max(line["eos_rate"] for line in history)
    if now["kl"] < -0.5:  # within 0.5 nats it may be the noise of sampling
        found["negative_kl"] = (
            f"KL is {now['kl']:.2f} nats per response, and a KL cannot be negative: the log-probabilities are not "
            "those of the distribution that was sampled from (temperature, masks, top-k)"
        )
    if budget is not None and now["kl"] > budget:
        found["over_budget"] = (
            f"KL of {now['kl']:.1f} nats per response at temperature {config.temperature:g} is over the budget of "
            f"{budget:g}: training ends with the policy before it; raise kl_coefficient or lower learning_rate"
        )
    if now["eos_rate"] < best_eos - 0.15:
        found["eos_falling"] = (
            f"only {now['eos_rate']:.0%} of the responses end with EOS, after {best_eos:.0%} earlier: longer responses "
            "may be rewarded; raise missing_eos_penalty or max_new_tokens"
        )
    if now["entropy"] < 0.3 * first["entropy"]:
        found["entropy_collapse"] = (
            f"entropy fell from {first['entropy']:.2f} to {now['entropy']:.2f} nats per token: the policy says nearly "
            "the same every time; raise kl_coefficient or lower learning_rate"
        )
    return found
