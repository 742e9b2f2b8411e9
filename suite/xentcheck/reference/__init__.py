"""The truth: one definition of loss, gradient and unit, used in full, in blocks, for a fused linear loss, and as text in scripts.

Imports only ``spec``, and no code of any implementation. A change here changes verdicts.
"""
