"""Records to pages and plots, a file for each page. Every number on a page comes from the records.

Imports ``results``, ``cost`` and what is below them.
"""
