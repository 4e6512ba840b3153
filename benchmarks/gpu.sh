#!/usr/bin/env bash
# Check and measure on a GPU, without network: benchmarks/gpu.sh OUTDIR [STEP...]
#
# STEP is `first` (the default) or `second`, which are many steps in about five minutes, or one step by its name. Each
# step has a limit of time and ends with a verdict (PASS, FAIL, TIMEOUT or MISSING, and seconds) and the end of its
# output; then the next one goes on. OUTDIR gets verdicts.txt, rows.jsonl and logs.tar.gz. docs/benchmarks.md says what
# to carry to a machine without network, and how to read the results.
set -uo pipefail
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUTDIR [STEP...]}" && cd "$1" && pwd) || exit
shift
cd "$(dirname "$0")/.." || exit
budget=${BUDGET:-300} # seconds of all steps
carried=${CARRIED:-carried} # what `make carried` gathers
work=$(mktemp -d) && logs=$work/logs && mkdir "$logs" || exit
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>"$logs/capability.log" | head -n 1)
export capability PYTHONPATH="$work/site:$PWD" PYTHONUNBUFFERED=1

first() {
  build & native & wait # both compile, and neither needs the GPU
  keep
  blur-cuda # alone on the GPU
  similarity-cuda
  peers
  keep
  tests-cuda & tests-triton & memcheck & racecheck & initcheck & wait
  keep
  blur-triton
  similarity-triton
}

second() {
  build
  ncu
  variants
  pipeline
  ablation
}

wheels() {
  step wheels 30 python3 -m pip install -q --no-index --no-deps --no-compile --target "$work/site" "$carried"/wheels/*.whl
}
device() { step device 20 nvidia-smi; }
build() { step build 170 bash -c load_or_compile; }
native() {
  local options=(-std=c++17 -O2 -lineinfo "-arch=sm_${capability/./}" -Icsrc)
  step native 170 nvcc "${options[@]}" -o "$work/native" benchmarks/gpu_native/*.cu csrc/*/cuda*.cu
}
blur-cuda() { rows 60; }
blur-triton() { rows 100; } # which compiles
similarity-cuda() { rows 60; }
similarity-triton() { rows 60; }
peers() { rows 60; }
tests-cuda() { tests 8 "(cuda or on_gpu or large) and not triton"; }
tests-triton() { tests 6 triton; }
memcheck() { sanitize; }
racecheck() { sanitize; }
initcheck() { sanitize; }
ncu() { # four kernels, each once
  local sections=(SpeedOfLight MemoryWorkloadAnalysis Occupancy LaunchStats WarpStateStats InstructionStats)
  local options=(--profile-from-start off --clock-control none --export "$logs/ncu" "${sections[@]/#/--section=}")
  step ncu 100 ncu "${options[@]}" python3 -m benchmarks.gpu_times --profile
  step ncu-rows 20 ncu --import "$logs/ncu.ncu-rep" --page details --csv
}
variants() { # the CUDA kernels as they are, then with each NAME=VALUE of $VARIANTS in the environment
  local each
  for each in BASELINE=1 ${VARIANTS:-}; do
    step "variant-$each" 60 env "$each" python3 -m benchmarks.gpu_times blur-cuda similarity-cuda --json "$logs/$each.jsonl"
  done
}
pipeline() { step pipeline 60 python3 -m benchmarks.pipeline --vision RN50 --memory-gb 10 --json "$out/rows.jsonl"; }
ablation() {
  step ablation 90 python3 -c "from bvsa_core.cli import main; raise SystemExit(main())" \
    reproduce ablation --eeg "$carried/eeg" --out "$work/ablation" --resamples 0
  find "$work/ablation" -maxdepth 1 -type f -exec cp -t "$logs" {} + # tables and page, without weights and features
}

rows() { # rows SECONDS: of the group of benchmarks/gpu_times.py that is named as the step
  step "${FUNCNAME[1]}" "$1" python3 -m benchmarks.gpu_times "${FUNCNAME[1]}" --json "$out/rows.jsonl"
}

tests() { # tests WORKERS EXPRESSION: with a fixed seed; one process where pytest-xdist is not installed
  local workers=() options=(-v -rfE --no-header -p no:cacheprovider --hypothesis-seed=0)
  python3 -c "import xdist" 2>"$logs/xdist.log" && workers=(-n "$1")
  # test_modules.py is about wrappers of the CPU kernels
  step "${FUNCNAME[1]}" 120 env FOVBLUR_TEST_SEED=0 OMP_NUM_THREADS=1 python3 -m pytest "${options[@]}" "${workers[@]}" \
    tests/fovblur --ignore tests/fovblur/test_modules.py -k "$2 and not compiled and not gpu_resources and not ptx"
}

sanitize() { # the native program, whose buffers are exactly as large as what they hold
  step "${FUNCNAME[1]}" 100 compute-sanitizer --tool "${FUNCNAME[1]}" --error-exitcode 1 "$work/native"
}

load_or_compile() { # the module for this card alone, unless one that serves it is there
  local loads='import sys; from fovblur import backends; sys.exit(backends.unavailable_reason("cuda"))'
  python3 -c "$loads" || TORCH_CUDA_ARCH_LIST=$capability FOVBLUR_BUILD_CUDA=1 python3 setup.py -q build_ext --inplace
  python3 -m fovblur.info
  python3 -c "$loads"
}
export -f load_or_compile

step() { # step NAME SECONDS COMMAND...: NAME.log keeps the whole output; a call's last steps have what time is left
  local name=$1 limit=$2 start=$SECONDS left=$((budget - SECONDS)) log=$logs/$1.log code lines=30 verdict
  shift 2
  limit=$((limit < left ? limit : left))
  if ((limit < 1)); then
    echo "no time was left of $budget s" >"$log"
    code=124
  else # an interrupt lets pytest sum up; commands in the background ignore it by default
    timeout --signal=INT --kill-after=5 "$limit" env --default-signal=INT "$@" >"$log" 2>&1
    code=$?
  fi
  case $code in
    0) verdict=PASS lines=8 ;;
    124 | 137) verdict=TIMEOUT ;;
    127) verdict=MISSING ;;
    *) verdict=FAIL ;;
  esac
  verdict="$verdict $name $((SECONDS - start)) s"
  echo "$verdict" >>"$out/verdicts.txt"
  printf '%s\n' "== $verdict" "$(tail -n $lines "$log" | cut -c 1-200)"
}

keep() { tar -czf "$work/logs.tar.gz" -C "$work" logs && mv "$work/logs.tar.gz" "$out/logs.tar.gz"; }

finish() {
  keep
  rm -rf "$work"
  printf '\n== verdicts\n'
  cat "$out/verdicts.txt"
  ! grep -qv ^PASS "$out/verdicts.txt"
}

: >"$out/verdicts.txt"
for each in "${@:-first}"; do
  if ! declare -F "$each" >/dev/null; then
    echo "benchmarks/gpu.sh: no step $each" >&2
    exit 2
  fi
done
trap 'exit 143' TERM
trap 'finish && exit 0; exit 1' EXIT
device
if compgen -G "$carried/wheels/*.whl" >/dev/null; then wheels; fi
for each in "${@:-first}"; do "$each"; done
