"""PPO checkpoints: complete or not there, newest kept for resuming, earlier policies kept for the frontier.

checkpoints/update-000016/policy/     the policy, loads with from_pretrained; the value head lies beside it
checkpoints/update-000016/training/   what learns (safetensors), and accelerate's state: optimizer, random numbers
checkpoints/update-000016/state.json  where the loop stands; written last, so its presence means complete
checkpoints/within-budget/            of a training that goes on over its KL budget: the last policy within it, and
                                      state.json; nothing to resume from
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, whole_folder, write_json
from rlhf_utils.ppo.actor_critic import ActorCritic
from rlhf_utils.ppo.policies import Policy

VALUE_HEAD_FILE = "value_head.safetensors"
WEIGHTS_FILE = "trainable.safetensors"


def update_name(update: int) -> str:
    """The folder's name of the policy after `update` updates."""
    return f"update-{update:06d}"


class Snapshot:
    """What learns as it is after `update` updates, in the CPU's memory, and the KL that was measured of it."""

    def __init__(self, actor: ActorCritic, update: int, kl: float):
        self.update, self.kl = update, kl
        self._weights = {name: p.detach().to("cpu", copy=True) for name, p in _trainable(actor).items()}

    def put_back(self, actor: ActorCritic) -> None:
        """Make `actor` what it was."""
        _load(actor, self._weights)


