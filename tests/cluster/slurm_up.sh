#!/usr/bin/env bash
# Starts a Slurm cluster of one node on this machine: munged, slurmctld and slurmd from Debian's packages, with two
# pretended GPUs and no accounting. Needs root. Everything it writes is in FOLDER, apart from the packages and the links
# in /etc/slurm; slurm_down.sh FOLDER stops it and removes both the links and FOLDER.
#
#   tests/cluster/slurm_up.sh FOLDER
#   export SLURM_CONF=FOLDER/slurm.conf
set -euo pipefail
folder=${1:?"usage: slurm_up.sh FOLDER"}
links=/etc/slurm
node=$(uname -n)
node=${node%%.*}
PATH=$PATH:/usr/sbin:/sbin

fail() {
    echo "slurm_up.sh: $*" >&2
    exit 1
}

# until SECONDS COMMAND...: repeats the command until it succeeds.
until_ready() {
    local limit=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || fail "gave up waiting for: $* (the daemons' logs are in $folder)"
        sleep 0.2
    done
}

[ "$(id -u)" = 0 ] || fail "needs root, for the packages and the daemons"
for name in slurm.conf gres.conf; do
    earlier=$(dirname "$(readlink "$links/$name" || true)")
    [ "$earlier" = . ] || fail "$links/$name: a cluster is or was up in $earlier; slurm_down.sh $earlier ends it, or remove the link"
    [ ! -e "$links/$name" ] || fail "$links/$name exists: this machine belongs to a cluster already"
done

packages=()
for package in munge slurmctld slurmd slurm-client; do
    dpkg-query --show --showformat '${Status}' "$package" 2>/dev/null | grep -q "ok installed" || packages+=("$package")
done
if [ "${#packages[@]}" -gt 0 ]; then
    # the packages would start their daemons at once, with Debian's settings; these must not run beside ours
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update --quiet --quiet
    apt-get install --yes --quiet --quiet --no-install-recommends "${packages[@]}" >/dev/null
fi

mkdir -p "$folder"/{munge,state,spool} "$links"
chmod 755 "$folder" "$folder"/{munge,state,spool}

# a munged of our own: own key, own socket
(umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munge/pid" \
    --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
until_ready 20 munge --socket "$folder/munge/socket" --no-input

# The node claims more than the machine has, so that the jobs' requests fit on a small one: none of them uses as much.
# A node that does not answer for ten seconds is down; its jobs may run again five seconds later.
cat >"$folder/slurm.conf" <<END
ClusterName=nnscan
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmdSpoolDir=$folder/spool
StateSaveLocation=$folder/state
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
JobRequeue=1
MinJobAge=3600
GresTypes=gpu
NodeName=$node NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:pretended:2
PartitionName=processors Nodes=$node Default=YES MaxTime=INFINITE
PartitionName=accelerators Nodes=$node MaxTime=INFINITE
END
# a GPU is a device file; any two that every machine has will do
cat >"$folder/gres.conf" <<END
NodeName=$node Name=gpu Type=pretended File=/dev/null
NodeName=$node Name=gpu Type=pretended File=/dev/zero
END
# Snakemake's job steps drop SLURM_CONF and look here
for name in slurm.conf gres.conf; do ln -s "$folder/$name" "$links/$name"; done

export SLURM_CONF=$folder/slurm.conf
slurmctld -f "$SLURM_CONF"
until_ready 30 scontrol ping
slurmd -f "$SLURM_CONF"
until_ready 30 sh -c 'sinfo --noheader --format %T | grep -qx idle'
sinfo --format "%P %D %T %c %m %G"
