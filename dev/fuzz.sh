#!/usr/bin/env bash
# libFuzzer on every reader of other people's files, some seconds each: dev/fuzz.sh SECONDS [READER...]. Inputs that end a run are kept in
# $FUZZ_OUT (default ./fuzz-found) as crash-*, timeout-* and oom-*. Needs freedive and `pip install atheris` in PYTHON's environment.
set -uo pipefail
seconds=${1:?usage: dev/fuzz.sh SECONDS [READER...]}
shift
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=${FUZZ_OUT:-fuzz-found}
mkdir -p "$out"
shm=/dev/shm  # the readers read files, thousands a second
[[ -w $shm ]] || shm=${TMPDIR:-/tmp}
TMPDIR=$(mktemp -d "$shm/freedive-fuzz-XXXXXX")
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
(($#)) || mapfile -t readers < <("$python" "$here/tests/fuzz/fuzz_readers.py" list 2>/dev/null)
(($#)) && readers=("$@")
((${#readers[@]})) || { echo "no readers: is atheris installed (pip install atheris)?" >&2; exit 2; }
failed=()
for reader in "${readers[@]}"; do
  log=$out/$reader.log
  "$python" "$here/tests/fuzz/fuzz_readers.py" "$reader" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -artifact_prefix="$out/$reader-" \
    -print_final_stats=1 >"$log" 2>&1 || failed+=("$reader")
  rm -rf "${TMPDIR:?}"/*
  echo "$reader: $(grep -o 'stat::number_of_executed_units: *[0-9]*' "$log" | grep -o '[0-9]*$' || echo '?') inputs, coverage $(grep -o 'cov: [0-9]*' "$log" | tail -1)"
done
((${#failed[@]})) || exit 0
echo "found something: ${failed[*]} (see $out)"
exit 1
