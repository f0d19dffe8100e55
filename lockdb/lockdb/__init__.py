"""lockdb: the database of holds that the hook, the CLI and the daemon share.

It knows no libvirt and no network. ``database`` opens and creates the file, ``holds``, ``permits``
and ``disks`` change it, ``decision`` answers what the hook would answer, ``journal`` keeps the
record, ``refusals`` is the hook's spool.
"""
