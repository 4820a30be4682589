# Removes every trace of one mesh: processes, cgroups, namespaces, mounts, files.
# Waits for the end of its standard input, which the harness holds open: so it runs when the harness is
# done, panics or is killed. Arguments: id, cgroup directory, working directory.
trap '' INT TERM HUP
id=$1 cgroup=$2 work=$3
cat >/dev/null
if [ -d "$cgroup" ]; then
    echo 1 >"$cgroup/cgroup.kill"
    tries=0
    while grep -q 'populated 1' "$cgroup/cgroup.events" && [ $tries -lt 200 ]; do
        sleep 0.02
        tries=$((tries + 1))
    done
fi
grep -o " $work/[^ ]*" /proc/self/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
ip netns list | cut -d' ' -f1 | grep "^$id-" | while read -r name; do ip netns del "$name"; done
if [ -d "$cgroup" ]; then
    find "$cgroup" -depth -type d -exec rmdir {} \;
fi
[ -n "$NODEMESH_KEEP" ] || rm -rf "$work"
