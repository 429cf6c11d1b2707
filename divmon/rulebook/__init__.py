"""Rules before, beside and after a run: checked, tested on made-up series, planned from a pilot, replayed."""
