"""The truth: one definition of loss, gradient and unit, used in full, in blocks, for a fused linear loss, and as text in scripts.

Imports ``spec`` alone, and no code of any implementation. What changes here changes verdicts.
"""
