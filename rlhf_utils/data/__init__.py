"""Data: rows of any known form, one normal form, splits that share no prompt, and text as tokens and words."""
