"""bootlockd: the host daemon, which makes holds true for instances that already run.

It is one ``cycle`` that can always start over: look at the holds and the guests, ``plan`` the
steps, act through ``fences``, report enforcement rows. Whatever else runs (libvirt's ``events``,
the ``control`` socket, a timer) only wakes it. Its death changes no verdict: the hook decides
alone.
"""

__version__ = "0.1.0"
