#!/bin/bash
# For comparison: hooks/qemu as many hosts have it, from the time before libvirt ran qemu.d/ itself.
# It keeps the XML and hands it to each script of a directory; the first one that fails ends it.

base_dir="$(dirname "$0")/qemu.d"
xml="$(cat)"

for script in "$base_dir"/*; do
    if [ -f "$script" ] && [ -x "$script" ]; then
        "$script" "$@" <<<"$xml"
        status=$?
        if [ "$status" -ne 0 ]; then
            exit "$status"
        fi
    fi
done
