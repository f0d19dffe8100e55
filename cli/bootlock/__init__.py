"""bootlock: the admin's command line.

``main`` is the entry point, ``commands`` has a module for each command, ``hypervisor`` and
``canary`` are what it asks of libvirt, ``doctor`` is what it checks on a host.
"""

__version__ = "0.1.0"
