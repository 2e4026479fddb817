"""Loading any causal LM or classifier, adapters, and sampling."""
