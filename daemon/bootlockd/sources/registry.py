"""The sources that the configuration names."""

from __future__ import annotations

from bootlockd.config import Config
from bootlockd.sources.base import Source
from bootlockd.sources.file import FileSource
from bootlockd.sources.nova import NovaSource


def sources(config: Config) -> list[Source]:
    """One of each kind at most: a hold's ``source`` is its name."""
    found: list[Source] = []
    if config.sources.file.directory:
        found.append(FileSource(config.sources.file.directory, interval=config.sync.interval))
    if config.fleet.endpoints:
        # Here: who has no fleet, and bootlockd itself, need nothing that speaks to a network.
        from bootlockd.sources.etcd import EtcdSource  # noqa: PLC0415

        found.append(EtcdSource(config))
    if config.sources.nova.cloud:
        found.append(NovaSource(config.sources.nova, interval=config.sync.interval))
    return found
