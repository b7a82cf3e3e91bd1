#!/usr/bin/env bash
# A SLURM cluster of this machine alone, on loopback, to try the .sbatch files on. For developers; needs root and
#
#   apt-get install slurm-wlm munge
#
#   eval "$(scripts/slurm/one_node.sh start DIR)"    # DIR: its state and logs; sets SLURM_CONF
#   sbatch --gres=none --mem=0 scripts/slurm/one_gpu.sbatch ...
#   scripts/slurm/one_node.sh stop DIR               # and what still runs there
set -euo pipefail
action=$1 dir=$(realpath -m "$2")
node=$(hostname -s)

# The daemons open many files each, and close all that they could have: with a high limit that takes seconds.
ulimit -n 1024

stop_one() { # PID_FILE
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 100); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid"
}

case $action in
start)
    mkdir -p "$dir"/{state,spool,munge}
    chmod 755 "$dir"
    dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
    chown -R munge: "$dir/munge"
    chmod 700 "$dir/munge/key"
    chmod 755 "$dir/munge"
    chmod 400 "$dir/munge/key"
    # Its user must be let through to the folder; --force: others may write to one above it, such as /tmp.
    runuser -u munge -- munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
        --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" >"$dir/start.log" 2>&1
    ports=$((30000 + RANDOM % 10000))
    cat >"$dir/slurm.conf" <<CONF
ClusterName=one-node
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$ports
SlurmdPort=$((ports + 1))
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobRequeue=1
KillWait=30
ReturnToService=0
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(nproc --all) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
    export SLURM_CONF=$dir/slurm.conf
    slurmctld >>"$dir/start.log" 2>&1
    slurmd -N "$node" >>"$dir/start.log" 2>&1
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format=%T 2>/dev/null)" != idle ] || break
        sleep 0.1
    done
    [ "$(sinfo --noheader --format=%T)" = idle ] || {
        echo "the node does not come up; see the logs in $dir" >&2
        exit 1
    }
    echo "export SLURM_CONF=$SLURM_CONF"
    ;;
stop)
    export SLURM_CONF=$dir/slurm.conf
    scancel --full --signal=KILL --user=root 2>/dev/null || true
    for daemon in slurmd.pid slurmctld.pid munge/pid; do stop_one "$dir/$daemon"; done
    ;;
*)
    echo "expected start or stop" >&2
    exit 2
    ;;
esac
