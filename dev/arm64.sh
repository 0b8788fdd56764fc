#!/usr/bin/env bash
# The arm64 build, without an arm64 machine: dev/arm64.sh [pytest arguments, such as tests/ops: hours]
#
# Cross-compiles the extension with every tier (baseline, neon, neon_bf16), checks that no tier leaks a symbol, and runs under qemu-user:
# the thread pool's stress test, every op on random shapes with four threads against one (tests/cpp/ops_threads.cpp), and on each NEON tier
# the Python tests named, or else every fast variant of every op against the NumPy reference. Emulation proves the bits, not the speed.
#
# What it needs and does not find it gets: Debian's cross compiler and qemu-user, installed if this is root; Debian's Python for arm64 with its
# headers, unpacked into a folder (apt's own state is not touched); NumPy and pytest for arm64 from pip's index.
#
#   WORK=FOLDER    keep downloads and the build there (default: a temporary folder)      ROUNDS=n    of ops_threads (6)
#   TIERS="..."    tiers for the Python tests (those of NEON)                              PYTHON=...  with pip, pybind11, cmake, ninja
# Exit code 3 and a reason if something cannot be had here.
set -euo pipefail
cd "$(dirname "$0")/.."
host=${PYTHON:-python3}
work=${WORK:-}
if [ -z "$work" ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
fi
mkdir -p "$work" && work=$(cd "$work" && pwd)
root=$work/root
cannot() { # cannot REASON [LOG]
  echo "arm64: not tested here: $1" >&2
  [ -z "${2:-}" ] || tail -n 5 "$2" >&2
  exit 3
}

# ---- tools
if ! command -v aarch64-linux-gnu-g++ >/dev/null || ! command -v qemu-aarch64 >/dev/null; then
  command -v apt-get >/dev/null || cannot "needs aarch64-linux-gnu-g++ and qemu-aarch64, and this is no Debian to install them"
  [ "$(id -u)" = 0 ] || cannot "apt install g++-aarch64-linux-gnu qemu-user"
  { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user; } >"$work/apt.log" 2>&1 ||
    cannot "g++-aarch64-linux-gnu and qemu-user could not be installed" "$work/apt.log"
fi
"$host" -c 'import pybind11' && command -v cmake >/dev/null && command -v ninja >/dev/null || cannot "pip install pybind11 cmake ninja"

# ---- Python for arm64: Debian's packages, unpacked
if [ ! -f "$root/complete" ]; then
  command -v apt-get >/dev/null || cannot "Python for arm64 is taken from Debian's packages, and this is no Debian"
  mkdir -p "$root" "$work/apt/lists/partial" "$work/apt/cache/archives/partial" && : >"$work/apt/status"
  apt=(apt-get -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$work/apt" -o Dir::State::status="$work/apt/status"
    -o Dir::Cache="$work/apt/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1)
  { "${apt[@]}" update && "${apt[@]}" install -y --download-only --no-install-recommends python3-minimal libpython3-stdlib libpython3-dev libstdc++6; } \
    >"$work/apt.log" 2>&1 || cannot "Python for arm64 could not be downloaded" "$work/apt.log"
  for package in "$work"/apt/cache/archives/*.deb; do dpkg -x "$package" "$root"; done
  touch "$root/complete"
fi
name=$(cd "$root/usr/bin" && ls -d python3.[0-9]* | grep -x 'python3\.[0-9]*' | head -1)
mkdir -p "$work/bin"
# As sys.executable too, so that tests which start Python start this one.
cat >"$work/bin/python" <<END
#!/bin/bash
export PYTHONHOME=$root/usr PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64 -L $root -0 $work/bin/python $root/usr/bin/$name "\$@"
END
chmod +x "$work/bin/python"
if [ ! -f "$work/site/complete" ]; then
  "$host" -m pip install -q --disable-pip-version-check --target "$work/site" --only-binary=:all: --implementation cp --python-version "${name#python}" \
    --platform manylinux2014_aarch64 --platform manylinux_2_26_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    "numpy>=1.26" "ml_dtypes>=0.4" "pytest>=8" "hypothesis>=6" >"$work/pip.log" 2>&1 || cannot "NumPy and pytest for arm64 could not be downloaded" "$work/pip.log"
  touch "$work/site/complete"
fi

# ---- build
rm -rf "$work/package" && mkdir "$work/package" && cp -r python/freedive "$work/package/" && rm -f "$work"/package/freedive/*.so
suffix=$("$work/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))')
cmake -S . -B "$work/build" -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  -DPython_EXECUTABLE="$work/bin/python" -DPython_INCLUDE_DIR="$root/usr/include/$name" -DPYTHON_MODULE_EXTENSION="$suffix" \
  -DCMAKE_CXX_FLAGS="-isystem $root/usr/include" -DCMAKE_BUILD_TYPE=Release \
  -Dpybind11_DIR="$("$host" -m pybind11 --cmakedir)" >"$work/cmake.log" || {
  tail -n 20 "$work/cmake.log"
  exit 1
}
nice cmake --build "$work/build" --target _core ops_threads thread_pool
cp "$work"/build/_core*.so "$work/package/freedive/"
NM=aarch64-linux-gnu-nm "$host" dev/check_weak_symbols.py "$work"/build/CMakeFiles/freedive_cpu_*.dir

# ---- run
export PYTHONPATH=$work/package:$work/site
run=(qemu-aarch64 -L "$root")
"${run[@]}" "$work/build/thread_pool" 60
"${run[@]}" "$work/build/ops_threads" "${ROUNDS:-6}"
(($#)) || set -- tests/ops/test_ops_reference.py -k "test_against_reference and simd"
tiers=${TIERS:-$("$work/bin/python" -c 'from freedive import _core; print(*_core.cpu_tiers()[1:])')}
for tier in $tiers; do
  echo "== $tier"
  FREEDIVE_CPU_ISA=$tier "$work/bin/python" -m pytest -q -p no:cacheprovider "$@"
done
