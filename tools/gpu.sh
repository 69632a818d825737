#!/usr/bin/env bash
# Builds, tests and measures on a machine with a CUDA device, without a network.
#
#   tools/gpu.sh [--out DIR] [PART...]      parts: build tests kernels latency (default: all)
#
# It uses the machine's own python3 with torch, triton, pybind11, scikit-build-core, cmake, ninja
# and pytest. Benchmark rows and logs are written to DIR (default build/gpu).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
OUT=build/gpu
PARTS=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) OUT=$2; shift 2 ;;
    build | tests | kernels | latency) PARTS+=("$1"); shift ;;
    *) echo "unknown argument '$1': one of --out, build, tests, kernels, latency" >&2; exit 2 ;;
  esac
done
[ ${#PARTS[@]} -gt 0 ] || PARTS=(build tests kernels latency)
mkdir -p "$OUT"
FAILED=()
CONFIGS=docs/benchmarks/configs

run() { # run NAME COMMAND...: the output goes to a log too; a failure is remembered, the rest still runs
  local name=$1 start=$SECONDS
  shift
  echo "::: $name"
  "$@" 2>&1 | tee "$OUT/$name.log"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || FAILED+=("$name")
  echo "::: $name: $((SECONDS - start)) s, exit $status"
}

part_build() { run build python3 -m pip install -q --no-build-isolation --no-deps -e .; }
part_tests() { run tests timeout 300 python3 -m pytest -q -m gpu -p no:cacheprovider tests; }
part_kernels() { run kernels timeout 240 python3 -m runtime.bench.kernels --out "$OUT/kernels.jsonl"; }

latency() { # latency MODEL SCENARIO
  run "latency-$1-$2" timeout 200 python3 -m runtime bench latency --model "$CONFIGS/$1" --load-format dummy \
    --scenario "$2" --json --append "$OUT/latency.jsonl"
}
part_latency() {
  latency llama-3.1-8b decode_b1
}

for part in "${PARTS[@]}"; do "part_$part"; done
[ ${#FAILED[@]} -eq 0 ] || { echo "failed: ${FAILED[*]}" >&2; exit 1; }
