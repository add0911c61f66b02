#!/usr/bin/env bash
# A short look at dual-loop training, by the recipe quick_dual_loop: one process, batch 1 x accumulation 4, 500 pictures of
# SA-1B.
#
#     bash test_dual_loop.sh [flags of train_dual_loop.py ...]
#
# Variables may be set instead of flags; what is not set is as the recipe says:
#
#     SAV_DIR, SA1B_DIR            folders of the datasets
#     REFCOCO_DIR, OPENIMAGE_DIR   likewise; ./data/ref_seg and ./data/openimages
#     OUTPUT_DIR                   checkpoints and logs; a run in it is continued
#     PYTHON                       the interpreter (default python)
#
# Exit codes are the program's: 0 done, 1 a fault or too much bad data, 2 misuse.
set -euo pipefail

flags=(--recipe quick_dual_loop)
for name in SAV_DIR SA1B_DIR REFCOCO_DIR OPENIMAGE_DIR OUTPUT_DIR; do
    if [ -n "${!name:-}" ]; then flags+=("--${name,,}" "${!name}"); fi
done
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exec "${PYTHON:-python}" "$folder/projects/llava_sam2/mask_caption_sft/train_dual_loop.py" "${flags[@]}" "$@"
