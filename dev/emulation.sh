#!/usr/bin/env bash
# The CUDA kernels executed by csrc/emulation, with something looking over their shoulder: dev/emulation.sh address|coverage [pytest arguments]
# or dev/emulation.sh thread [rounds] [seed] [part of an op's name]
# address: AddressSanitizer and UBSan. coverage: gcov's share of lines of csrc/cuda, per file, and kernels that never ran, each instance of a template; fails
# below 95 %, and where one has not. thread: ThreadSanitizer with a context per CUDA thread; every variant of every op, by tests/cpp/ops_emulated.cpp.
# Needs cmake, ninja and a Python (PYTHON) with pybind11 and (not for thread) freedive[test], installed or built in place
# (dev/build_inplace.sh, then PYTHONPATH=python).
set -euo pipefail
cd "$(dirname "$0")/.."
kind=${1:-}
(($#)) && shift
python=${PYTHON:-python3}
build=${BUILD_DIR:-build}/emulation-$kind
options=()
case $kind in
  address) options=(-DFREEDIVE_SANITIZE=address) ;;
  thread) options=(-DFREEDIVE_SANITIZE=thread) ;;
  coverage) options=(-DCMAKE_CXX_FLAGS=--coverage -DCMAKE_SHARED_LINKER_FLAGS=--coverage -DCMAKE_MODULE_LINKER_FLAGS=--coverage) ;;
  *) echo "dev/emulation.sh address|coverage|thread, not '$kind'" && exit 2 ;;
esac
options+=(-DFREEDIVE_CUDA_EMULATION=ON -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)")
if [[ $kind == thread ]]; then
  cmake -S . -B "$build" -G Ninja "${options[@]}" >/dev/null
  cmake --build "$build" --target ops_emulated
  # ThreadSanitizer wants an address space without randomisation on kernels with many random bits; setarch where it is allowed.
  run=()
  if setarch -R true 2>/dev/null; then run=(setarch -R); fi
  TSAN_OPTIONS="halt_on_error=1 history_size=0 ${TSAN_OPTIONS:-}" exec "${run[@]}" "$build/ops_emulated" "$@"
fi
# Asked before the build, which takes minutes.
package=$("$python" -c 'import os, freedive._core; print(os.path.dirname(freedive.__file__))') || {
  echo "$python has no freedive: pip install . or, with the package built in place (dev/build_inplace.sh), PYTHONPATH=python" && exit 2
}
cmake -S . -B "$build" -G Ninja "${options[@]}" >/dev/null
cmake --build "$build" --target freedive_cuda_emu
rm -rf "$build/python" && mkdir "$build/python" && cp -r "$package" "$build/python/freedive" && cp "$build/_cuda_emu.so" "$build/python/freedive/"
run=(env PYTHONPATH="$PWD/$build/python")
[[ $build == /* ]] && run=(env PYTHONPATH="$build/python")
run+=(OPENBLAS_NUM_THREADS=1)
# One small shape of each op and variant; with pytest arguments, what they say.
small='cuda-emu and (test_seed_and_counter or test_against_reference and (5x or 3x or 7x or 1x or 9x or 6x or 17) and not 300 and not 530 and not 1000 or test_a_sequence_has_its_bits_in_any_batch)'
case $kind in
  address) run+=(LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)" PYTHONMALLOC=malloc
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1) ;;
  coverage) # the op tests, and the decoder's streams and graphs
    run+=(FREEDIVE_GPU_DEVICE=cuda-emu)
    (($#)) || set -- tests/ops tests/gpu/test_runtime.py tests/gpu/test_graphs.py -k 'cuda-emu or test_runtime or test_graphs' ;;
esac
(($#)) || set -- tests/ops/test_ops_reference.py tests/ops/test_ops_sampling.py tests/ops/test_ops_tensor_cores.py -k "$small"
[[ $kind == coverage ]] && find "$build" -name '*.gcda' -delete
"${run[@]}" "$python" -m pytest -q -x -p no:cacheprovider "$@"
[[ $kind == coverage ]] || exit 0
"$python" - "$build" <<'PYTHON'
import json, subprocess, sys
from collections import Counter
from os.path import normpath
from pathlib import Path

hits: dict[str, Counter[int]] = {}
ran: Counter[str] = Counter()  # instances of kernels
for data in Path(sys.argv[1]).rglob("*.gcda"):
    out = subprocess.run(["gcov", "--json-format", "--demangled-names", "--stdout", str(data)], capture_output=True, text=True, check=True).stdout
    for file in (file for line in out.splitlines() for file in json.loads(line)["files"]):
        path = normpath(file["file"])
        if "csrc/cuda/" not in path:
            continue
        name = "csrc/cuda/" + path.split("csrc/cuda/")[1]
        source = Path(name).read_text().splitlines()
        for line in file["lines"]:
            hits.setdefault(name, Counter())[line["line_number"]] += line["count"]
        for function in file["functions"]:
            if any("__global__" in line for line in source[max(0, function["start_line"] - 2) : function["start_line"]]):
                ran[f"{name}: {function['demangled_name']}"] += function["execution_count"]
total = missed = 0
for name, lines in sorted(hits.items()):
    miss = sorted(n for n, count in lines.items() if count == 0)
    total, missed = total + len(lines), missed + len(miss)
    print(f"{name:36} {len(lines):5} lines {100 * (1 - len(miss) / len(lines)):6.1f} %  {'not run: ' + ' '.join(map(str, miss)) if miss else ''}")
ran = Counter({kernel: count for kernel, count in ran.items() if ", long>" not in kernel})  # for 2^31 pieces of work and more: no emulated call has them
idle = sorted(kernel for kernel, count in ran.items() if count == 0)
print(f"all {total} lines: {100 * (1 - missed / total):.1f} %; kernels: {len(ran) - len(idle)} of {len(ran)} ran", *idle, sep="\n  not run: ")
sys.exit(missed > 0.05 * total or bool(idle) or not ran)
PYTHON
