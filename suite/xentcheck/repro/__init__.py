"""A case and an implementation as a script that needs nothing of this suite.

Imports ``run`` and what is below it, whose functions the script carries as text.
"""
