"""The mathematics of PPO against the same formulas written as loops over Python floats."""

import math
import random

import pytest
import torch

from rlhf_utils.ppo import objective

WIDTH = 6
BATCHES = {
    "ragged": (1, 3, WIDTH, 2, 5),
    "one token each": (1, 1, 1),
    "all full": (WIDTH, WIDTH),
    "a batch of one": (4,),
    "one episode of one token": (1,),
}
POISON = float("nan")


@pytest.fixture(params=BATCHES.values(), ids=BATCHES.keys())
def lengths(request) -> tuple[int, ...]:
    return request.param


def mask_of(lengths) -> torch.Tensor:
    return torch.tensor([[step < length for step in range(WIDTH)] for length in lengths])


def numbers(lengths, seed: int, scale: float = 1.0) -> list[list[float]]:
    """Ragged random numbers, one list per episode."""
    source = random.Random(seed)
    return [[source.gauss(0, scale) for _ in range(length)] for length in lengths]


def tensor(rows: list[list[float]], padding: float = POISON) -> torch.Tensor:
    """As the code gets them, in float64, with `padding` where no token is."""
    return torch.tensor([row + [padding] * (WIDTH - len(row)) for row in rows], dtype=torch.float64)


def flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def assert_rows(result: torch.Tensor, rows: list[list[float]]) -> None:
    """Equal at the tokens, and 0 outside them."""
    torch.testing.assert_close(result, tensor(rows, 0.0), rtol=1e-12, atol=1e-12)


def test_masked_mean_ignores_what_stands_outside_the_mask(lengths):
    rows = numbers(lengths, 1)
    assert objective.masked_mean(tensor(rows), mask_of(lengths)).item() == pytest.approx(mean(flat(rows)), abs=1e-12)


def test_masked_whiten_gives_mean_zero_and_variance_one(lengths):
    rows = numbers(lengths, 2, 3.0)
    centre = mean(flat(rows))
    spread = math.sqrt(mean([(value - centre) ** 2 for value in flat(rows)]) + 1e-8)
    expected = [[(value - centre) / spread for value in row] for row in rows]
    assert_rows(objective.masked_whiten(tensor(rows), mask_of(lengths)), expected)
    if len(flat(rows)) > 1:
        assert mean([value**2 for value in flat(expected)]) == pytest.approx(1, abs=1e-6)


def categorical(seed: int, choices: int = 7) -> list[float]:
    source = random.Random(seed)
    weights = [source.expovariate(1.0) + 0.01 for _ in range(choices)]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("seed", range(2))
def test_kl_estimators_have_their_exact_expectation(seed):
    """Summing over every outcome instead of sampling: k1 and k3 are KL(policy || reference) itself."""
    policy, reference = categorical(seed), categorical(seed + 100)
    true = sum(p * (math.log(p) - math.log(q)) for p, q in zip(policy, reference, strict=True))
    reverse = sum(q * (math.log(q) - math.log(p)) for p, q in zip(policy, reference, strict=True))
    weights = torch.tensor(policy, dtype=torch.float64)
    logs = weights.log(), torch.tensor(reference, dtype=torch.float64).log()
    expectation = {name: (weights * objective.kl_estimate(*logs, name)).sum().item() for name in ("k1", "k3")}
    assert true > 0 and abs(true - reverse) > 1e-3, "these distributions would not tell the two directions apart"
    assert list(expectation.values()) == pytest.approx([true, true], abs=1e-12)
    assert objective.kl_estimate(*logs, "k1").min() < 0 <= objective.kl_estimate(*logs, "k3").min()


def test_a_small_kl_keeps_its_digits():
    """In fp32 exp(-d) - 1 + d would be lost in rounding here."""
    tiny = objective.kl_estimate(torch.tensor([1e-3]), torch.tensor([0.0]), "k3").item()
    assert tiny == pytest.approx(math.expm1(-1e-3) + 1e-3, rel=1e-3)


