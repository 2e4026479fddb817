"""What a run shows: plots, tables, the page, model cards."""
