"""Cases drawn at random: strategies that draw them, the search, and the failures that are known already.

Imports ``run`` and what is below it; only ``search`` and ``strategies`` need Hypothesis.
"""
