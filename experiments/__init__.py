"""Programs that print figures: what a part brings, and what it costs.

Run one with `python -m experiments.NAME`; its head says how. The package imports none.
"""
