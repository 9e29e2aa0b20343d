"""Readers: one kind of files each, opened as a `Source` (sources.py says what that is).

`benchmarks.py` names the reader of every kind of data.
"""
