#!/usr/bin/env bash
# Checks and times taps in CUDA graphs on a GPU. Each part takes less than four minutes, and leaves
# one JSON.
#
#   bench/gpu.sh kernels [FOLDER]    needs PyTorch from 2.11, Triton and numpy
#   bench/gpu.sh engine [FOLDER]     needs what `make setup VARIANT=cuda` installs
#
# PYTHON is the interpreter; ENGINE_ARGS go to the second part, such as "--shape 8b". Without a GPU it
# says so. Exits with 0 only if everything was as it should be.
set -euo pipefail

usage() {
  echo "usage: bench/gpu.sh kernels|engine [FOLDER]" >&2
  exit 2
}

part=${1:-}
folder=${2:-.}
[[ $part == kernels || $part == engine ]] || usage
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python3
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi
export PYTHONPATH="$PWD/server:$PWD${PYTHONPATH:+:$PYTHONPATH}"

mkdir -p "$folder"
json="$folder/gpu-$part.json"
rm -f "$json"
read -ra more <<<"${ENGINE_ARGS:-}"
[[ $part == engine ]] || more=()
code=0
timeout 235 "$python" -m "bench.gpu_$part" --out "$json" "${more[@]}" || code=$?
[[ -s $json ]] && cat "$json"
[[ $code -eq 124 ]] && echo "bench/gpu.sh: not done after 235 seconds" >&2
exit "$code"
