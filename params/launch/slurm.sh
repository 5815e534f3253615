#!/bin/bash
# One recipe as a Slurm job: RECIPE=qwen3_8b sbatch params/launch/slurm.sh, from the repository's root on a shared file system.
# Submitted again it goes on where it was. Before: make setup GPU=1 on a node with a GPU, so that llama.cpp is built for it.
#SBATCH --job-name=medtune
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=medtune-%j.log
set -e
gpus=${SLURM_GPUS_ON_NODE:-1}
if [ "$gpus" -gt 1 ]; then
  export LAUNCH="torchrun --nproc_per_node $gpus"
fi
# srun, because five minutes before the end SIGTERM goes to its processes: training then saves a checkpoint and stops
exec srun make all RECIPE="${RECIPE:?recipe}" SET="$SET"