def test_the_gradient_of_a_k1_penalty_is_that_of_the_kl_and_that_of_k3_is_not():
    """Every answer of three tokens over four words, weighted by its probability: nothing is sampled.

    A penalty is a reward, a number that no gradient passes through; what moves the policy is the gradient of the
    answer's likelihood times what it was paid.
    """
    steps, words, beta, source = 3, 4, 0.7, torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(steps, words, words, generator=source, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()
    answers = torch.cartesian_prod(*[torch.arange(words)] * steps)
    # The word before decides the distribution of the next one; every answer begins after word 0.
    before = torch.cat([torch.zeros(len(answers), 1, dtype=torch.long), answers[:, :-1]], dim=1)
    logprobs, fixed = (torch.log_softmax(t, dim=-1)[torch.arange(steps), before, answers] for t in (logits, reference))
    weights = logprobs.detach().sum(dim=1).exp()
    true = (logprobs.sum(dim=1).exp() * (logprobs - fixed).sum(dim=1)).sum()
    [wanted] = torch.autograd.grad(-beta * true, logits, retain_graph=True)
    mask, found = torch.ones_like(answers, dtype=torch.bool), {}
    for name in ("k1", "k3"):
        penalty = objective.kl_estimate(logprobs.detach(), fixed, name)
        rewards = objective.shaped_rewards(torch.zeros(len(answers), dtype=torch.float64), penalty, mask, beta)
        advantages, _ = objective.advantages_and_returns(rewards, torch.zeros_like(rewards), mask, 1.0, 1.0)
        loss = objective.policy_loss(logprobs, logprobs.detach(), weights[:, None] * advantages, mask, 0.2)[0]
        [found[name]] = torch.autograd.grad(-loss * mask.sum(), logits, retain_graph=True)
    torch.testing.assert_close(found["k1"], wanted, rtol=1e-9, atol=1e-12)
    cosine = torch.nn.functional.cosine_similarity(found["k3"].flatten(), wanted.flatten(), dim=0)
    assert cosine < 0.95, "here k3 would do as well"


def test_shaped_rewards_pay_the_score_at_the_last_token_and_the_kl_everywhere(lengths):
    kl, scores, beta = numbers(lengths, 3), numbers([len(lengths)], 4, 2.0)[0], 0.3
    expected = []
    for row, score in zip(kl, scores, strict=True):
        paid = [-beta * value for value in row]
        paid[-1] += score
        expected.append(paid)
    given = torch.tensor(scores, dtype=torch.float64)
    assert_rows(objective.shaped_rewards(given, tensor(kl), mask_of(lengths), beta), expected)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0), (0.0, 0.95)])
def test_advantages_are_the_sum_of_discounted_errors(lengths, gamma, lam):
    """Against the definition as a double sum, A_t = sum_k (gamma lambda)^k delta_{t+k}, not the recursion."""
    rewards, values = numbers(lengths, 5), numbers(lengths, 6)
    advantages, returns = [], []
    for r, v in zip(rewards, values, strict=True):
        following = v[1:] + [0.0]
        deltas = [r[t] + gamma * following[t] - v[t] for t in range(len(r))]
        a = [sum((gamma * lam) ** k * deltas[t + k] for k in range(len(r) - t)) for t in range(len(r))]
        advantages.append(a)
        returns.append([x + y for x, y in zip(a, v, strict=True)])
    result = objective.advantages_and_returns(tensor(rewards), tensor(values), mask_of(lengths), gamma, lam)
    assert_rows(result[0], advantages)
    assert_rows(result[1], returns)


def policy_case(lengths):
    old, change, advantages = numbers(lengths, 7), numbers(lengths, 8, 0.4), numbers(lengths, 9)
    new = [[x + d for x, d in zip(a, b, strict=True)] for a, b in zip(old, change, strict=True)]
    return new, old, advantages


