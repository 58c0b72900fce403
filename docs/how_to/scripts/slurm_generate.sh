#!/bin/bash
# Generate by the tasks of an array job, each of which makes a part; the last one to finish puts the file together:
#     sbatch slurm_generate.sh model cells.zarr --n-cells 10000000
# Some of eight tasks again; N_RANKS says how many there are in all:
#     N_RANKS=8 sbatch --array=3,5 slurm_generate.sh model cells.zarr --n-cells 10000000
# Without Slurm it runs here, by two processes one after the other:
#     bash slurm_generate.sh model cells.zarr --n-cells 1000
#SBATCH --job-name=scgen-generate
#SBATCH --array=0-7
#SBATCH --gpus=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=02:00:00
#SBATCH --requeue
set -euo pipefail

folder="${SCRIPTS:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)}" # sbatch runs a copy of this file: give SCRIPTS then
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    # Slurm counts the tasks of this call only: of those of `--array=3`, for example, nobody can tell how many make the file.
    if [[ -z "${N_RANKS:-}" && "$SLURM_ARRAY_TASK_COUNT" -ne $((SLURM_ARRAY_TASK_MAX + 1)) ]]; then
        echo "The array has $SLURM_ARRAY_TASK_COUNT task(s), the last of which is number $SLURM_ARRAY_TASK_MAX. Number all tasks from 0," \
            "as --array=0-7 does, or, to start some of them again, say how many there are in all: N_RANKS=8 sbatch --array=3 ..." >&2
        exit 2
    fi
    python "$folder/generate_part.py" "$@" --rank "$SLURM_ARRAY_TASK_ID" --n-ranks "${N_RANKS:-$SLURM_ARRAY_TASK_COUNT}"
else
    for rank in 0 1; do
        python "$folder/generate_part.py" "$@" --rank "$rank" --n-ranks 2
    done
fi
