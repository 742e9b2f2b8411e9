"""Implementations in worker processes: what one of them does to its process is a verdict of one case, and the run goes on.

``pool`` is this side. On the other side ``guard`` starts processes and ends what they leave behind, and ``worker`` calls implementations.
``protocol`` is what passes between them.
"""
