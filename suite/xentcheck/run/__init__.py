"""Asks an implementation a case, here or in a worker process, and judges what came back.

Imports ``spec``, ``implementation`` and ``reference``. A new mode is a function in ``modes``, a new relation one in ``relations``.
"""
