#!/usr/bin/env bash
# A training run on the GPUs of a SLURM cluster, one process a node.
#
#   sbatch --nodes=4 --gpus-per-node=8 --cpus-per-task=64 --time=24:00:00 \
#     tools/launch/slurm.sh --config=configs/maxvit.py:base_224 \
#     --workdir=/shared/runs/base
#
# To be submitted from the folder of this repository, with the cores of a node:
# SLURM gives a task one if nothing is said, and they read and decode the data.
# All options are those of train.py. What is submitted again goes on from the
# last checkpoint; --dependency=singleton lets several such jobs wait in line,
# and those that find the run finished end at once. With --dry_run first, in a
# shell, it prints what it would run. PYTHON is the interpreter.
#
# The notice before the time is over saves on all nodes. A task that fails ends
# the others. SLURM starts the job again after the failure of a node.
#SBATCH --job-name=foveal
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

dry_run=false
if [[ ${1:-} == --dry_run ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 ]]; then
  echo "slurm.sh: give the options of train.py" >&2
  exit 2
fi
if [[ ! -f train.py ]]; then
  echo "slurm.sh: $PWD has no train.py: submit it from the repository" >&2
  exit 2
fi
# From SLURM 22.05 on srun does not take it over from sbatch.
if [[ -n ${SLURM_CPUS_PER_TASK:-} ]]; then
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

command=(srun --kill-on-bad-exit=1 --label
  "${PYTHON:-.venv/bin/python}" train.py "$@")
printf '%q ' "${command[@]}"
echo
"$dry_run" || exec "${command[@]}"
