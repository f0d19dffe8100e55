"""bootlock: the admin's command line.

``main`` is the entry point, ``commands`` has a module for each command, ``doctor`` is what is
checked on a host. What it asks of libvirt, it asks through ``bootlockd.hypervisor``.
"""

__version__ = "0.1.0"
