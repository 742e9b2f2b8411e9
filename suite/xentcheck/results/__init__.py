"""Records on disk, where they were made, and the scores that are computed from them once.

Imports ``run`` and what is below it. A change of a line's fields raises ``record.FORMAT``.
"""
