"""On a CPU: whether a model computes faster in bf16. Some CPUs multiply in bf16 several times as fast as in fp32, some
at half of it, and what of that is left in a whole pass depends on the model; so a pass is measured."""

import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from rlhf_utils.models.language_model import unwrapped
from rlhf_utils.platforms.runtime import Device

# Below this width (GPT-2: 768) a pass is more than its products, and small models give the same numbers on every CPU.
_LEAST_WIDTH = 512
# bf16 has to be so many times faster, or the time of day could decide.
_FASTER = 1.3
# The most that rounding may change the last states by, as a share of their own size (root mean squares).
_SAME = 0.1
_measured: dict[tuple, bool] = {}


def fastest(device: Device, model: nn.Module, learning: bool = False) -> Device:
    """`device`, with precision bf16 where it is a CPU, nobody has asked for a precision, and a pass of the language
    model or classifier `model`, with `learning` forward and backward, is clearly faster in bf16 and gives nearly the
    same states. Measured once per process and architecture, in some seconds for GPT-2."""
    config = unwrapped(model).config.get_text_config()
    width, layers = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    if device.kind != "cpu" or device.precision != "fp32" or device.fixed or width < _LEAST_WIDTH:
        return device
    half = replace(device, precision="bf16")
    if (key := (config.model_type, width, layers, learning)) not in _measured:
        (slow, exact), (fast, rounded) = (_pass(one, model, learning) for one in (device, half))
        error = (rounded - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        _measured[key] = slow > _FASTER * fast and error.item() < _SAME
    return half if _measured[key] else device


def _pass(device: Device, model: nn.Module, learning: bool) -> tuple[float, Tensor]:
    """The least seconds of three passes over 8 x 32 tokens, and the states [8, 32, D] they give."""
    inner, seconds = unwrapped(model), []
    tokens = torch.arange(256).view(8, 32) % inner.config.get_text_config().vocab_size
    weights = [p for p in model.parameters() if p.requires_grad]
    was_training = model.training
    model.eval()
    for _ in range(3):
        start = time.perf_counter()
        with device.autocast(), torch.set_grad_enabled(learning):
            states = inner.base_model(input_ids=tokens).last_hidden_state.float()
        if learning:
            torch.autograd.grad(states.square().mean(), weights, allow_unused=True)
        seconds.append(time.perf_counter() - start)
    model.train(was_training)
    return min(seconds), states.detach()
