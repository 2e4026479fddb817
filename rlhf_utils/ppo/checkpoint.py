"""PPO checkpoints: complete or not there, newest kept for resuming, earlier policies kept for the frontier.

checkpoints/update-000016/policy/     the policy, loads with from_pretrained; the value head lies beside it
checkpoints/update-000016/training/   accelerate's state: weights with value head, optimizer, random numbers
checkpoints/update-000016/state.json  where the loop stands; written last, so its presence means complete
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from rlhf_utils.files import read_json, whole_folder, write_json
from rlhf_utils.models import save_model
from rlhf_utils.ppo.actor_critic import ActorCritic

VALUE_HEAD_FILE = "value_head.safetensors"


class CheckpointStore:
    """The checkpoints of one PPO training in `folder`."""

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep

    def save(
        self, update: int, accelerator: Accelerator, actor: ActorCritic, tokenizer: PreTrainedTokenizerBase, state: dict
    ) -> Path:
        """Write the checkpoint after `update` updates; `state` is the JSON-able rest of the loop's state."""
        target = self.folder / f"update-{update:06d}"
        with whole_folder(target) as folder:
            save_model(actor.policy, tokenizer, folder / "policy")
            head = {name: tensor.detach().cpu().contiguous() for name, tensor in actor.value_head.state_dict().items()}
            save_file(head, folder / "policy" / VALUE_HEAD_FILE)
            accelerator.save_state(str(folder / "training"))
            write_json(folder / "state.json", {"update": update, **state})
        self._thin(target)
        return target

    def restore(self, accelerator: Accelerator) -> dict | None:
        """Load the newest complete checkpoint into what `accelerator` prepared; returns its state, None without one."""
        for folder in reversed(self.policies()):
            if not (folder / "training").is_dir():
                continue
            try:
                state = read_json(folder / "state.json")
                accelerator.load_state(str(folder / "training"))
            except Exception as error:  # whatever a half-written file makes a reader raise
                warnings.warn(
                    f"checkpoint {folder} is damaged ({type(error).__name__}: {error}); trying the one before",
                    stacklevel=2,
                )
                continue
            return state
        return None

    def policies(self) -> list[Path]:
        """Folders of all complete checkpoints, oldest first; each has a `policy` folder."""
        return sorted(path.parent for path in self.folder.glob("update-*/state.json"))

    def clear(self) -> None:
        """Remove every checkpoint."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _thin(self, newest: Path) -> None:
        # A damaged checkpoint that was passed over may lie ahead of the newest one; it must not count as kept.
        for folder in [path for path in self.policies() if path.name <= newest.name][: -self.keep]:
            shutil.rmtree(folder / "training", ignore_errors=True)
