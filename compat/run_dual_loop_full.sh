#!/usr/bin/env bash
# Dual-loop training on everything, by the recipe full_dual_loop: 8 GPUs, 2 x 4 x 8 = 64 samples a step, no limits.
#
#     bash run_dual_loop_full.sh [flags of train_dual_loop.py ...]
#
# Variables may be set instead of flags; what is not set is as the recipe says:
#
#     NUM_GPUS                     processes, one for each GPU (default 8)
#     SAV_DIR, SA1B_DIR            folders of the datasets
#     REFCOCO_DIR, OPENIMAGE_DIR   likewise; ./data/ref_seg and ./data/openimages
#     OUTPUT_DIR                   checkpoints and logs; a run in it is continued
#     PYTHON                       the interpreter (default python)
#
# Exit code 0: done; otherwise torchrun's, which is not 0 if any process failed.
set -euo pipefail

flags=(--recipe full_dual_loop)
for name in SAV_DIR SA1B_DIR REFCOCO_DIR OPENIMAGE_DIR OUTPUT_DIR; do
    if [ -n "${!name:-}" ]; then flags+=("--${name,,}" "${!name}"); fi
done
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python}" -m torch.distributed.run --standalone --nproc_per_node "${NUM_GPUS:-8}" \
    "$folder/projects/llava_sam2/mask_caption_sft/train_dual_loop.py" "${flags[@]}" "$@"
