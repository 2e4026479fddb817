"""Where the code runs: Colab, Kaggle or a local machine; which device, precision and folders. Does not import torch:
`prepare_environment` has to come first."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_utils.platforms.errors import InputError
from rlhf_utils.platforms.files import disk_errors, read_json, write_json

if TYPE_CHECKING:
    import torch

# Which GPUs there were before `prepare_environment`, as in CUDA_VISIBLE_DEVICES; for those who want all of them.
ALL_GPUS = "RLHF_ALL_GPUS"
# Set by the series when it executes notebooks with nobody there to click.
HEADLESS = "RLHF_HEADLESS"
DRIVE = Path("/content/drive")
# What is chosen for its speed has to be so many times faster, or the time of day could decide.
FASTER = 1.3


def platform_name() -> Literal["colab", "kaggle", "local"]:
    """Which notebook service this process runs on."""
    # Asked first: Kaggle's image is made from Colab's and sets Colab's variables too.
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules else "local"


def is_attended() -> bool:
    """Whether this is a notebook's kernel with somebody in front of it; papermill forbids its kernels to ask."""
    if HEADLESS in os.environ or "IPython" not in sys.modules:
        return False
    kernel = getattr(sys.modules["IPython"].get_ipython(), "kernel", None)
    return bool(getattr(kernel, "_allow_stdin", False))


def check_drive(folder: Path) -> None:
    """Raise InputError where `folder` lies on Drive, this is Colab, and Drive is not mounted: a folder made there would
    be lost with the session, and would keep Drive from being mounted later."""
    if platform_name() == "colab" and DRIVE in folder.parents and not (DRIVE / "MyDrive").is_dir():
        told, code = f"{folder} is on Google Drive", f"from google.colab import drive; drive.mount('{DRIVE}')"
        raise InputError(f"{told}, which is not mounted: run `{code}` in a cell, or choose an output_dir outside of it")


def prepare_environment() -> None:
    """Process-wide settings that must be made before torch and the Hugging Face libraries are imported."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # One GPU only, unless a launcher gave this process its own: with two (Kaggle's T4 x2) transformers wraps the model
    # in DataParallel, which trl refuses.
    if "LOCAL_RANK" not in os.environ:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ.setdefault(ALL_GPUS, "all" if visible is None else visible)
        os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
    if token := hub_token():
        os.environ["HF_TOKEN"] = token


def quiet_libraries() -> None:
    """Keep loading bars, and warnings about our dependencies' own code, out of the notebooks."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # "score.weight is newly initialized" is exactly what a fresh reward head is.
    transformers.logging.set_verbosity_error()
    # Every checkpoint of a model with tied embeddings would announce that they are stored once.
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    # Checkpoints of one second: they are told apart by their numbers, as it says.
    warnings.filterwarnings("ignore", message="mtime may not be reliable")
    # transformers 5.23 renamed these; the lowest version we support has only the old names.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)


def hub_token() -> str | None:
    """The Hugging Face token from `HF_TOKEN`, Colab's user data or Kaggle's secrets, in this order; None without."""
    if token := os.environ.get("HF_TOKEN"):
        return token
    with suppress(Exception):  # what a secret that is not there raises has changed over the years
        # Outside Colab's own page `userdata.get` blocks for a while and then fails.
        if platform_name() == "colab" and is_attended():
            from google.colab import userdata  # type: ignore[import-not-found]

            return userdata.get("HF_TOKEN")
        if platform_name() == "kaggle":
            from kaggle_secrets import UserSecretsClient  # type: ignore[import-not-found]

            return UserSecretsClient().get_secret("HF_TOKEN")
    return None


@dataclass(frozen=True)
class Device:
    """The device to compute on and the precision it does well, or that was asked for: `fixed`."""

    kind: Literal["cpu", "cuda", "meta"]
    name: str
    precision: Literal["fp32", "bf16", "fp16"]
    memory_bytes: int
    fixed: bool = False

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The dtype for autocast over fp32 weights, None where everything stays in fp32."""
        import torch

        return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def autocast(self) -> torch.autocast:
        """The block computes in this device's precision, whatever autocast it stands in."""
        import torch

        return torch.autocast(self.kind, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)


def _keep_freed_memory() -> None:
    """Let this process keep what it frees of tensors up to 32 MB. glibc takes each large tensor from the system and
    gives it back, and the system clears all of its pages again for the next one. What is larger would leave holes."""
    m_trim_threshold, m_mmap_threshold = -1, -3  # as in malloc.h
    with suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**25)
        ctypes.CDLL(None).mallopt(m_trim_threshold, -1)


_trimmed = 0.0


