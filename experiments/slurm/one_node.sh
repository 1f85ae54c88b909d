#!/usr/bin/env bash
# Start a Slurm of one node, this machine, with two CPUs: bash experiments/slurm/one_node.sh FOLDER [stop]
# As root, with Debian's packages: apt-get install slurm-wlm munge
set -euo pipefail
folder=$(realpath -m "$1")
if [ "${2:-}" = stop ]; then
    for name in slurmctld slurmd munged; do
        if [ -f "$folder/$name.pid" ]; then kill "$(cat "$folder/$name.pid")"; fi
    done
    exit
fi
mkdir -p "$folder"/{state,spool,munge} && chmod 755 "$folder"
dd if=/dev/urandom of="$folder/munge/key" bs=1024 count=1 status=none
chown -R munge: "$folder/munge" && chmod 700 "$folder/munge" && chmod 400 "$folder/munge/key"
mkdir -p /run/munge && chown munge: /run/munge && chmod 755 /run/munge
setpriv --reuid=munge --regid=munge --init-groups munged --force --key-file="$folder/munge/key" \
    --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed"
cp "$folder/munge/pid" "$folder/munged.pid"
cat > /etc/slurm/slurm.conf <<END
ClusterName=one
SlurmctldHost=$(hostname -s)
SlurmUser=root
# seconds that a requeued job waits; 120 is usual
AuthInfo=cred_expire=15
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
KillWait=30
NodeName=$(hostname -s) CPUs=2 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
END
slurmctld
slurmd
for _ in $(seq 30); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && exec sinfo
    sleep 1
done
echo "error: the node is not idle; see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
