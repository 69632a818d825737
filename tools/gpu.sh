#!/usr/bin/env bash
# Builds, tests, tunes and measures on a machine with a CUDA device, without a network.
#
#   tools/gpu.sh [--out DIR] [--minutes N] [--models NAMES] [PART...]
#
# Parts, in this order: build start_tests tests memcheck racecheck tune kernels bench deterministic embedding simulation
# serve; default: all but memcheck and racecheck (the CUDA toolkit's compute-sanitizer over the kernel tests), and but
# `serve` (HTTP beside offline, and starts), which needs the packages of the extra `server`. `embedding` needs a C++ compiler, the
# shared library of python3 and room for two engines: on less than 120 GB, EMBEDDING_KV_BYTES below its 32 GiB each.
# These take one GPU, so CUDA_VISIBLE_DEVICES lets two runs share a machine. Over all the GPUs that there are, two or
# more: ranks (tests), allreduce (limits by size), tune_ranks (matrix kernels for shares of the weights), tp (the
# scenarios), starts (cold and warm, by phase), overlap (sums beside the computation, three ways), faults (lost ranks,
# as a log for docs/rank_faults.md).
# In ten minutes go `build ranks allreduce overlap faults`, or with REPEAT=1 and --minutes 2 `build allreduce tune_ranks tp`.
# The machine's own python3 is used, with torch, triton, pybind11, scikit-build-core, cmake, ninja, pytest, pytest-xdist
# and transformers. DIR (default build/gpu) gets a log of each part, tile tables, and the rows kernels.jsonl,
# bench.jsonl and simulation.jsonl; --minutes limits the tuning (default 3), --models what `bench` measures, with commas
# between. $SOURCE_COMMIT names the revision in the rows where the tree came without its history.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
all_parts=(build start_tests tests memcheck racecheck tune kernels bench deterministic embedding simulation serve)
rank_parts=(ranks allreduce tune_ranks tp starts overlap faults)
out=build/gpu minutes=3 models=llama-3.1-8b,qwen3-0.6b,bloom-7b1 parts=()
while [ $# -gt 0 ]; do
  case "$1" in
    --out) out=$2 && shift 2 ;;
    --minutes)
      [[ $2 =~ ^[1-9][0-9]*$ ]] || { echo "--minutes $2: a whole number of minutes, from 1 on" >&2 && exit 2; }
      minutes=$2 && shift 2
      ;;
    --models) models=$2 && shift 2 ;;
    *)
      if [[ " ${all_parts[*]} ${rank_parts[*]} " != *" $1 "* ]]; then
        echo "unknown argument '$1': one of --out, --minutes, --models, ${all_parts[*]} ${rank_parts[*]}" >&2
        exit 2
      fi
      parts+=("$1") && shift
      ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(build start_tests tests tune kernels bench deterministic embedding simulation)
mkdir -p "$out"
out=$(realpath "$out")
export TRITON_CACHE_DIR=$PWD/build/triton-cache PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
failed=()
trap 'kill $(jobs -p) 2>/dev/null; exit 143' TERM INT # each part is a process group of its own

run() { # run NAME SECONDS COMMAND...: also into a log; what fails is remembered and the rest still runs
  local name=$1 limit=$2 started=$SECONDS
  shift 2
  echo "::: $name"
  timeout "$limit" "$@" <&0 > >(tee "$out/$name.log") 2>&1 &
  wait $!
  local status=$?
  [ "$status" -eq 0 ] || failed+=("$name")
  echo "::: $name: $((SECONDS - started)) s, exit status $status"
}

