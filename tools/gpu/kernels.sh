#!/usr/bin/env bash
# Tests, tunes and times the kernels on this machine's CUDA device; needs no build.
#   tools/gpu/kernels.sh OUT [minutes of tuning, 3; 0: none] [models to tune for]
# OUT gets tests.log, tuning.jsonl, the tile table of the device and kernels.jsonl. Tables come last on stdout.
set -uo pipefail
mkdir -p "$1"
out=$(realpath "$1") minutes=${2:-3} models=${3:-llama-3.1-8b,qwen3-0.6b}
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export PYTHONPATH=$PWD/python TRITON_CACHE_DIR=$PWD/build/triton-cache PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2

# one process a test function: compilation takes the time, and it runs on every core
test_function() {
  python3 -m pytest -q -m gpu -x --tb=short -p no:cacheprovider "$1" 2>&1 | grep -v '^SKIPPED' |
    sed "s|^|$(basename "$1"): |" | tail -40
}
export -f test_function
started=$SECONDS
python3 -m pytest --collect-only -q -m gpu tests/kernels 2>/dev/null | grep '::' | sed 's/\[.*//' | sort -u |
  timeout 150 xargs -P "$(nproc)" -I {} bash -c 'test_function {}' >"$out/tests.log"
tests_took=$((SECONDS - started))

if [ "$minutes" != 0 ]; then
  python3 tools/tune_kernels.py --out "$out" --minutes "$minutes" --model "$models" && cp "$out"/*.json kernels/configs/
fi
timeout 200 python3 -m runtime.bench.kernels --out "$out/kernels.jsonl" --commit "$(cat .commit 2>/dev/null || git rev-parse --short HEAD 2>/dev/null)"
echo "tests, $tests_took s:"
grep -E '^[a-z_.:]*: (FAILED|ERROR)|error|Error' "$out/tests.log" | sort | uniq -c | sort -rn | head -30
grep -oE '[0-9]+ (passed|failed|errors?)' "$out/tests.log" | awk '{sum[$2] += $1} END {for (k in sum) print sum[k], k}'
