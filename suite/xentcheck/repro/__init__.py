"""A case and an implementation as a script that does not need this suite.

Imports ``run`` and what is below it. The script contains functions of ``reference`` and ``run`` as text.
"""
