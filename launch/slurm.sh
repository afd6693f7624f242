#!/bin/bash
# sbatch launch/slurm.sh configs/palm/8b.py /shared/runs/palm_8b
#
# One process for each GPU; JAX learns from Slurm which is which. Fill in: partition, nodes, GPUs of a node, time.
# Run folder, data.cache_dir and this environment must lie on a disk that all nodes see.
#SBATCH --job-name=pathways-lm
#SBATCH --partition=FILL_IN
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Three minutes before the time is up, every process is asked to save and leave.
#SBATCH --signal=TERM@180

CONFIG=${1:?a config}
RUN=${2:?a run folder}
RESTARTS=${RESTARTS:-10}

pause=5
for ((restart = 0; ; restart++)); do
    # The processes end one another, and say why; Slurm need not.
    srun --kill-on-bad-exit=0 pathways-lm train "$CONFIG" --run "$RUN"
    code=$?
    case $code in
        0 | 2) exit $code ;;  # all steps done; bad input, which another start does not change
        143) scontrol requeue "$SLURM_JOB_ID"; exit $code ;;  # saved and stopped: goes on when there is room again
    esac
    ((restart >= RESTARTS)) && exit $code
    echo "ended with code $code; start $((restart + 1)) of $RESTARTS again in $pause s" >&2
    sleep $pause
    pause=$((pause < 300 ? 2 * pause : 300))
done
