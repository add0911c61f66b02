#!/usr/bin/env bash
# Refines the id maps of all scenes of a folder, with the seed's recommended program.
#
#     ./run_batch_refining.sh DATA_ROOT [flags of batch_mask_refining_v3.py ...]
#
# Run it again after an interruption: only what is missing is done. Variables may be set instead:
#
#     DATA_ROOT    folder of the scenes      (needed, here or as the first argument)
#     MODEL_CFG    SAM2's architecture       (default sam2_hiera_l.yaml)
#     CHECKPOINT   SAM2's weights            (default model_zoo/sam/sam2_hiera_large.pt)
#     SCRIPT_PATH  the program               (default: batch_mask_refining_v3.py beside this file)
#     PYTHON       the interpreter           (default python)
#
# Exit codes are the program's: 0 done, 1 frames failed or nothing was done, 2 misuse.
set -euo pipefail

if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then DATA_ROOT=$1 && shift; fi
if [ -z "${DATA_ROOT:-}" ]; then
    echo "usage: ${0##*/} DATA_ROOT [flags]; or set DATA_ROOT" >&2
    exit 2
fi

script=${SCRIPT_PATH:-$(dirname "${BASH_SOURCE[0]}")/batch_mask_refining_v3.py}
exec "${PYTHON:-python}" "$script" \
    --data_root "$DATA_ROOT" \
    --model_cfg "${MODEL_CFG:-sam2_hiera_l.yaml}" \
    --checkpoint "${CHECKPOINT:-model_zoo/sam/sam2_hiera_large.pt}" \
    "$@"
