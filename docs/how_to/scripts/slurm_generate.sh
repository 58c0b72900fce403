#!/bin/bash
# Generate with an array job. Each task makes a share, and the last one to finish puts the file together:
#     sbatch slurm_generate.sh model cells.zarr --n-cells 10000000
# Run some of eight tasks again; N_RANKS is the number of all tasks:
#     N_RANKS=8 sbatch --array=3,5 slurm_generate.sh model cells.zarr --n-cells 10000000
# Without Slurm, two processes run here, one after the other:
#     bash slurm_generate.sh model cells.zarr --n-cells 1000
#SBATCH --job-name=scgen-generate
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=02:00:00
#SBATCH --requeue
set -euo pipefail

folder="${SCRIPTS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}" # sbatch runs a copy of this file, so set SCRIPTS
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    # Slurm knows only the tasks of this call. With `--array=3`, for example, it does not know how many make the file.
    if [[ -z "${N_RANKS:-}" && "$SLURM_ARRAY_TASK_COUNT" -ne $((SLURM_ARRAY_TASK_MAX + 1)) ]]; then
        echo "The array has $SLURM_ARRAY_TASK_COUNT task(s), and the last one has number $SLURM_ARRAY_TASK_MAX. Number the tasks from 0, as in" \
            "--array=0-7. To run some of them again, give the number of all tasks: N_RANKS=8 sbatch --array=3 ..." >&2
        exit 2
    fi
    python "$folder/generate_part.py" "$@" --rank "$SLURM_ARRAY_TASK_ID" --n-ranks "${N_RANKS:-$SLURM_ARRAY_TASK_COUNT}"
else
    for rank in 0 1; do
        python "$folder/generate_part.py" "$@" --rank "$rank" --n-ranks 2
    done
fi