class CheckpointStore:
    """The checkpoints of one PPO training in `folder`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.within_budget = folder / "within-budget"

    def save(
        self,
        update: int,
        accelerator: Accelerator,
        actor: ActorCritic,
        policy: Policy,
        tokenizer: PreTrainedTokenizerBase,
        state: dict,
    ) -> Path:
        """Write the checkpoint after `update` updates; `state` is the JSON-able rest of the loop's state.

        Every process calls it: the main one writes, and each of the others its own random state.
        """
        target, main = self.folder / update_name(update), processes.is_main()
        with whole_folder(target) if main else contextlib.nullcontext() as folder:
            if main:
                _save_policy(folder / "policy", actor, policy, tokenizer)
            folder = processes.from_main(folder)
            # Frozen weights, which may be in 4 bits, are the policy's own and need no copy here.
            hook = accelerator.register_save_state_pre_hook(lambda models, weights, _: weights.clear())
            try:
                accelerator.save_state(str(folder / "training"))
            finally:
                hook.remove()
            processes.wait()
            if main:
                save_file(_on_cpu(_trainable(actor)), folder / "training" / WEIGHTS_FILE)
                write_json(folder / "state.json", {"update": update, **state})
        processes.wait()
        return target

    def save_within_budget(
        self, last: Snapshot, actor: ActorCritic, policy: Policy, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Write `last` as the last policy within the KL budget, in place of an earlier one; `actor` stays as it is."""
        if not processes.is_main():
            return
        now = Snapshot(actor, 0, 0.0)
        last.put_back(actor)
        with whole_folder(self.within_budget) as folder:
            _save_policy(folder / "policy", actor, policy, tokenizer)
            write_json(folder / "state.json", {"update": last.update, "kl": last.kl})
        now.put_back(actor)

    def restore(self, accelerator: Accelerator, actor: ActorCritic, check: Callable[[Path, dict], None]) -> dict | None:
        """Load the newest complete checkpoint into what `accelerator` prepared; returns its state, None without one.

        A damaged one is passed over with a warning. `check(folder, state)` raises InputError for one of another
        training.
        """
        for folder in reversed(self.policies()):
            if not (folder / "training").is_dir():
                continue
            failure = None
            try:
                state = read_json(folder / "state.json")
                weights = load_file(folder / "training" / WEIGHTS_FILE)
            except (InputError, OSError, SafetensorError) as error:
                failure = error
            if self._passes_over(folder, failure):
                continue
            check(folder, state)
            hook = accelerator.register_load_state_pre_hook(lambda models, _: models.clear())
            try:
                _load(actor, weights)
                accelerator.load_state(str(folder / "training"))
            except Exception as error:  # whatever a half-written file makes a reader raise
                failure = error
            finally:
                hook.remove()
            if self._passes_over(folder, failure):
                continue
            if processes.is_main():
                self._forget_later(state["update"])
            return state
        return None

    def policies(self) -> list[Path]:
        """Folders of all complete checkpoints, oldest first; each has a `policy` folder."""
        return sorted(path.parent for path in self.folder.glob("update-*/state.json"))

    def measured(self) -> dict[int, tuple[Path, float]]:
        """Each policy of `policies`, and the last one within the budget, by its update: its folder, and its KL as
        training measured it, in nats per answer at the temperature of the training."""
        files = [folder / "state.json" for folder in (self.within_budget, *self.policies())]
        states = [(read_json(file), file.parent / "policy") for file in files if file.is_file()]
        return dict(sorted((state["update"], (policy, state["kl"])) for state, policy in states))

    def clear(self) -> None:
        """Remove every checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def best(self, history: Sequence[dict], budget: float | None) -> Path | None:
        """The saved policy of highest measured gold (reward where nobody judged) whose KL is within `budget` nats.

        None where none is known to be.

        Update N measures the policy after N updates before anything is learnt from it, so what is known of checkpoint
        N stands in line N of the metrics. The last checkpoint of a full training has no such line.
        """
        measured = [
            (line["reward"] if (line := history[update])["gold"] is None else line["gold"], folder)
            for folder in self.policies()
            if (update := int(folder.name.split("-")[1])) < len(history)
            and (budget is None or history[update]["kl"] <= budget)
        ]
        return max(measured)[1] if measured else None

    def thin(self, update: int, history: Sequence[dict], budget: float | None) -> None:
        """Remove what resuming needs from all but the newest `keep` checkpoints, of which that after `update` updates
        is the last, and the best; every policy stays.

        A checkpoint that was only made because somebody asked to stop goes altogether, so that an interrupted training
        leaves the same policies as one in one go.
        """
        newest = self.folder / update_name(update)
        # A damaged checkpoint that was passed over may lie ahead of the newest one; it must not count as kept.
        for folder in self.policies():
            if folder.name < newest.name and read_json(folder / "state.json").get("on_request"):
                shutil.rmtree(folder)
        old = [path for path in self.policies() if path.name <= newest.name][: -self.keep]
        best = self.best(history, budget)
        for folder in old:
            if folder != best:
                shutil.rmtree(folder / "training", ignore_errors=True)

    def _forget_later(self, update: int) -> None:
        """Remove the last policy within the budget where a training that goes on from `update` makes it again."""
        file = self.within_budget / "state.json"
        if file.is_file() and read_json(file)["update"] >= update:
            shutil.rmtree(self.within_budget)

    def _passes_over(self, folder: Path, failure: Exception | None) -> bool:
        """Whether any process failed to read `folder`: all of them have to go on from the same checkpoint."""
        reasons = processes.gathered(f"{type(failure).__name__}: {failure}" if failure else None)
        reason = next((found for found in reasons if found), None)
        if reason and processes.is_main():
            warnings.warn(f"checkpoint {folder} is damaged ({reason}); trying the one before", stacklevel=3)
        return reason is not None


def _trainable(actor: ActorCritic) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in actor.named_parameters() if parameter.requires_grad}


def _save_policy(folder: Path, actor: ActorCritic, policy: Policy, tokenizer: PreTrainedTokenizerBase) -> None:
    policy.save(tokenizer, folder)
    save_file(_on_cpu(actor.value_head.state_dict()), folder / VALUE_HEAD_FILE)


def _on_cpu(tensors: dict) -> dict:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _load(actor: ActorCritic, weights: dict) -> None:
    parameters = _trainable(actor)
    if parameters.keys() != weights.keys():
        raise ValueError(f"{WEIGHTS_FILE} holds other weights than this training's")
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])
