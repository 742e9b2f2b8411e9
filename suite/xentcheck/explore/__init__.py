"""Cases drawn at random: strategies that draw them, the search, and the failures that are known already.

Imports ``run`` and what is below it. Only ``search`` and ``strategies`` need Hypothesis; ``minimise`` makes a failing case smaller.
"""
