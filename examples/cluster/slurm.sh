#!/bin/bash
# Trains on two nodes: sbatch examples/cluster/slurm.sh [options of train.py]. README.md beside this file explains it.
#SBATCH --job-name=tfdecouple
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# SIGTERM to the tasks two minutes before the time limit: train.py saves and ends with status 75.
#SBATCH --signal=TERM@120
#SBATCH --requeue
# One log over all starts.
#SBATCH --open-mode=append

# The workers of TF_CONFIG: a port of each node, another one for each job.
port=$((16000 + SLURM_JOB_ID % 16000))
WORKERS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste -sd, -)
export WORKERS
# exec: the signal must reach Python, not the shell. Workers end by themselves when one is lost: no --kill-on-bad-exit,
# which could hit one that still saves.
srun bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_NODEID}}"
    exec python train.py "$@"' train.py "$@"
status=$?

# srun reports the highest status. 75: stopped and saved; 4, or above 128 for the lost one itself: a worker has died. The
# same job goes on from the last checkpoint. Other failures would only repeat themselves; so would what one worker alone
# finds after the start, such as an image that it cannot read, but that ends the others with 4, too.
if [ "$status" -eq 75 ] || [ "$status" -eq 4 ] || [ "$status" -gt 128 ]; then
    # A job that cannot run must not go round for ever.
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
