"""Implementations in worker processes: what one of them does to its process is a verdict of one case, and the run goes on.

``pool`` is this side, ``worker`` the other, ``protocol`` what passes between them.
"""
