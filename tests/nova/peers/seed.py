"""``seed.py nova.conf``: put the servers on standard input, a JSON list, into Nova's databases.

With Nova's own objects, so that what the API then reads is what Nova would have written. Run by
the Python that Nova is installed for; the imports are made by name, for only that one knows them.
"""

from __future__ import annotations

import datetime
import json
import sys
import uuid
from importlib import import_module
from typing import Any

seeds = json.load(sys.stdin)
conf = sys.argv[1]
sys.argv = ["seed"]
import_module("nova.monkey_patch").patch(backend="threading")
context: Any = import_module("nova.context")
objects: Any = import_module("nova.objects")
exception: Any = import_module("nova.exception")
network: Any = import_module("nova.network.model")
objects.register_all()
import_module("nova.config").parse_args(["seed"], default_config_files=[conf])


def flavor(admin: Any) -> Any:
    """The one flavor that all servers have."""
    try:
        return objects.Flavor.get_by_flavor_id(admin, "tiny")
    except exception.FlavorNotFound:
        made = objects.Flavor(
            admin,
            name="tiny",
            flavorid="tiny",
            memory_mb=64,
            vcpus=1,
            root_gb=1,
            ephemeral_gb=0,
            swap=0,
            rxtx_factor=1.0,
            vcpu_weight=0,
            disabled=False,
            is_public=True,
            extra_specs={},
            description=None,
            projects=[],
        )
        made.create()
        return made


def compute_node(admin: Any, cell: Any, host: str) -> Any:
    """The compute host of that name, made if there is none."""
    try:
        objects.HostMapping.get_by_host(admin, host)
    except exception.HostMappingNotFound:
        objects.HostMapping(admin, host=host, cell_mapping=cell).create()
        service = {"host": host, "binary": "nova-compute", "topic": "compute", "report_count": 1}
        objects.Service(admin, disabled=False, forced_down=True, **service).create()
        objects.ComputeNode(
            admin,
            host=host,
            hypervisor_hostname=host,
            uuid=str(uuid.uuid4()),
            vcpus=64,
            memory_mb=262144,
            local_gb=1000,
            vcpus_used=0,
            memory_mb_used=0,
            local_gb_used=0,
            hypervisor_type="fake",
            hypervisor_version=1,
            cpu_info="",
            free_ram_mb=262144,
            free_disk_gb=1000,
            current_workload=0,
            running_vms=0,
            cpu_allocation_ratio=1.0,
            ram_allocation_ratio=1.0,
            disk_allocation_ratio=1.0,
        ).create()
    return objects.ComputeNode.get_by_host_and_nodename(admin, host, host)


def server(admin: Any, cell: Any, node: Any, tiny: Any, seed: dict[str, Any]) -> None:
    """One server that is off, and locked if the seed says by whom."""
    locked_by = seed.get("locked_by")
    reason = {"locked_reason": seed["reason"]} if locked_by else {}
    instance = objects.Instance(
        admin,
        uuid=seed["uuid"],
        display_name=f"vm-{seed['uuid'][:8]}",
        hostname=f"vm-{seed['uuid'][:8]}",
        user_id=seed["user"],
        project_id=seed["project"],
        host=node.host,
        node=node.host,
        compute_id=node.id,
        vm_state="stopped",
        power_state=4,
        task_state=None,
        image_ref="",
        flavor=tiny,
        instance_type_id=tiny.id,
        memory_mb=64,
        vcpus=1,
        root_gb=1,
        ephemeral_gb=0,
        old_flavor=None,
        new_flavor=None,
        locked=bool(locked_by),
        locked_by=locked_by,
        availability_zone="nova",
        launched_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        system_metadata=reason,
        metadata={},
        config_drive="",
        root_device_name="/dev/vda",
        launch_index=0,
        reservation_id=f"r-{seed['uuid'][:8]}",
    )
    instance.create()
    instance.info_cache.network_info = network.NetworkInfo([])
    instance.info_cache.save()
    objects.InstanceMapping(
        admin,
        instance_uuid=instance.uuid,
        project_id=instance.project_id,
        user_id=instance.user_id,
        cell_mapping=cell,
        queued_for_delete=False,
    ).create()


def main() -> None:
    """Seed all; they go into the one cell that is not cell0."""
    admin = context.get_admin_context()
    (cell,) = (c for c in objects.CellMappingList.get_all(admin) if not c.is_cell0())
    tiny = flavor(admin)
    with context.target_cell(admin, cell) as inside:
        nodes: dict[str, Any] = {}
        for seed in seeds:
            host = seed["host"]
            nodes[host] = nodes.get(host) or compute_node(inside, cell, host)
            server(inside, cell, nodes[host], tiny, seed)


main()
