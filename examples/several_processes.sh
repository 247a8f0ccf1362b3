#!/usr/bin/env bash
# One run on two processes: windows, matrices and rows are divided between them, and the weights are the same bits as
# with one process of one thread. On GPUs it is the same command, one process per GPU.
set -euo pipefail
out=${1:-out/examples/processes}
export OMP_NUM_THREADS=1

torchrun --nproc-per-node 2 -m eggs_ptp prune demo --method eggs --nsamples 16 --overwrite -o "$out/two"
eggs prune demo --method eggs --nsamples 16 --overwrite -o "$out/one"
eggs verify "$out/two" --against demo
cmp "$out/one/model.safetensors" "$out/two/model.safetensors" && echo "the same weights"
