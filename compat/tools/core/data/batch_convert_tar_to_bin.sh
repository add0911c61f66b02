#!/usr/bin/env bash
# Converts every shard of a folder into one v1 directory, in the order of the shards' names, by one command.
#
#     bash tools/core/data/batch_convert_tar_to_bin.sh TAR_DIR OUTPUT_DIR [flags of convert_tar_to_bin.py ...]
#
# Run it again after an interruption, or when shards were added: only what is missing is done.
# The original's variables may be set in the environment instead:
#
#     TAR_DIR      folder of the shards                          (needed, here or as the first argument)
#     OUTPUT_DIR   folder of the result                          (needed, here or as the second argument)
#     MODEL_TYPE   name of the teacher, recorded                 (default sam2.1_hiera_b+)
#     WORKERS      worker processes                              (default: one per core)
#     SCRIPT_PATH  the converter                                 (default: convert_tar_to_bin.py beside this file)
#     TAR_PATTERN  names of the shards; not in the original      (default sa1b_shard_*.tar*)
#     PYTHON       the interpreter; not in the original          (default python)
#
# Exit codes are the converter's: 0 done, 1 rows failed or nothing was done, 2 misuse.
set -euo pipefail
export LC_ALL=C # one order of names on every machine

if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then TAR_DIR=$1 && shift; fi
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then OUTPUT_DIR=$1 && shift; fi
if [ -z "${TAR_DIR:-}" ] || [ -z "${OUTPUT_DIR:-}" ]; then
    echo "usage: ${0##*/} TAR_DIR OUTPUT_DIR [flags]; or set TAR_DIR and OUTPUT_DIR" >&2
    exit 2
fi
if [ ! -d "$TAR_DIR" ]; then
    echo "${0##*/}: no such folder: $TAR_DIR" >&2
    exit 2
fi

shopt -s nullglob
# shellcheck disable=SC2206  # the pattern is to be expanded
shards=("$TAR_DIR"/${TAR_PATTERN:-sa1b_shard_*.tar*})
if [ ${#shards[@]} -eq 0 ]; then
    echo "${0##*/}: no ${TAR_PATTERN:-sa1b_shard_*.tar*} in $TAR_DIR; set TAR_PATTERN if the shards have other names" >&2
    exit 2
fi

script=${SCRIPT_PATH:-$(dirname "${BASH_SOURCE[0]}")/convert_tar_to_bin.py}
exec "${PYTHON:-python}" "$script" \
    --tar-path "${shards[@]}" \
    --output-dir "$OUTPUT_DIR" \
    --model-type "${MODEL_TYPE:-sam2.1_hiera_b+}" \
    ${WORKERS:+--workers "$WORKERS"} \
    "$@"