def test_policy_loss_is_the_clipped_surrogate(lengths):
    new, old, advantages = policy_case(lengths)
    losses, clipped = [], []
    for n, o, a in zip(flat(new), flat(old), flat(advantages), strict=True):
        ratio = math.exp(n - o)
        free, bound = ratio * a, min(max(ratio, 0.8), 1.2) * a
        losses.append(-min(free, bound))
        clipped.append(float(bound < free))
    found = objective.policy_loss(tensor(new), tensor(old), tensor(advantages), mask_of(lengths), 0.2)
    assert [x.item() for x in found] == pytest.approx([mean(losses), mean(clipped)], abs=1e-6)


def test_the_clip_stops_the_gradient_only_where_it_would_go_on_in_the_same_direction():
    """Ratio 1.5 and 0.5 with either sign of advantage: two of the four cases must not learn any more."""
    old = torch.zeros(1, 4, dtype=torch.float64)
    new = torch.tensor([[1.5, 1.5, 0.5, 0.5]], dtype=torch.float64).log().requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    loss, clip_fraction = objective.policy_loss(new, old, advantages, torch.ones(1, 4, dtype=torch.bool), 0.2)
    loss.backward()
    assert new.grad.tolist()[0] == pytest.approx([0.0, 1.5 / 4, -0.5 / 4, 0.0])
    assert clip_fraction.item() == 0.5


def test_padding_of_any_kind_leaves_no_trace_in_the_gradient():
    new, old, advantages = policy_case((2, 4))
    mask = mask_of((2, 4))
    gradients = []
    for padding in (0.0, 1e30, POISON):
        variable = tensor(new, padding).requires_grad_()
        objective.policy_loss(variable, tensor(old, 0.0), tensor(advantages, padding), mask, 0.2)[0].backward()
        gradients.append(variable.grad)
    assert all(torch.equal(gradients[0], other) for other in gradients[1:])


@pytest.mark.parametrize("clip", [None, 0.2, 5.0])
def test_value_loss_is_the_larger_of_two_half_squares(lengths, clip):
    values, old, returns = numbers(lengths, 9), numbers(lengths, 10), numbers(lengths, 11, 2.0)
    losses, bound = [], []
    for v, o, r in zip(flat(values), flat(old), flat(returns), strict=True):
        error = (v - r) ** 2
        held = error if clip is None else (o + min(max(v - o, -clip), clip) - r) ** 2
        losses.append(0.5 * max(error, held))
        bound.append(float(held > error))
    loss, clip_fraction = objective.value_loss(tensor(values), tensor(old), tensor(returns), mask_of(lengths), clip)
    assert loss.item() == pytest.approx(mean(losses), abs=1e-12)
    assert clip_fraction.item() == pytest.approx(mean(bound), abs=1e-6)


def test_explained_variance():
    mask, returns = torch.tensor([[True] * 4 + [False]]), torch.tensor([[1.0, 2.0, 3.0, 5.0, POISON]])
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0, POISON]])
    # Errors 0, 0, 0, 1 vary by 3/16, the returns by 35/16.
    assert objective.explained_variance(values, returns, mask) == pytest.approx(1 - 3 / 35)
    assert objective.explained_variance(returns, returns, mask) == 1
    assert objective.explained_variance(torch.full((1, 5), 7.0), returns, mask) == pytest.approx(0, abs=1e-6)
    assert math.isnan(objective.explained_variance(returns, torch.full((1, 5), 2.0), mask))


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (6.6, 1 + 0.1 * 0.0128), (60.0, 1 + 0.2 * 0.0128), (0.0, 1 - 0.2 * 0.0128), (-1.0, 1 - 0.2 * 0.0128)],
)
def test_the_adaptive_coefficient_moves_towards_the_target_and_never_far(kl, factor):
    found = objective.adapted_kl_coefficient(0.05, kl, target=6.0, episodes=128, horizon=10_000)
    assert found == pytest.approx(0.05 * factor, rel=1e-12)
