"""The fences: each makes one part of a hold true, in one file.

To add one: a file with a class that is a ``Fence``, and its line in ``bootlockd.registry``.
"""
