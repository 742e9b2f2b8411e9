"""Tests an implementation on a case, in this process or in a worker, and judges its answer.

Imports ``spec``, ``implementation`` and ``reference``. A new mode is a function in ``modes``, a new relation one in ``relations``.
"""
