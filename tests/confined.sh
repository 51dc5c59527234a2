#!/usr/bin/env bash
# Runs a command as a container of k8s/ would: as nobody, without capabilities, on a read-only root file system, with
# /tmp, /dev/shm and the home folder as volumes, and this tree at /opt/longtake. To be run by root in a mount namespace
# of its own (unshare --mount --pid --fork).
# confined.sh ROOT TREE PYTHON COMMAND...: ROOT is an empty folder, PYTHON the environment's folder.
set -euo pipefail
root="$1" tree="$2" environment="$3"
shift 3
base="$("$environment/bin/python" -c 'import sys; print(sys.base_prefix)')"

mount -t tmpfs -o mode=0755 tmpfs "$root"
mkdir -p "$root"/{usr,etc,dev,proc,sys,tmp,home/longtake,opt/longtake} "$root/$environment" "$root/$base"
for name in bin sbin lib lib64; do
    [ -L "/$name" ] && cp -P "/$name" "$root/$name"
done
for name in usr etc dev sys; do
    mount --rbind "/$name" "$root/$name"
done
mount -t proc proc "$root/proc"
mount --bind "$environment" "$root/$environment"
[ -e "$root/$base/bin" ] || mount --bind "$base" "$root/$base"
mount --bind "$tree" "$root/opt/longtake"
for path in /usr /etc /opt/longtake "/$environment" "/$base"; do
    mount -o remount,ro,bind "$root$path" 2>/dev/null || mount -o remount,ro,bind "$root/usr" # the base is below /usr
done
mount -o remount,ro "$root"
for path in tmp dev/shm; do
    mount -t tmpfs -o mode=1777 tmpfs "$root/$path"
done
mount -t tmpfs -o uid=10001,gid=10001,mode=0700 tmpfs "$root/home/longtake"

cd /
exec chroot "$root" setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set -all \
    env -i PATH="$environment/bin:/usr/bin:/bin" HOME=/home/longtake PYTHONPATH=/opt/longtake \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0 OMP_NUM_THREADS=1 \
    HF_HUB_OFFLINE=1 bash -c 'cd /opt/longtake && exec "$@"' bash "$@"