part_build() { run build 120 python3 -m pip install -q --no-build-isolation --no-deps -e .; }
part_start_tests() { # what measures the device's memory needs it alone
  run start_tests 240 python3 -m pytest -q -m gpu --tb=short -p no:cacheprovider tests/python/test_start_gpu.py
}
part_tests() {
  run tests 420 python3 -m pytest -q -m gpu -n 8 --tb=short -p no:cacheprovider --ignore tests/python/test_start_gpu.py \
    --ignore tests/python/test_tp_group.py --ignore tests/python/test_ranks_gpu.py tests/kernels tests/models tests/python
}
part_memcheck() { sanitize memcheck 1000; }
part_racecheck() { sanitize racecheck 1; } # it is some ten times slower
sanitize() { # sanitize TOOL CASES: so many cases of each kernel test, in 16 processes; after `tests`, which compiles
  local shards=$out/$1-shards
  rm -rf "$shards" && mkdir -p "$shards"
  python3 -m pytest -q -m gpu --collect-only -p no:cacheprovider tests/kernels | grep :: |
    awk -F'[' -v cases="$2" 'seen[$1]++ < cases' | split -n r/16 - "$shards/"
  # without torch's allocator, which hands out memory that the tool takes for valid
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 run "$1" 420 xargs -P 16 -I '{}' bash -c 'compute-sanitizer --tool "$1" \
    --error-exitcode 1 --print-limit 20 python3 -m pytest -v --tb=short -p no:cacheprovider "@$2" >"$2.log" 2>&1
    status=$?
    echo "$(basename "$2"): exit status $status: $(grep -E "ERROR SUMMARY|passed|failed" "$2.log" | xargs)"
    exit $status' _ "$1" '{}' < <(find "$shards" -type f)
}
num_gpus() { python3 -c 'import torch; print(torch.cuda.device_count())'; }
part_ranks() { # groups of processes, one GPU each; several groups at a time
  run ranks 300 python3 -m pytest -q -m gpu -n 3 --tb=short -p no:cacheprovider tests/python/test_tp_group.py \
    tests/models/test_tensor_parallel.py tests/python/test_ranks_gpu.py
}
part_allreduce() { # 2, 4 and 8 ranks where there are; what follows uses the limits
  run allreduce 240 python3 tools/tune_all_reduce.py --out "$out" --append "$out/allreduce.jsonl"
  cp "$out"/NVIDIA*.json kernels/configs/
}
part_tune_ranks() { # for decode, whose products have few rows
  run tune_ranks $((minutes * 60 + 60)) python3 tools/tune_kernels.py --out "$out" --minutes "$minutes" --only linear \
    --ranks "$(num_gpus)"
  cp "$out"/NVIDIA*.json kernels/configs/
}
part_tp() {
  local size decode=decode_b1,decode_b64,decode_b256
  size=$(num_gpus)
  suite llama-3.1-8b "startup,$decode,prefill_16x4096,mixed_256" --tensor-parallel-size "$size"
  suite llama-3.1-8b decode_b1_gaps,decode_b64_gaps --tensor-parallel-size "$size"
  [ "$size" -lt 4 ] || suite llama-3.1-70b startup,decode_b1,decode_b64,prefill_16x4096,mixed_256 \
    --tensor-parallel-size "$size"
}
part_starts() {
  run starts 240 python3 -m runtime bench startup --model docs/benchmarks/configs/llama-3.1-8b --load-format dummy \
    --skip-tokenizer-init --tensor-parallel-size "$(num_gpus)" --kernel-cache both --append "$out/bench.jsonl"
}
part_overlap() { # on one machine, one after the other: rows name the way
  local way size
  size=$(num_gpus)
  for way in none copy nccl; do
    suite llama-3.1-8b prefill_16x4096,mixed_256 --tensor-parallel-size "$size" --all-reduce-overlap "$way"
  done
  NCCL_MAX_CTAS=8 suite llama-3.1-8b prefill_16x4096 --tensor-parallel-size "$size" --all-reduce-overlap nccl
}
part_faults() {
  run faults 420 python3 tools/rank_faults.py --device cuda --ranks "$(num_gpus)" --log "$out/rank_faults.md"
}
part_tune() {
  run tune $((minutes * 60 + 60)) python3 tools/tune_kernels.py --out "$out" --minutes "$minutes"
  cp "$out"/NVIDIA*.json kernels/configs/
}
part_kernels() {
  run kernels 240 python3 -m runtime.bench.kernels --out "$out/kernels.jsonl"
}
decode=decode_b1,decode_b8,decode_b64,decode_b256
part_bench() {
  local model
  for model in ${models//,/ }; do
    case "$model" in
      llama*) suite "$model" "startup,$decode,decode_b8_long,prefill_16x4096,mixed_256,fixed_1024,prefix_512,decode_b256_gaps" ;;
      bloom*) suite "$model" startup,decode_b1,decode_b64,mixed_256,prefill_32x2048 ;;
      *) suite "$model" "startup,$decode,mixed_256,fixed_1024,decode_b1_gaps" ;;
    esac
  done
}
part_deterministic() {
  suite llama-3.1-8b "$decode,decode_b8_long,prefill_16x4096,mixed_256" --deterministic
}
suite() { # suite MODEL SCENARIOS [FLAG...]: on random weights of the model's shapes
  local name
  name=bench-$1$(printf %s "${@:3}" ${NCCL_MAX_CTAS:+-ctas$NCCL_MAX_CTAS})
  run "$name" 400 python3 -m runtime bench suite --model "docs/benchmarks/configs/$1" --load-format dummy \
    --scenarios "$2" --repeat "${REPEAT:-3}" --append "$out/bench.jsonl" \
    --step-log "$out/steps-${name#bench-}.jsonl" "${@:3}"
}
part_embedding() { # an engine in a C++ program beside Python's, both at once on one GPU
  local folder=build/tests-embed package
  package=$(python3 -m runtime --cmake-dir)
  run embedding-configure 60 cmake -S tests/embed -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -Druntime_DIR="$package"
  run embedding-build 120 cmake --build "$folder" --target bench_engine
  RUNTIME_PYTHON=$(command -v python3) run embedding 500 python3 tools/bench_embedding.py "$folder/bench_engine" \
    --scenario mixed_256 --pairs "${REPEAT:-3}" --tag llama-3.1-8b --append "$out/bench.jsonl" device=cuda \
    model=docs/benchmarks/configs/llama-3.1-8b load_format=dummy "kv_cache_memory_bytes=${EMBEDDING_KV_BYTES:-34359738368}"
}
part_simulation() { # the simulator, calibrated on two scenarios, predicts two others
  local model=llama-3.1-8b
  [ -e "$out/steps-$model.jsonl" ] || suite "$model" decode_b64,fixed_1024,mixed_256,prefix_512
  run simulation 60 python3 -m runtime bench simulation --model "docs/benchmarks/configs/$model" \
    --step-log "$out/steps-$model.jsonl" --rows "$out/bench.jsonl" --append "$out/simulation.jsonl"
}
part_serve() {
  local flags=(--load-format dummy --skip-tokenizer-init --json --append "$out/bench.jsonl")
  local model=docs/benchmarks/configs/llama-3.1-8b
  run startup 300 python3 -m runtime bench startup --model "$model" --kernel-cache both "${flags[@]}"
  run serve 300 python3 -m runtime bench serve --spawn "$model" --scenario mixed_256 --offline-pair "${flags[@]}"
}

for part in "${parts[@]}"; do "part_$part"; done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
