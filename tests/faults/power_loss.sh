#!/usr/bin/env bash
# F9: power loss, on demand and as root: tests/faults/power_loss.sh [always|2m]
#
# A nats-server keeps its store on an ext4 file system of its own, in a file that is mounted through
# a loop device. In mid-publish that file system is shut down without flushing its log
# (EXT4_IOC_SHUTDOWN, NOLOGFLUSH: what a power cut leaves on a disk), the server is killed, the file
# is mounted again and the server started anew. Every acknowledged request must still be there with
# `sync_interval: always`; with the server's default of two minutes the check must FAIL, or it
# proves nothing. Nothing outside the temporary folder is touched.
set -euo pipefail

cd "$(dirname "$0")/../.."
sync=${1:-always}
folder=$(mktemp -d)
clean_up() {
    mountpoint --quiet "$folder/store" && umount --lazy "$folder/store"
    rm -rf "$folder"
}
trap clean_up EXIT

truncate --size 256M "$folder/disk"
mkfs.ext4 -q -F "$folder/disk"
mkdir "$folder/store"
mount -o loop "$folder/disk" "$folder/store"
PYTHONPATH=tests "${PYTHON:-.venv/bin/python}" -m faults.power_loss \
    --disk "$folder/disk" --store "$folder/store" --sync "$sync"
