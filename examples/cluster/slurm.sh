#!/bin/bash
# Trains on two nodes: sbatch examples/cluster/slurm.sh [options of train.py]. docs/cluster.md explains the script.
#SBATCH --job-name=tfdecouple
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
# Two minutes before the time limit Slurm sends SIGTERM to the tasks. train.py then saves and exits with status 75.
#SBATCH --signal=TERM@120
#SBATCH --requeue
# The job appends to its log after each requeue, so that one file has the output of all starts.
#SBATCH --open-mode=append

# The addresses of the workers in TF_CONFIG. The port depends on the job, so that two jobs on a node do not collide.
port=$((16000 + SLURM_JOB_ID % 16000))
WORKERS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste -sd, -)
export WORKERS
# exec replaces the shell by Python, so that Python receives SIGTERM. --kill-on-bad-exit is left out, because it could kill a
# worker that is still saving. When a worker is lost, the other ones exit without it.
srun bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]}, \"task\": {\"type\": \"worker\", \"index\": $SLURM_NODEID}}"
    exec python train.py "$@"' train.py "$@"
status=$?

# srun reports the highest exit status. 75 means that training was stopped and saved. 4, or above 128 for the lost worker
# itself, means that a worker was lost. In these cases the requeued job resumes from the last checkpoint. Other errors would
# occur again, so they end the job. An error in one worker alone, such as an unreadable image, also gives status 4.
if [ "$status" -eq 75 ] || [ "$status" -eq 4 ] || [ "$status" -gt 128 ]; then
    # The limit ends a job that fails after every start.
    if [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$status"
