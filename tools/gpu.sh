#!/usr/bin/env bash
# Builds, tests, tunes and measures on a machine with a CUDA device, without a network.
#
#   tools/gpu.sh [--out DIR] [--minutes N] [PART...]
#
# Parts, in this order: build tests tune kernels latency; default: all. The machine's own python3 is used, with torch,
# triton, pybind11, scikit-build-core, cmake, ninja, pytest and pytest-xdist. DIR (default build/gpu) gets a log of
# each part, tile tables, and the rows kernels.jsonl and latency.jsonl; --minutes limits the tuning (default 3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all_parts=(build tests tune kernels latency)
out=build/gpu minutes=3 parts=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2 && shift 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    build | tests | tune | kernels | latency) parts+=("$1") && shift ;;
    *) echo "unknown argument '$1': one of --out, --minutes, ${all_parts[*]}" >&2 && exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=("${all_parts[@]}")
mkdir -p "$out"
out=$(realpath "$out")
export TRITON_CACHE_DIR=$PWD/build/triton-cache PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
failed=()

run() { # run NAME SECONDS COMMAND...: also into a log; what fails is remembered and the rest still runs
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  echo "::: $name"
  timeout "$limit" "$@" 2>&1 | tee "$out/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name")
  echo "::: $name: $((SECONDS - started)) s, exit status $status"
}

part_build() { run build 120 python3 -m pip install -q --no-build-isolation --no-deps -e .; }
part_tests() { run tests 420 python3 -m pytest -q -m gpu -n 8 --tb=short -p no:cacheprovider tests; }
part_tune() {
  run tune $((minutes * 60 + 60)) python3 tools/tune_kernels.py --out "$out" --minutes "$minutes"
  cp "$out"/NVIDIA*.json kernels/configs/
}
part_kernels() { run kernels 240 python3 -m runtime.bench.kernels --out "$out/kernels.jsonl"; }
part_latency() {
  local scenario
  for scenario in decode_b1 decode_b8 decode_b64 decode_b256; do
    run "latency-$scenario" 150 python3 -m runtime bench latency --model docs/benchmarks/configs/llama-3.1-8b \
      --load-format dummy --scenario "$scenario" --append "$out/latency.jsonl"
  done
}

for part in "${parts[@]}"; do "part_$part"; done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
