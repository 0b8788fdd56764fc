#!/usr/bin/env bash
# The thread pool under stress, and every op on random shapes with four threads and with one, under sanitizers: dev/sanitize.sh [address] [thread] [-- rounds seed]
# address: AddressSanitizer and UBSan. thread: ThreadSanitizer. Default both. Needs cmake, ninja and a Python with pybind11 (PYTHON).
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
