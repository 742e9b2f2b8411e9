"""What is asked: cases from YAML to tensors, the words of capabilities and conventions, captured batches, reported bugs.

Imports no other package of xentcheck. A change of the case format starts here, in ``case`` and ``fields``, and ends with
``xentcheck schema``.
"""
