#!/usr/bin/env bash
# Run all checks that need a GPU, in less than nine minutes and without network: benchmarks/gpu.sh OUTDIR
#
# Builds in place, runs the tests of blur and similarity on both GPU backends (including those marked gpu and large),
# compute-sanitizer on the tests marked sanitize, the CUDA benchmarks, and BVSA's training step at batch 1024 under 10 GB,
# and writes the results to OUTDIR. Checks of compiled code alone are left to CI.
# Needs the packages of the extra `test`; install missing ones from wheels beforehand.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUTDIR}" && cd "$1" && pwd)
failed=0

step() {  # step NAME SECONDS COMMAND...: its output goes to OUTDIR/NAME.log and its last lines to the screen
  local name=$1 limit=$2
  shift 2
  echo "== $name"
  if timeout "$limit" "$@" >"$out/$name.log" 2>&1; then tail -n 3 "$out/$name.log"; else
    echo "failed ($?)"
    tail -n 30 "$out/$name.log"
    failed=1
  fi
}

step build 110 python3 -m pip install --no-build-isolation --no-deps -e .
step info 15 python3 -m fovblur.info
chosen="(gpu or cuda or triton or large) and not compiled and not gpu_resources"
step tests 110 python3 -m pytest -q tests/fovblur -k "$chosen" --maxfail 20 --no-header -p no:cacheprovider
on_gpu="tests/fovblur/test_on_gpu.py tests/fovblur/test_similarity_on_gpu.py"
for tool in memcheck racecheck; do
  step "$tool" 50 compute-sanitizer --tool "$tool" --error-exitcode 1 python3 -m pytest -q $on_gpu -m sanitize -k cuda -p no:cacheprovider
done
step benchmarks 90 python3 -m benchmarks --device cuda --suite blur --json "$out/blur_cuda.json"
step similarity 45 python3 -m benchmarks --device cuda --suite similarity --select "not compile" --json "$out/similarity_cuda.json"
step training 30 python3 -m benchmarks --device cuda --suite training --select "z256 or z1024" --json "$out/training_cuda.json"
step pipeline 40 python3 -m benchmarks.pipeline --device cuda --vision RN50 --memory-gb 10 --json "$out/pipeline_cuda.json"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/gpu.txt"
git rev-parse HEAD >"$out/commit.txt" 2>/dev/null
exit $failed
