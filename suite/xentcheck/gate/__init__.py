"""A run held to a baseline: what got worse, what got better, and what cannot be told.

Imports ``results``, ``cost`` and what is below them.
"""
