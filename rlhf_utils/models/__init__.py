"""Loading any causal LM or classifier, adapters, sampling, and the small GPT-2 made here."""
