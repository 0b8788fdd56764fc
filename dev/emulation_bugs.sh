#!/usr/bin/env bash
# The emulator's self-test: every planted bug of tests/cpp/emulation_bugs.cpp must be noticed, by the emulator on one of its schedules or by a sanitizer around it,
# and the same kernels without their bugs must pass everywhere. dev/emulation_bugs.sh; needs cmake, ninja and a Python with pybind11 (PYTHON).
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
root=${BUILD_DIR:-build}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for kind in plain address thread; do
  build=$root/emulation-$kind
  sanitize=$kind
  [[ $kind == plain ]] && sanitize=
  cmake -S . -B "$build" -G Ninja -DFREEDIVE_CUDA_EMULATION=ON -DFREEDIVE_SANITIZE="$sanitize" -DPython_EXECUTABLE="$(command -v "$python")" \
    -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >/dev/null && cmake --build "$build" --target emulation_bugs >"$log" || { cat "$log"; exit 1; }
done
# ThreadSanitizer wants an address space without randomisation on kernels with many random bits; setarch where it is allowed.
fixed=()
setarch -R true 2>/dev/null && fixed=(setarch -R)
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 TSAN_OPTIONS="halt_on_error=1 history_size=0"
# notices KIND NAME bug|correct: true when something is noticed
notices() { ! "${fixed[@]}" "$root/emulation-$1/emulation_bugs" "$2" "$3" >"$log" 2>&1; }
names=$("$root/emulation-plain/emulation_bugs" list) && [[ -n $names ]] || { echo "no list of planted bugs"; exit 1; }
failed=0
printf '%-38s %-7s %-8s %-7s\n' bug plain address thread
for name in $names; do
  row=()
  for kind in plain address thread; do
    if notices "$kind" "$name" correct; then
      echo "$name without its bug fails ($kind):"
      head -20 "$log"
      failed=1
    fi
    if notices "$kind" "$name" bug; then row+=(yes); else row+=(-); fi
  done
  printf '%-38s %-7s %-8s %-7s\n' "$name" "${row[@]}"
  # Blocks that race run one after the other here: that one is ThreadSanitizer's. All others the emulator itself must notice.
  [[ ${row[$([[ $name == blocks_race ]] && echo 2 || echo 0)]} == yes ]] || { echo "$name: not noticed by whom it should be"; failed=1; }
done
echo "$(wc -w <<<"$names") planted bugs"
exit $failed
