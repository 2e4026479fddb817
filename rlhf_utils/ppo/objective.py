"""The mathematics of PPO on whole responses: pure functions on tensors, no model and no state.

Shapes: B episodes, R response positions (padded to the longest response). `mask` is [B, R], True at the tokens of the
response, its EOS included; what stands outside it never enters a result. Logarithms are natural, so KL is in nats.
"""

from typing import Literal

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` [B, R] over the positions where `mask` is True; a scalar. The mask must not be empty."""
    return values.masked_fill(~mask, 0.0).sum() / mask.sum()


def masked_whiten(values: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """`values` [B, R] shifted and scaled to mean 0 and (biased) variance 1 over the mask; 0 outside it."""
    centred = values - masked_mean(values, mask)
    variance = masked_mean(centred.square(), mask)
    return (centred * torch.rsqrt(variance + epsilon)).masked_fill(~mask, 0.0)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: Literal["k1", "k3"]) -> Tensor:
    """Per-token estimate of KL(policy || reference) from tokens that the policy sampled; same shape as the inputs.

    With d = log pi(a) - log pi_ref(a) (Schulman 2020, http://joschu.net/blog/kl-approx.html):
    k1 = d              unbiased; single tokens may be negative, the mean over many must not be
    k3 = e^-d - 1 + d   unbiased, never negative; as a penalty in the reward its gradient is not that of the KL
    """
    difference = logprobs - reference_logprobs
    return difference if estimator == "k1" else torch.expm1(-difference) + difference


def shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Reward per token [B, R]: minus the KL penalty everywhere, plus the episode's score [B] at its last token.

    R(x, y) = r(x, y) - beta * log(pi(y|x) / pi_ref(y|x)), Ziegler et al. 2019, arXiv:1909.08593, equation 2.
    """
    rewards = (-kl_coefficient * kl).masked_fill(~mask, 0.0)
    rewards[torch.arange(len(scores), device=scores.device), mask.sum(dim=1) - 1] += scores
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation; two tensors [B, R], 0 outside the mask.

    A_t = delta_t + gamma * lambda * A_{t+1},  delta_t = r_t + gamma * V_{t+1} - V_t,  with V = 0 after the last token
    (Schulman et al. 2016, arXiv:1506.02438, equation 16). Returns are A_t + V_t.
    """
    rewards, values = rewards.masked_fill(~mask, 0.0), values.masked_fill(~mask, 0.0)
    following = torch.zeros_like(values)
    following[:, :-1] = values[:, 1:]
    deltas = rewards + gamma * following - values
    advantages, running = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for step in range(values.shape[1] - 1, -1, -1):
        # Positions after a response's end hold 0 for reward and value, so nothing reaches back from them.
        running = deltas[:, step] + gamma * gae_lambda * running
        advantages[:, step] = running
    advantages = advantages.masked_fill(~mask, 0.0)
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate, a mean over the tokens of the mask, and the share of them where the clip binds; inputs
    [B, R], outputs scalars.

    L = -mean(min(rho * A, clip(rho, 1 - eps, 1 + eps) * A)), rho = exp(logprobs - old_logprobs)
    (Schulman et al. 2017, arXiv:1707.06347, equation 7).
    """
    ratio = (logprobs - old_logprobs).masked_fill(~mask, 0.0).exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages
    loss = -masked_mean(torch.minimum(unclipped, clipped), mask)
    return loss, masked_mean((clipped < unclipped).float(), mask)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the value head, a mean over the tokens of the mask, and the share of them where the
    clip binds; inputs [B, R], outputs scalars.

    With a clip range the larger of the errors of V and of clip(V, V_old - eps, V_old + eps) counts, as in the original
    PPO code (Huang et al. 2022, "The 37 implementation details of PPO", detail 9).
    """
    error = clipped_error = (values - returns).square()
    if clip_range is not None:
        clipped_error = (old_values + (values - old_values).clamp(-clip_range, clip_range) - returns).square()
    loss = 0.5 * masked_mean(torch.maximum(error, clipped_error), mask)
    return loss, masked_mean((clipped_error > error).float(), mask)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is a perfect value head, 0 one no better than a
    constant; NaN where the returns do not vary."""
    residual, target = (returns - values)[mask].var(unbiased=False), returns[mask].var(unbiased=False)
    return (1.0 - residual / target).item() if target > 0 else float("nan")


def adapted_kl_coefficient(coefficient: float, kl: float, target: float, episodes: int, horizon: float) -> float:
    """The KL coefficient after an update that measured `kl` nats per response over `episodes` episodes.

    beta <- beta * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon) (Ziegler et al. 2019, section 2.2).
    """
    error = min(max(kl / target - 1.0, -0.2), 0.2)
    return coefficient * (1.0 + error * episodes / horizon)
