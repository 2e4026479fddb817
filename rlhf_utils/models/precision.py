"""The precision of models. Whether a CPU computes one faster in bf16: some multiply in bf16 several times as fast as in
fp32, some at half of it, and what of that is left in a whole pass depends on the model; so a pass is measured."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_utils.models.language_model import unwrapped
from rlhf_utils.platforms.files import read_json, write_json
from rlhf_utils.platforms.runtime import FASTER, Device, cache_entry, machine_name

# Below this width (GPT-2: 768) a pass is more than its products.
_LEAST_WIDTH = 512
# The most that rounding may change the last states by, as a share of their own size (root mean squares).
_SAME = 0.1
_ROUNDS = 5
_measured: dict[tuple, bool] = {}


def fastest(device: Device, model: nn.Module, learning: bool = False) -> Device:
    """`device`, with precision bf16 where it is a CPU, nobody has asked for a precision, and a pass of the language
    model or classifier `model`, with `learning` forward and backward, is clearly faster in bf16 and gives nearly the
    same states. Measured once per machine, architecture and whether all weights, those of an adapter or none learn, in
    some seconds for GPT-2, and kept in the cache folder: a process that measured anew might decide otherwise."""
    config = unwrapped(model).config.get_text_config()
    width, layers = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    if device.kind != "cpu" or device.precision != "fp32" or device.fixed or width < _LEAST_WIDTH:
        return device
    half = replace(device, precision="bf16")
    learns = "nothing"
    if learning:
        learns = "all" if all(p.requires_grad for p in model.parameters()) else "a part"
    if (key := (config.model_type, width, layers, learns)) not in _measured:
        name = machine_name(torch.get_float32_matmul_precision(), *key)
        with cache_entry(f"precision/{name}.json") as path:
            if not path.is_file():
                # In turns: a moment in which the machine is busy with something else slows both down.
                rounds = [[_pass(one, model, learning) for one in (device, half)] for _ in range(_ROUNDS)]
                (_, exact), (_, rounded) = rounds[-1]
                error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
                ratios = [slow / fast for (slow, _), (fast, _) in rounds]
                write_json(path, {"model": key, "fp32_over_bf16_seconds": ratios, "error": error.item()})
            found = read_json(path)
        is_faster = statistics.median(found["fp32_over_bf16_seconds"]) > FASTER
        _measured[key] = is_faster and found["error"] < _SAME
    return half if _measured[key] else device


@contextmanager
def rounded_once(model: nn.Module) -> Iterator[None]:
    """In the block, frozen weights of `model`'s linear layers are in the precision of the autocast around it, which
    would round them at each use, and does so once with weights that learn: the same results but for the order of sums.
    The head computes in fp32 and stays as it is."""
    kind, kept = next(model.parameters()).device.type, []
    if torch.is_autocast_enabled(kind):
        head = {*getattr(unwrapped(model).get_output_embeddings(), "modules", tuple)()}
        layers = [layer for layer in model.modules() if type(layer) in (nn.Linear, Conv1D) and layer not in head]
        weights = [weight for layer in layers for weight in layer.parameters(recurse=False)]
        kept = [(w, w.data) for w in weights if w.dtype == torch.float32 and not w.requires_grad]
        turned = {layer.weight for layer in layers if type(layer) is Conv1D}
    try:
        for weight, data in kept:
            rounded = data.to(torch.get_autocast_dtype(kind))
            # A few rows by GPT-2's [in, out] take a CPU 1.7 times as long in 16 bits as by [out, in].
            weight.data = rounded.t().contiguous().t() if weight in turned else rounded
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _pass(device: Device, model: nn.Module, learning: bool) -> tuple[float, Tensor]:
    """The seconds of a pass over 8 x 64 tokens, and the states [8, 64, D] it gives. Of fewer tokens a pass would mostly
    round weights."""
    inner = unwrapped(model)
    tokens = torch.arange(512).view(8, 64) % inner.config.get_text_config().vocab_size
    weights = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval()
    start = time.perf_counter()
    with device.autocast(), torch.set_grad_enabled(learning):
        states = inner.base_model(input_ids=tokens).last_hidden_state.float()
    if learning:
        torch.autograd.grad(states.square().mean(), weights, allow_unused=True)
    seconds = time.perf_counter() - start
    model.train(was_training)
    return seconds, states.detach()
