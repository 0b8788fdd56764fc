#!/usr/bin/env bash
# The thread pool under stress, and every op on random shapes with four threads and with one, under sanitizers: dev/sanitize.sh [address] [thread] [readers] [-- rounds seed]
# address: AddressSanitizer and UBSan. thread: ThreadSanitizer. Default both. Needs cmake, ninja and a Python with pybind11 (PYTHON).
# readers: the whole extension under AddressSanitizer and UBSan, and with it the tests that damage model and tokenizer files, and batches with prefixes (needs freedive[test]).
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
kinds=()
while (($#)) && [[ $1 != -- ]]; do
  kinds+=("$1")
  shift
done
(($#)) && shift
((${#kinds[@]})) || kinds=(address thread)
for kind in "${kinds[@]}"; do
  if [[ $kind == readers ]]; then
    build=${BUILD_DIR:-build}/sanitize-address
    cmake -S . -B "$build" -G Ninja -DFREEDIVE_SANITIZE=address -DPython_EXECUTABLE="$(command -v "$python")" \
      -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
    cmake --build "$build" --target _core
    rm -rf "$build/python" && cp -r python "$build/python" && rm -f "$build"/python/freedive/_core*.so && cp "$build"/_core*.so "$build/python/freedive/"
    echo "== readers"
    # Python is not built with the sanitizers, so their libraries are loaded before it; its own leaks are not looked for.
    LD_PRELOAD=$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so) PYTHONMALLOC=malloc PYTHONPATH=$build/python \
      ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
      "$python" -m pytest -q -p no:cacheprovider tests/model/test_open_fuzz.py tests/model/test_gguf.py tests/model/test_gguf_split.py tests/model/test_shared_prefix.py
    continue
  fi
  build=${BUILD_DIR:-build}/sanitize-$kind
  cmake -S . -B "$build" -G Ninja -DFREEDIVE_SANITIZE="$kind" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null
  cmake --build "$build" --target ops_threads thread_pool
  echo "== $kind"
  # ThreadSanitizer wants an address space without randomisation on kernels with many random bits; setarch where it is allowed.
  run=()
  if [[ $kind == thread ]] && setarch -R true 2>/dev/null; then run=(setarch -R); fi
  "${run[@]}" "$build/thread_pool" 600
  "${run[@]}" "$build/ops_threads" "$@"
done
