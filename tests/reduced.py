"""Settings with which the whole series takes a minute. Nothing is imported: `tools/` has the standard library only."""

# Everything the series does, as little of it as possible.
REDUCED = (
    "base.layers=1",
    "base.heads=2",
    "base.width=32",
    "base.vocabulary=400",
    "base.steps=40",
    "base.batch_size=8",
    "base.documents=600",
    "data.embedded_rows=600",
    "data.embedded_test_rows=100",
    "generation.max_new_tokens=16",
    "ppo.updates=2",
    "ppo.rollout_batch_size=16",
    "ppo.minibatch_size=8",
    "ppo.epochs=1",
    "ppo.max_new_tokens=16",
    "ppo.save_every=1",
    "evaluation.prompts=24",
    "evaluation.reward_pairs=40",
    "evaluation.frontier_prompts=16",
    "evaluation.bootstrap_samples=200",
)
# Recipes of dialogues only: the others have no demonstration of reward hacking.
DEMONSTRATION = ("evaluation.overoptimise.pairs=40", "evaluation.overoptimise.updates=2")
