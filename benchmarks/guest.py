"""An ordinary instance: its XML as libvirt hands it to a hook, and one that really starts."""

from __future__ import annotations

import re
from pathlib import Path

FREE_INSTANCE = "6f1c9d0e-3b5a-4c77-9d21-0a8e5f4b7c13"
#: What the instance has its interface on.
BRIDGE = "br-int"

_INSTANCES = "/var/lib/nova/instances"

_DISK = """\
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' cache='none' discard='unmap'/>
      <source file='{path}' index='{index}'/>
      <backingStore type='file' index='{backing}'>
        <format type='raw'/>
        <source file='/var/lib/nova/instances/_base/4f0a6c1d2e3b4958a7c6d5e4f3021b0c9d8e7f6a'/>
        <backingStore/>
      </backingStore>
      <target dev='vd{letter}' bus='virtio'/>
      <alias name='virtio-disk{index}'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x0{slot}' function='0x0'/>
    </disk>
"""

_DOMAIN = """\
<domain type='kvm' id='17'>
  <name>instance-0000a3f1</name>
  <uuid>{instance}</uuid>
  <metadata>
    <nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">
      <nova:package version="26.2.1"/>
      <nova:name>web-3</nova:name>
      <nova:creationTime>2024-05-14 09:21:07</nova:creationTime>
      <nova:flavor name="m1.medium">
        <nova:memory>4096</nova:memory>
        <nova:disk>40</nova:disk>
        <nova:vcpus>2</nova:vcpus>
      </nova:flavor>
      <nova:owner>
        <nova:user uuid="0b1e5d6c7f8a4c2b9e3d4f5a6b7c8d9e">ops</nova:user>
        <nova:project uuid="9d8c7b6a5f4e4d3c2b1a0f9e8d7c6b5a">shop</nova:project>
      </nova:owner>
    </nova:instance>{padding}
  </metadata>
  <memory unit='KiB'>4194304</memory>
  <currentMemory unit='KiB'>4194304</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type>
    <boot dev='hd'/>
  </os>
  <features>
    <acpi/>
    <apic/>
  </features>
  <cpu mode='host-model' check='partial'>
    <topology sockets='2' dies='1' cores='1' threads='1'/>
  </cpu>
  <clock offset='utc'>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='hpet' present='no'/>
  </clock>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
{disks}\
    <controller type='usb' index='0' model='piix3-uhci'>
      <alias name='usb'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x2'/>
    </controller>
    <controller type='pci' index='0' model='pci-root'>
      <alias name='pci.0'/>
    </controller>
    <controller type='virtio-serial' index='0'>
      <alias name='virtio-serial0'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x04' function='0x0'/>
    </controller>
    <interface type='bridge'>
      <mac address='fa:16:3e:5c:0d:1f'/>
      <source bridge='br-int'/>
      <target dev='tap5d3c1a7e-90'/>
      <model type='virtio'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x03' function='0x0'/>
    </interface>
    <serial type='pty'>
      <log file='/var/lib/nova/instances/{instance}/console.log' append='off'/>
      <target type='isa-serial' port='0'/>
    </serial>
    <channel type='unix'>
      <source mode='bind' path='/run/libvirt/qemu/channel/17-instance/org.qemu.guest_agent.0'/>
      <target type='virtio' name='org.qemu.guest_agent.0' state='connected'/>
      <address type='virtio-serial' controller='0' bus='0' port='1'/>
    </channel>
    <graphics type='vnc' port='-1' autoport='yes' listen='0.0.0.0'/>
    <memballoon model='virtio'>
      <stats period='10'/>
    </memballoon>
    <rng model='virtio'>
      <backend model='random'>/dev/urandom</backend>
    </rng>
  </devices>
</domain>
"""


def document(
    instance: str = FREE_INSTANCE, *, first_disk: str | None = None, padding: int = 0
) -> bytes:
    """XML of an instance with two disks, about 4 KB; ``padding``: more bytes, as metadata."""
    paths = [first_disk or f"/var/lib/nova/instances/{instance}/disk"]
    paths.append(f"/var/lib/nova/instances/{instance}/disk.eph0")
    disks = "".join(
        _DISK.format(path=path, index=at, backing=at + 2, slot=at + 4, letter="ab"[at - 1])
        for at, path in enumerate(paths, start=1)
    )
    note = "\n    <site:note xmlns:site='urn:site'>nothing of interest to a hook</site:note>"
    return _DOMAIN.format(
        instance=instance, disks=disks, padding=note * (padding // len(note))
    ).encode()


def startable(name: str, instances: Path) -> str:
    """XML of the same instance, without KVM, its files below ``instances``; see ``files``."""
    text = document().decode().replace(_INSTANCES, str(instances))
    text = text.replace("<domain type='kvm' id='17'>", "<domain type='qemu'>")
    text = re.sub(r"<name>.*?</name>", f"<name>{name}</name>", text, count=1)
    # What only the host it ran on has: its processor, and the socket that libvirt chose.
    text = re.sub(r" *<cpu .*?</cpu>\n", "", text, flags=re.DOTALL)
    return re.sub(r" *<source mode='bind'[^>]*>\n", "", text)


def files(instances: Path) -> dict[Path, Path | None]:
    """The images that a startable instance needs, each with its backing file, those first."""
    base = instances / "_base" / "4f0a6c1d2e3b4958a7c6d5e4f3021b0c9d8e7f6a"
    own = instances / FREE_INSTANCE
    return {base: None, own / "disk": base, own / "disk.eph0": base}
