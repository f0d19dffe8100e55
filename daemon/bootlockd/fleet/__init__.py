"""The fleet: holds that reach every host through a registry in etcd, and what each host answers.

``wire`` reads what etcd says, ``client`` asks it, ``keys`` names what is kept there, ``records``
and ``hosts`` are the values. ``registry`` is what an admin or a relay does with holds. ``follower``
keeps a host in step, ``history`` tells whether the registry is still the one it knew, ``facts`` and
``beat`` answer for this host. ``lease`` is for whoever must be the only one. ``pruning`` takes
out what has ended everywhere.

etcd is only ever asked linearizably: what a member without a majority says is old.
"""
