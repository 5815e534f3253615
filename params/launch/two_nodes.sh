#!/bin/sh
# Two nodes of 8 GPUs. On each, from the repository's root on a shared file system, after `make 01_dataset RECIPE=...`:
#   MASTER=<first node's address> RECIPE=qwen3_8b sh params/launch/two_nodes.sh 03_sft
set -e
LAUNCH="torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_id medtune --rdzv_endpoint ${MASTER:?address}:29500"
export LAUNCH PATH="$PWD/.venv/bin:$PATH"
exec $LAUNCH --no-python .venv/bin/python -m lib.execute "${1:?stage}" --recipe "${RECIPE:?recipe}" --set "$SET"
