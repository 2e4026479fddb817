"""Where the code runs: Colab, Kaggle or a local machine; which device, precision and folders.

Importing this module does not import torch: `pin_one_gpu` has to come first.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_utils.errors import InputError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "bf16", "fp16"]
# Which GPUs there were before `pin_one_gpu`, as in CUDA_VISIBLE_DEVICES; for those who want all of them after all.
ALL_GPUS = "RLHF_ALL_GPUS"


def platform_name() -> Literal["colab", "kaggle", "local"]:
    """Which notebook service this process runs on."""
    if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules:
        return "colab"
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "local"


def prepare_environment() -> None:
    """Process-wide settings that must be made before torch and the Hugging Face libraries are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    pin_one_gpu()
    token = hub_token()
    if token:
        os.environ.setdefault("HF_TOKEN", token)


def quiet_libraries() -> None:
    """Keep notices that concern nobody out of the notebooks: loading bars, and warnings about our dependencies' own
    code."""
    import logging
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # "score.weight is newly initialized" is exactly what a fresh reward head is.
    transformers.logging.set_verbosity_error()
    # Every checkpoint of a model with tied embeddings would announce that they are stored once.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # transformers 5.23 renamed these; the lowest version we support has only the old names.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def pin_one_gpu() -> None:
    """Show torch one GPU only, unless a launcher gave this process its own.

    With two visible GPUs and no launcher (Kaggle's T4 x2) transformers wraps the model in DataParallel, which trl
    refuses.
    """
    if "LOCAL_RANK" not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if ALL_GPUS not in os.environ:
            os.environ[ALL_GPUS] = visible if visible is not None else "all"
        os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]


def hub_token() -> str | None:
    """The Hugging Face token: from `HF_TOKEN`, Colab's user data or Kaggle's secrets, in this order; None without
    one."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    # Outside Colab's own page `userdata.get` blocks, so it is asked only inside a real kernel of that page.
    if platform_name() == "colab" and "google.colab" in sys.modules:
        from google.colab import userdata  # type: ignore[import-not-found]

        try:
            return userdata.get("HF_TOKEN")
        except (userdata.SecretNotFoundError, userdata.NotebookAccessError):
            return None
    if platform_name() == "kaggle":
        from kaggle_secrets import BackendError, UserSecretsClient  # type: ignore[import-not-found]

        try:
            return UserSecretsClient().get_secret("HF_TOKEN")
        except (BackendError, ConnectionError):
            return None
    return None


@dataclass(frozen=True)
class Device:
    """The device to compute on and the precision it does well."""

    kind: Literal["cpu", "cuda"]
    name: str
    precision: Precision
    memory_bytes: int

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype for autocast over fp32 weights, None where everything stays in fp32."""
        import torch

        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    @property
    def trainer_flags(self) -> dict[str, bool]:
        """`bf16`, `fp16` and `use_cpu` for transformers and trl; trl's own default, bf16=True, fails on CPUs and
        old GPUs."""
        return {"bf16": self.precision == "bf16", "fp16": self.precision == "fp16", "use_cpu": self.kind == "cpu"}


def detect_device(precision: str = "auto") -> Device:
    """The device of this process.

    Compute capability 8.0 and above computes in bf16, 7.0 to 7.5 (V100, T4) in fp16, a CPU in fp32, which is the same
    on every CPU. GPUs below 7.0 (P100) are refused: current PyTorch wheels have no kernels for them.
    """
    import psutil
    import torch

    # `accelerate launch --cpu` on a machine with a GPU
    told_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if told_cpu or not torch.cuda.is_available():
        if precision == "fp16":
            raise InputError("precision fp16 needs a GPU; use precision auto, fp32 or bf16 on a CPU")
        chosen = "fp32" if precision == "auto" else precision
        return Device("cpu", f"CPU, {torch.get_num_threads()} threads", chosen, psutil.virtual_memory().total)
    properties = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if properties.major < 7:
        raise InputError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}, which current PyTorch no "
            "longer supports; choose a T4 or newer (Kaggle: Settings > Accelerator > GPU T4 x2)"
        )
    if precision == "bf16" and properties.major < 8:
        raise InputError(f"{properties.name} only emulates bf16; use precision auto or fp16")
    best = "bf16" if properties.major >= 8 else "fp16"
    return Device("cuda", properties.name, best if precision == "auto" else precision, properties.total_memory)


def cache_folder() -> Path:
    """Folder for what is made once per machine: `$RLHF_CACHE`, else `rlhf_utils` in the user's cache folder."""
    if chosen := os.environ.get("RLHF_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rlhf_utils"


def peak_memory_bytes() -> int:
    """Highest memory use of this process so far: on the GPU where there is one, else resident memory."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
