"""The registry with certificates, users and roles, as docs/fleet.md says."""

from __future__ import annotations

from pathlib import Path

from etcdcluster import Cluster

_PAGE = Path(__file__).resolve().parents[2] / "docs/fleet.md"


def set_up(cluster: Cluster) -> None:
    """Every ``etcdctl`` of the page, in its order."""
    for line in _PAGE.read_text("utf-8").splitlines():
        if line.startswith("    etcdctl "):
            cluster.ctl(*line.removeprefix("    etcdctl ").split())
