"""PPO checkpoints: complete or not there, newest kept for resuming, earlier policies kept for the frontier.

checkpoints/update-000016/policy/     the policy, loads with from_pretrained; the value head lies beside it
checkpoints/update-000016/training/   what learns (safetensors), and accelerate's state: optimizer, random numbers
checkpoints/update-000016/state.json  where the loop stands; written last, so its presence means complete
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import read_json, whole_folder, write_json
from rlhf_utils.ppo.policies import ActorCritic, Policy

WEIGHTS_FILE = "trainable.safetensors"


def learning_weights(actor: ActorCritic) -> dict[str, Tensor]:
    """A copy, in the CPU's memory, of every weight that learns."""
    return {name: p.detach().to("cpu", copy=True) for name, p in actor.named_parameters() if p.requires_grad}


def put_back(actor: ActorCritic, weights: dict[str, Tensor]) -> None:
    """Give `actor` the weights that `learning_weights` copied."""
    parameters = {name: p for name, p in actor.named_parameters() if p.requires_grad}
    if parameters.keys() != weights.keys():
        raise ValueError(f"{WEIGHTS_FILE} holds other weights than this training's")
    for name, parameter in parameters.items():
        parameter.data.copy_(weights[name])


class CheckpointStore:
    """The checkpoints in `folder` of a training of `actor`, whose optimizer `accelerator` has prepared."""

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator, actor: ActorCritic):
        self.folder, self.keep, self.accelerator, self.actor = folder, keep, accelerator, actor

        # In place of whole models: frozen weights, which may be in 4 bits, are the policy's own and need no copy.
        def save(models: list, weights: list, training: str) -> None:
            weights.clear()
            if processes.is_main():
                save_file(learning_weights(actor), Path(training) / WEIGHTS_FILE)

        def load(models: list, training: str) -> None:
            models.clear()
            put_back(actor, load_file(Path(training) / WEIGHTS_FILE))

        accelerator.register_save_state_pre_hook(save)
        accelerator.register_load_state_pre_hook(load)

    def save(self, policy: Policy, tokenizer: PreTrainedTokenizerBase, state: dict) -> None:
        """Write the checkpoint after `state["update"]` updates; `state` is the JSON-able rest of the loop's state.

        Every process calls it: the main one writes, and each of the others its own random state.
        """
        main, place = processes.is_main(), self.folder / f"update-{state['update']:06d}"
        with whole_folder(place) if main else contextlib.nullcontext() as folder:
            if main:
                policy.save(tokenizer, folder / "policy")
                head = {name: tensor.cpu() for name, tensor in self.actor.value_head.state_dict().items()}
                save_file(head, folder / "policy" / "value_head.safetensors")
            folder = processes.from_main(folder)
            self.accelerator.save_state(str(folder / "training"))
            processes.wait()
            if main:
                write_json(folder / "state.json", state)
        if main:
            self.thin(place)
        processes.wait()

    def restore(self, settings: dict) -> dict | None:
        """Load the newest complete checkpoint; returns its state, None without one.

        A damaged one is passed over with a warning. Raises InputError for one that was made with other `settings`.
        """
        for folder in reversed([path for path in self.policies() if (path / "training").is_dir()]):
            failure = None
            try:
                state = read_json(folder / "state.json")
                before = state.get("settings", {})
                changed = [f"{k} {before.get(k)!r} -> {v!r}" for k, v in settings.items() if before.get(k) != v]
                if not changed:
                    self.accelerator.load_state(str(folder / "training"))
            except Exception as error:  # whatever a half-written file makes a reader raise
                failure, changed = repr(error), []
            if changed:
                raise InputError(
                    f"{folder} was made with other settings ({', '.join(changed[:3])}); use those, another output_dir, "
                    "or resume=False to train anew"
                )
            # Where any process failed to read it, all of them have to go on from the one before.
            if not (failures := [*filter(None, processes.gathered(failure))]):
                return state
            if processes.is_main():
                warnings.warn(f"checkpoint {folder} is damaged ({failures[0]}); trying the one before", stacklevel=2)
        return None

    def policies(self) -> list[Path]:
        """Folders of all complete checkpoints, oldest first; each has a `policy` folder."""
        return sorted(path.parent for path in self.folder.glob("update-*/state.json"))

    def measured(self) -> dict[int, tuple[Path, float]]:
        """Each saved policy by its update: its folder, and its KL as training measured it, in nats per response at the
        temperature of the training."""
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
