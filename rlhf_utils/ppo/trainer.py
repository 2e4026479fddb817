"""The PPO loop: collect a rollout, learn from it for a few epochs, log, maybe checkpoint."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_utils.data.tokens import start_tokens
from rlhf_utils.models.loading import checkpoint_gradients, padding
from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError, TrainingError, visible
from rlhf_utils.platforms.files import disk_errors
from rlhf_utils.platforms.memory import remembering
from rlhf_utils.platforms.runtime import Device, detect_device
from rlhf_utils.ppo.checkpoint import CheckpointStore, Snapshot
from rlhf_utils.ppo.health import warnings_of
from rlhf_utils.ppo.learner import NOT_LEARNT, SAME, Learner
from rlhf_utils.ppo.objective import adapted_kl_coefficient, masked_mean
from rlhf_utils.ppo.policies import load_ppo_policy, make_actor_critic, reset_critic
from rlhf_utils.ppo.record import Record, metrics_line, progress, samples_table, times
from rlhf_utils.ppo.rollout import Rollout, RolloutCollector
from rlhf_utils.ppo.trackers import Trackers
from rlhf_utils.rewards import RewardFunction
from rlhf_utils.rewards.reward_model import check_critic
from rlhf_utils.runs.stopping import safe_points, stop_asked
from rlhf_utils.settings.sections import PPOConfig
from rlhf_utils.settings.template import TEMPLATE, Template

# Settings that say how a training is watched, kept and fitted into memory; a resumed training may change them.
_FREE_SETTINGS = {
    "gradient_checkpointing",
    "microbatch_size",
    "save_every",
    "keep_checkpoints",
    "sample_every",
    "report_to",
}


class PPOTrainer:
    """Proximal policy optimisation of a causal language model against any reward function.

    policy: folder or hub id of the policy to start from; the frozen reference is the same model
    tokenizer: its tokenizer; one without a padding token pads with its EOS
    reward_function: `(prompts: list[str], responses: list[str]) -> FloatTensor[n]`
    prompts: plain prompts; the template is put around them here
    config: see `PPOConfig`
    output_dir: gets `metrics.jsonl`, `samples.jsonl` and `checkpoints/`
    on_update: called after each update with its line of metrics
    critic: folder or hub id of a reward model that a separate critic starts from (`critic: separate` only)
    judge: like `reward_function`, but nothing is learnt from it: its mean is `gold` in the metrics, and the best
        checkpoint is the best by it
    template: what is put around a prompt, see `rlhf_utils.settings.template`

    Under a launcher (`accelerate launch`) every process builds one with the same arguments. The batch sizes of `config`
    are those of all processes together; `microbatch_size` is a process's own. The main process alone writes, and calls
    `on_update`.
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
            raise InputError(
                "ppo.critic separate starts from a reward model; give PPOTrainer(critic=FOLDER), and only then"
            )
        if critic is not None:
            check_critic(critic, tokenizer)
        processes.divided(config.rollout_batch_size, "ppo.rollout_batch_size")
        processes.divided(config.minibatch_size, "ppo.minibatch_size")
        processes.start()
        tokenizer = padding(tokenizer)
        self.config, self.tokenizer, self.on_update = config, tokenizer, on_update
        self.critic, self.judge = critic, judge
        self.device = detect_device(config.precision)
        self.accelerator = _accelerator(self.device)
        self.output_dir = Path(output_dir)
        with disk_errors(self.output_dir):
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.record = Record(self.output_dir)
        self.trackers = Trackers(config, self.output_dir)
        self.store = CheckpointStore(self.output_dir / "checkpoints", config.keep_checkpoints)
        self.trained = load_ppo_policy(policy, self.device, config, tokenizer)
        self.actor = make_actor_critic(self.trained, critic, self.device)
        if config.gradient_checkpointing:
            for model in (self.actor.policy, self.actor.critic):
                if model is not None:
                    checkpoint_gradients(model)
        texts = [template.format(prompt) for prompt in prompts]
        self._check_context(texts)
        self.learner = Learner(self.actor, self.accelerator, config, self.device.precision, self.output_dir)
        self.rollouts = RolloutCollector(
            prompts, texts, tokenizer, reward_function, self.trained, config, template, self.output_dir
        )
        self._prompts_hash = hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()[:16]
        self._begin()

    def train(self, resume: bool = True) -> list[dict]:
        """Run to `config.updates` updates, from the newest complete checkpoint if `resume`; returns the lines of
        metrics.jsonl.

        Each policy is measured by a rollout before anything is learnt from it, the last one too. With
        `kl_budget_action: stop` the first that is over the KL budget ends the training: the policy before it is the
        result, and the last line of the metrics is the measurement, with no losses.

        Raises InputError where the checkpoint is of other settings or prompts, TrainingError where a figure is not
        finite, `stopping.Stopped` after a checkpoint where SIGINT or SIGTERM asked for it.
        """
        _accelerator(self.device)  # Another training of this process may have left it in another precision.
        history = self._restore() if resume else self._start_over()
        with (
            remembering(self.output_dir),
            safe_points(),
            self.trackers as trackers,
            tqdm(
                total=self.config.updates,
                initial=len(history),
                unit="update",
                disable=None if processes.is_main() else True,
            ) as bar,
        ):
            while not self.finished:
                update = len(history)
                rollout, line = self._collect(update)
                over = self._over_budget(update, line["kl"])
                if over and self.config.kl_budget_action == "stop":
                    self._end_within_budget(history, rollout, line)
                    trackers.log(line)
                    break
                self._keep_within_budget(update, line["kl"], over)
                if self._save_where_due(history, line["kl"]):
                    break
                line = self._learn(rollout, line)
                history.append(line)
                self._write_down(history, rollout)
                trackers.log(line)
                bar.set_postfix_str(progress(line))
                bar.update()
                self._adapt(line)
        return history

    def policy(self) -> torch.nn.Module:
        """The policy as it is now: a causal language model, with its adapter if it has one."""
        return self.actor.policy

    def _collect(self, update: int) -> tuple[Rollout, dict]:
        """A rollout of the present policy, and the line of metrics as far as it measures that policy."""
        started = time.perf_counter()
        self.actor.eval()
        with self.accelerator.autocast():
            rollout = self.rollouts.collect(self.actor, update, self.kl_coefficient)
        if update == 0:
            self._check_first(rollout)
        seconds = time.perf_counter() - started
        gold = self._gold(rollout)
        if not processes.is_main():
            return rollout, processes.from_main({})
        line = {
            **metrics_line(rollout, update, self.kl_coefficient),
            **self.record.spreading_phrase(update, [answer.text for answer in rollout.answers]),
            "gold": gold,
            **NOT_LEARNT,
            **times(rollout, seconds),
        }
        # What is decided by the figures (the KL coefficient, when to stop) has to be decided alike everywhere.
        return rollout, processes.from_main(line)

    def _learn(self, rollout: Rollout, line: dict) -> dict:
        """Learn from the rollout; returns its line with the losses."""
        started = time.perf_counter()
        losses = self.learner.learn(rollout, line["update"], self.step_scale)
        seconds = line["seconds"] + time.perf_counter() - started
        return processes.from_main({**line, **losses, **times(rollout, seconds)})

    def _gold(self, rollout: Rollout) -> float | None:
        if self.judge is None:
            return None
        mine = processes.share(len(rollout.prompts))
        judged = self.judge(rollout.prompts[mine], [answer.text for answer in rollout.answers[mine]])
        parts = processes.gathered(torch.as_tensor(judged, dtype=torch.float32, device="cpu"))
        return torch.cat(parts).mean().item()

    def _write_down(self, history: list[dict], rollout: Rollout) -> None:
        """Write the update down, and say what is newly wrong with it."""
        line = history[-1]
        line["warnings"] = warnings_of(history, self.config)
        if not processes.is_main():
            return
        self.record.add(line)
        for name, text in line["warnings"].items():
            if len(history) == 1 or name not in history[-2]["warnings"]:
                tqdm.write(visible(f"update {line['update'] + 1}: {text}"))
        if line["update"] % self.config.sample_every == 0 or len(history) == self.config.updates or self.finished:
            samples = self.record.add_samples(line["update"], rollout)
            self.samples_written += len(samples)
            tqdm.write(samples_table(samples))
        if self.on_update:
            self.on_update(line)

    def _adapt(self, line: dict) -> None:
        """The adaptive KL coefficient, and steps half as large for each update over the KL budget, back up below it."""
        config = self.config
        if config.kl_controller == "adaptive":
            self.kl_coefficient = adapted_kl_coefficient(
                self.kl_coefficient, line["kl"], config.kl_target, config.rollout_batch_size, config.kl_horizon
            )
        if config.kl_budget is not None and config.kl_budget_action == "shrink":
            over = line["kl"] > config.kl_budget
            self.step_scale = self.step_scale * 0.5 if over else min(1.0, self.step_scale * 2.0)

    def _over_budget(self, update: int, kl: float) -> bool:
        # At update 0 policy and reference are one model, whatever rounding says of their KL.
        return self.config.kl_budget is not None and update > 0 and kl > self.config.kl_budget

    def _keep_within_budget(self, update: int, kl: float, over: bool) -> None:
        """Remember the present policy where it is within the KL budget; where it is not and training goes on all the
        same, write down the last one that was."""
        if self.config.kl_budget is None:
            return
        if not over:
            self._last_within = None  # two of them at once would need twice the memory
            self._last_within = Snapshot(self.actor, update, kl)
        elif self._last_within:
            self.store.save_within_budget(self._last_within, self.actor, self.trained, self.tokenizer)
            self._last_within = None

    def _end_within_budget(self, history: list[dict], rollout: Rollout, line: dict) -> None:
        """End with the last policy within the KL budget. From the rollout of the one that has left it nothing is
        learnt; its figures are the last line of the metrics."""
        last = self._last_within
        last.put_back(self.actor)
        self.finished = True
        history.append(line)
        self._write_down(history, rollout)
        self._save(last.update, history, last.kl, on_request=False)

    def _save_where_due(self, history: list[dict], kl: float) -> bool:
        """Save the policy, of which `kl` has just been measured, where it is time to; returns whether training ends
        here."""
        update = len(history)
        self.finished, asked = update >= self.config.updates, stop_asked()
        due = self.finished or update % self.config.save_every == 0
        if update not in (0, self._saved_at) and (due or asked):
            self._save(update, history, kl, on_request=not due)
        return self.finished or asked

    def _check_context(self, texts: Sequence[str]) -> None:
        limit = getattr(self.actor.policy.config, "max_position_embeddings", None)
        longest = max(map(len, start_tokens(self.tokenizer, texts)))
        if limit and longest + self.config.max_new_tokens > limit:
            raise InputError(
                f"the longest prompt has {longest} tokens and ppo.max_new_tokens is {self.config.max_new_tokens}, but "
                f"the policy's context is {limit}; lower data.max_prompt_tokens or ppo.max_new_tokens"
            )

    def _check_first(self, rollout: Rollout) -> None:
        """Before the first step policy and reference are the same model, so the KL of every token has to be 0."""
        difference = masked_mean((rollout.logprobs - rollout.reference_logprobs).square(), rollout.mask) ** 0.5
        if difference > SAME[self.device.precision]:
            raise TrainingError(
                f"update 0: policy and reference differ by {difference:.2g} nats per token although they are the same "
                "model; padding, positions or dropout are handled differently in sampling and in scoring"
            )

    def _settings(self) -> dict:
        settings = self.config.model_dump(mode="json", exclude=_FREE_SETTINGS)
        return {**settings, "prompts": self._prompts_hash}

    def _save(self, update: int, history: list[dict], kl: float, on_request: bool) -> None:
        state = {
            "kl": kl,
            "lines": len(history),
            "finished": self.finished,
            "kl_coefficient": self.kl_coefficient,
            "step_scale": self.step_scale,
            "samples_written": self.samples_written,
            "settings": self._settings(),
            "on_request": on_request,
        }
        self.store.save(update, self.accelerator, self.actor, self.trained, self.tokenizer, state)
        if processes.is_main():
            self.store.thin(update, history, self.config.kl_budget)
        self._saved_at = update

    def _restore(self) -> list[dict]:
        state = self.store.restore(self.accelerator, self.actor, self._check_settings)
        if state is None:
            return self._start_over()
        self.kl_coefficient, self.step_scale = state["kl_coefficient"], state["step_scale"]
        self.samples_written, self.finished = state["samples_written"], state["finished"]
        self._saved_at, kl = state["update"], state["kl"]
        self._last_within = None if self._over_budget(self._saved_at, kl) else Snapshot(self.actor, self._saved_at, kl)
        lines = self.record.cut(state["lines"], self.samples_written) if processes.is_main() else []
        return processes.from_main(lines)

    def _check_settings(self, checkpoint: Path, state: dict) -> None:
        before, now = state.get("settings", {}), self._settings()
        changed = [f"{key} {before.get(key)!r} -> {now[key]!r}" for key in now if before.get(key) != now[key]]
        if changed:
            raise InputError(
                f"{checkpoint} was made with other settings ({', '.join(changed[:3])}); use those, another output_dir, "
                "or resume=False to train anew"
            )

    def _start_over(self) -> list[dict]:
        if processes.is_main():
            self.store.clear()
            self.record.clear()
        processes.wait()
        # The weights may be those of an earlier `train`, or of a damaged checkpoint that was read in part.
        self.trained.reset()
        reset_critic(self.actor, self.critic, self.device)
        self.learner.optimizer.state.clear()
        self._begin()
        return []

    def _begin(self) -> None:
        self.kl_coefficient, self.step_scale, self.samples_written = self.config.kl_coefficient, 1.0, 0
        # The update of the newest checkpoint, and the last policy that was measured to be within the KL budget.
        self._saved_at: int | None = None
        self._last_within: Snapshot | None = None
        self.finished = False


def _accelerator(device: Device) -> Accelerator:
    """accelerate in this device's precision, whatever else this process has trained in before: accelerate keeps one
    state for all, and refuses to change it."""
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision=device.precision.replace("fp32", "no"), cpu=device.kind == "cpu")
