"""Measuring and comparing the models of a run."""
