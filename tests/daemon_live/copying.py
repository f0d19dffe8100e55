"""A live migration that is in the middle of its copy until it is told to end."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import libvirt

from privatehost import PrivateHost
from waiting import wait_until

MIB_PER_SECOND = 1


class Migration:
    """Of a guest that writes to its memory faster than that, from one host to another."""

    def __init__(self, host: PrivateHost, destination: PrivateHost, uuid: str) -> None:
        self._destination = destination
        self._connection = host.connect()
        self._domain = self._connection.lookupByUUIDString(uuid)
        self._pool = ThreadPoolExecutor(1)
        self._domain.migrateSetMaxDowntime(1)
        self._outcome: Future[bool] = self._pool.submit(self._succeeds)
        wait_until(lambda: self._copies or not self.goes_on, "memory is copied")

    def _succeeds(self) -> bool:
        parameters = {
            libvirt.VIR_MIGRATE_PARAM_URI: "tcp://127.0.0.1",
            libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: MIB_PER_SECOND,
        }
        # The disk is the same file for both hosts: they share a file system, in libvirt's words.
        flags = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_UNSAFE
        # As OpenStack migrates; a transient one could not be saved at the destination.
        flags |= libvirt.VIR_MIGRATE_PERSIST_DEST | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
        with closing(self._destination.connect()) as there:
            try:
                self._domain.migrate3(there, parameters, flags)
            except libvirt.libvirtError as error:
                print(f"the migration failed: {error}")
                return False
        return True

    @property
    def _copies(self) -> bool:
        return bool(self._domain.jobStats().get("memory_processed"))

    @property
    def goes_on(self) -> bool:
        return not self._outcome.done()

    def finish(self) -> bool:
        """Let it end; whether it succeeded."""
        try:
            self._domain.migrateSetMaxSpeed(1000)
            self._domain.migrateSetMaxDowntime(5000)
        except libvirt.libvirtError as error:
            print(f"it has ended already: {error}")
        return self._outcome.result()

    def close(self) -> None:
        self._pool.shutdown()
        self._connection.close()
