"""Reward functions: `(prompts, responses) -> FloatTensor[n]`, both lists of plain text."""

import importlib

_MODULES = {
    "reward_model": ("ClassifierReward", "RewardModel", "load_reward"),
    "terms": ("FluencyReward", "LengthPenalty", "RewardFunction", "RewardMixture"),
}
__all__ = sorted(name for names in _MODULES.values() for name in names)


def __getattr__(name: str):
    # Imported when they are asked for: torch and transformers take seconds.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
