"""What one implementation costs on one batch: time beside ``native``, and bytes.

Imports ``run`` and what is below it. Nothing is measured before its answer to the very batch is right.
"""
