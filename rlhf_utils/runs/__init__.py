"""A run on disk: its stages and what they need, resuming, locks, stopping."""
