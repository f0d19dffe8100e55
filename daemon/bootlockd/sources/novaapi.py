"""Nova's REST API, as far as the source asks it: one kind of GET, through openstacksdk.

openstacksdk does what is the same for every OpenStack client: it reads ``clouds.yaml``, logs in by
any of keystone's ways, finds Nova in the catalogue, and logs in anew when a token has expired. Its
own idea of a server is not used: whether a key was in the answer makes a difference here.

It is an extra, and takes a quarter of a second and 40 MB: it is imported on the first connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

from bootlockd import __version__
from bootlockd.config import Nova
from bootlockd.sources.base import SourceError, printable_line

#: Train, 2019. From 2.73 a lock's reason is told, and ``locked=`` is a filter; below 2.75 Nova
#: ignores a filter that it doesn't know, and answers with a list of other things.
MICROVERSION = "2.75"


@dataclass(frozen=True)
class Answer:
    """What Nova said. ``body``: the JSON, None if it was none."""

    status: int
    body: Any = None
    #: When, by Nova's own clock, in Unix seconds; None if it didn't say.
    at: float | None = None


class Api(Protocol):
    """What the source needs of Nova."""

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        """Ask once. Whatever Nova answers is an answer; SourceError if it doesn't, in time."""


def connect(settings: Nova) -> Api:
    """Nova, as ``clouds.yaml`` says now. Asks nobody yet. Raises SourceError."""
    try:
        # Late, and only here: see above.
        from openstack.config import OpenStackConfig  # noqa: PLC0415
        from openstack.connection import Connection  # noqa: PLC0415
    except ImportError as error:
        raise SourceError(
            "nova: openstacksdk is not installed",
            "install Debian's python3-openstacksdk, or bootlock's extra: bootlock[nova]",
        ) from error
    path = settings.clouds_file
    secrets = path.with_name("secure.yaml")
    try:
        path.read_bytes()  # a file that can't be read would be one without this cloud
        cloud = OpenStackConfig(
            config_files=[str(path)],
            secure_files=[str(secrets)],
            vendor_files=[],
            load_envvars=False,
            app_name="bootlock",
            app_version=__version__,
        ).get_one(
            cloud=settings.cloud,
            region_name=settings.region or None,
            api_timeout=settings.timeout,
        )
        return _Sdk(Connection(config=cloud).compute)
    except Exception as error:  # its own, keystoneauth's, yaml's and the system's have no one root
        raise SourceError(
            f"nova: {path}: {_line(error)}",
            f"it must have the cloud {settings.cloud}, see docs/nova.md",
        ) from error


class _Sdk:
    """An adapter of keystoneauth's, which openstacksdk has set up, and made to retry nothing."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter

    def get(self, path: str, query: Mapping[str, str]) -> Answer:
        try:
            # A redirect would take the token to whoever is named there.
            said = self._adapter.get(
                path,
                params=dict(query),
                microversion=MICROVERSION,
                headers={"Accept": "application/json"},
                raise_exc=False,
                connect_retries=0,
                redirect=False,
            )
            return Answer(said.status_code, _json(said), _date(said.headers.get("Date", "")))
        except Exception as error:  # as above, and requests'
            raise SourceError(
                f"nova: {_line(error)}",
                "see whether Nova and keystone answer, and the account in clouds.yaml",
            ) from error


def _json(said: Any) -> Any:
    try:
        return said.json()
    except (ValueError, RecursionError):
        return None


def _date(header: str) -> float | None:
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return None
    return date.replace(tzinfo=date.tzinfo or UTC).timestamp()


def _line(error: Exception) -> str:
    return printable_line(str(error), 300) or type(error).__name__
