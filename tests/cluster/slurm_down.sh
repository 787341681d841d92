#!/usr/bin/env bash
# Stops the cluster that slurm_up.sh FOLDER has started, with its jobs, and removes FOLDER and the links in /etc/slurm.
# The packages stay installed.
set -euo pipefail
folder=${1:?"usage: slurm_down.sh FOLDER"}
[ -f "$folder/slurm.conf" ] || { echo "slurm_down.sh: no cluster was started in $folder" >&2 && exit 1; }
export SLURM_CONF=$folder/slurm.conf
PATH=$PATH:/usr/sbin:/sbin

# steps: the processes of this cluster's slurmd that look after jobs.
steps() {
    local process
    for process in /proc/[0-9]*; do
        [ "$(cat "$process/comm" 2>/dev/null)" = slurmstepd ] || continue
        grep --quiet --null-data --fixed-strings --line-regexp "SLURM_CONF=$SLURM_CONF" "$process/environ" 2>/dev/null || continue
        echo "${process#/proc/}"
    done
}

# stop PIDFILE: ends a daemon and waits for its end.
stop() {
    local process
    process=$(cat "$1" 2>/dev/null) || return 0
    kill "$process" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$process" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$process"
}

timeout 20 scancel --user root --state pending 2>/dev/null || true
timeout 20 scancel --user root 2>/dev/null || true
for _ in $(seq 100); do
    [ -n "$(steps)" ] || break
    sleep 0.1
done
stop "$folder/slurmd.pid"
for process in $(steps); do kill -KILL "$process" || true; done
stop "$folder/slurmctld.pid"
stop "$folder/munge/pid"
for name in slurm.conf gres.conf; do
    [ "$(readlink "/etc/slurm/$name")" != "$folder/$name" ] || rm "/etc/slurm/$name"
done
rm -rf "$folder"
