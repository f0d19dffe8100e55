"""The fences, in the order in which they are put up; lifting goes the other way round."""

from __future__ import annotations

from bootlockd.config import Config
from bootlockd.descriptors import of_this_process
from bootlockd.fences.base import Fence
from bootlockd.fences.custody import CustodyFence
from bootlockd.fences.definition import DefinitionFence
from bootlockd.fences.image_lock import ImageLockFence
from bootlockd.fences.network import NetworkFence
from bootlockd.fences.polkit import PolkitFence
from bootlockd.fences.power import PowerFence
from bootlockd.fences.process_watch import ProcessWatchFence


def fences(config: Config) -> list[Fence]:
    """Those that the configuration switches on."""
    return [
        # First: a guest that takes its time to shut down is cut off meanwhile.
        NetworkFence(config.database.path, link_down=config.network.link_down),
        PowerFence(),
        CustodyFence(config.custody.directory, config.libvirt.uris),
        # Lifted before custody, which gives the RAM back to a domain that is defined.
        DefinitionFence(config.definition, config.custody.directory, config.database.path),
        ProcessWatchFence(config.process_watch, config.database.path),
        PolkitFence(config.polkit, config.database.path),
        ImageLockFence(of_this_process(), enabled=config.image_lock.enabled),
    ]
