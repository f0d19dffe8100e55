"""What bootlock's hook costs, measured side by side with what it could be compared with.

``python -m benchmarks`` (``make bench``) prints a table, or JSON, and exits 1 when a target is
missed; docs/benchmarks.md explains it. Run it from the top of the source tree with
``PYTHONPATH=tests``: it uses the tests' hook runner and private libvirt host.

``database`` fills a lock database, ``guest`` makes domain XML, ``launch`` starts a process and
takes the time, ``measure`` interleaves the runs, ``calls`` and ``starts`` say what is run,
``targets`` what must come out, ``report`` prints it.
"""
