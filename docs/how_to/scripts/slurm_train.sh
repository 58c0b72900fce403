#!/bin/bash
# Train on several machines with Slurm. The job queues itself again when its time is up or it is preempted:
#     sbatch slurm_train.sh cells.h5ad --layer counts --condition-keys cell_type
# Without Slurm, two CPU processes train here on a small data set of the package:
#     bash slurm_train.sh
#SBATCH --job-name=scgen-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

folder="${SCRIPTS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}" # sbatch runs a copy of this file, so set SCRIPTS
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

if [[ -n "${SLURM_JOB_ID:-}" ]]; then
    srun python "$folder/train_ddp.py" "$@" --accelerator "${ACCELERATOR:-gpu}" \
        --devices "$SLURM_NTASKS_PER_NODE" --num-nodes "$SLURM_JOB_NUM_NODES"
else
    python "$folder/train_ddp.py" "$@" --accelerator "${ACCELERATOR:-cpu}" --devices 2
fi
status=$?

# 143 means SIGTERM. The queued job runs the same command, which resumes from the last checkpoint.
if [[ $status -eq 143 && -n "${SLURM_JOB_ID:-}" ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
