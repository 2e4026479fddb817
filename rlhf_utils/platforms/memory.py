"""Batches that fit: what runs out of memory is tried again with half the rows."""

from collections.abc import Callable
from typing import Any

from rlhf_utils.platforms import processes
from rlhf_utils.platforms.errors import TrainingError

# How cuBLAS and the driver say that they found no room beside PyTorch's own memory; accelerate does not know them.
_ALSO = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory")
# How many rows fitted in the memory of this process, by the name of what they were for.
_known: dict[str, int] = {}


def fitting(name: str, most: int, attempt: Callable[[int], Any], whole: int | None = None) -> Any:
    """`attempt(size)`, with half the size after each time that memory ran out.

    Begins with `most` rows, or with fewer where more are known not to fit. With `whole` every size divides it. Raises
    TrainingError where one row does not fit, or where other processes would wait for this one.
    """
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    size = min(most, _known.get(name, most))
    while True:
        if whole is not None:
            size = next(divisor for divisor in range(size, 0, -1) if whole % divisor == 0)
        try:
            return attempt(size)
        except Exception as error:
            if not (should_reduce_batch_size(error) or any(text in str(error) for text in _ALSO)):
                raise
            said = str(error).split("\n")[0][:200]
        # Only here, after the handler: until it is left, the traceback keeps the failed graph alive.
        clear_device_cache(garbage_collection=True)
        if size == 1 or processes.count() > 1:
            raise TrainingError(
                f"{name}: out of memory with {size} rows at once ({said}); set a smaller micro-batch (with several "
                "processes), gradient_checkpointing, shorter texts, or a smaller policy"
            )
        size = _known[name] = size // 2
        print(f"{name}: out of memory; continuing with {size} rows at once, the result stays the same", flush=True)
