#!/bin/sh
# Two nodes of 8 GPUs (or GPUS=). On each, from the repository's root on a shared file system, after `make 01_dataset
# RECIPE=...`:
#   MASTER=<first node's address> RECIPE=qwen3_8b sh params/launch/two_nodes.sh 03_sft
set -e
MEET="--rdzv_backend c10d --rdzv_id medtune --rdzv_endpoint ${MASTER:?address}:${PORT:-29500}"
LAUNCH="torchrun --nnodes 2 --nproc_per_node ${GPUS:-8} $MEET"
export LAUNCH PATH="$PWD/.venv/bin:$PATH"
exec $LAUNCH --no-python .venv/bin/python -m lib.execute "${1:?stage}" --recipe "${RECIPE:?recipe}" --set "$SET"