def give_back_memory() -> None:
    """Give what this process keeps back to the system: between tensors that live on, more and more of it lies where
    nothing fits. Between two steps of a training, and only every few seconds, it costs nothing to speak of."""
    global _trimmed
    if (now := time.monotonic()) > _trimmed + 4.0:
        _trimmed = now
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _multiply_fast() -> None:
    """Let oneDNN multiply in fp32 where MKL, PyTorch's usual way on x86, is clearly slower: it takes twice as long on
    AMD's CPUs with AVX512. PyTorch asks oneDNN where it may round to bf16, which oneDNN does on CPUs with AMX alone;
    there nothing changes. Attention is then computed by such products too, which is faster up to some 300 tokens: its
    fused kernel multiplies in small blocks. Measured once per machine; without a cache folder nothing changes."""
    import torch

    if torch.get_float32_matmul_precision() != "highest":
        return  # chosen already
    with suppress(InputError, OSError, NotImplementedError), cache_entry(f"products/{machine_name()}.json") as path:
        if not path.is_file():
            (slow, _), (fast, error) = _product("highest"), _product("medium")
            write_json(path, {"usual_seconds": slow, "onednn_seconds": fast, "onednn_error": error})
        found = read_json(path)
        if found["usual_seconds"] > FASTER * found["onednn_seconds"] and found["onednn_error"] < 1e-5:
            torch.set_float32_matmul_precision("medium")
            torch.backends.cuda.enable_flash_sdp(False)  # of CPUs too, despite its name


def _product(precision: str) -> tuple[float, float]:
    """The least seconds of a product of a 124 M model's size with PyTorch's `precision`, and its relative error."""
    import torch

    left, right = torch.arange(512.0 * 768).sin().view(512, 768), torch.arange(768.0 * 3072).cos().view(768, 3072)
    seconds = []
    torch.set_float32_matmul_precision(precision)
    for _ in range(7):
        started = time.perf_counter()
        product = left @ right
        seconds.append(time.perf_counter() - started)
    torch.set_float32_matmul_precision("highest")
    exact = left.double() @ right.double()
    return min(seconds), ((product - exact).norm() / exact.norm()).item()


def machine_name(*more) -> str:
    """A file name for what is measured once per CPU, version of PyTorch and number of threads, and once for `more`."""
    import torch

    if (about := Path("/proc/cpuinfo")).is_file():  # on Linux Python only knows the kind
        first = about.read_text().partition("\n\n")[0].splitlines()  # of all cores, which are alike
        cpu = "".join(line for line in first if line.startswith(("model name", "flags", "CPU part", "Features")))
    else:
        cpu = platform.processor()
    return hashlib.sha256(repr([cpu, torch.__version__, torch.get_num_threads(), *more]).encode()).hexdigest()[:16]


def detect_device(precision: str = "auto") -> Device:
    """The device of this process.

    Compute capability 8.0 and above computes in bf16, 7.0 to 7.5 (V100, T4) in fp16, a CPU in fp32 (`models.precision`
    knows of models that it computes faster in bf16). GPUs below 7.0 (P100) are refused. On a CPU the process keeps most
    of the memory it frees from then on, and multiplies in the way that is the fastest there.
    """
    import psutil
    import torch

    # `accelerate launch --cpu` on a machine with a GPU
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" or not torch.cuda.is_available():
        if precision == "fp16":
            raise InputError("precision fp16 needs a GPU; use precision auto, fp32 or bf16 on a CPU")
        _keep_freed_memory()
        _multiply_fast()
        chosen = "fp32" if precision == "auto" else precision
        memory, fixed = psutil.virtual_memory().total, precision != "auto"
        return Device("cpu", f"CPU, {torch.get_num_threads()} threads", chosen, memory, fixed)
    found = torch.cuda.get_device_properties(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if found.major < 7:
        told = f"{found.name} has compute capability {found.major}.{found.minor}, for which PyTorch has no kernels"
        raise InputError(f"{told}; choose a T4 or newer (Kaggle: Settings > Accelerator > GPU T4 x2)")
    if precision == "bf16" and found.major < 8:
        raise InputError(f"{found.name} only emulates bf16; use precision auto or fp16")
    best = "bf16" if found.major >= 8 else "fp16"
    return Device("cuda", found.name, best if precision == "auto" else precision, found.total_memory)


def cache_folder() -> Path:
    """Folder for what is made once per machine: `$RLHF_CACHE`, else `rlhf_utils` in the user's cache folder."""
    chosen = os.environ.get("RLHF_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "rlhf_utils")
    return Path(os.path.expanduser(chosen))


@contextmanager
def cache_entry(name: str) -> Iterator[Path]:
    """The folder `name` of the cache, which need not be there yet; a second process that wants it waits for the block.
    Raises InputError where the cache cannot be written."""
    from filelock import FileLock

    folder = cache_folder() / name
    with disk_errors(folder, "name another place for the cache in the environment variable RLHF_CACHE"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            yield folder


def forget_peak() -> None:
    """Have `peak_memory` count from here on, without what is free. Of the resident memory that is possible on Linux
    alone."""
    import torch

    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> tuple[int, int | None]:
    """The most bytes that this process has used so far: resident, and on the GPU where there is one."""
    import resource

    import torch

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return resident, torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
