#!/usr/bin/env bash
# Build the extension into python/freedive for development: dev/build_inplace.sh [cmake options]. Then PYTHONPATH=python.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=${BUILD_DIR:-build/inplace}
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" "$@" >/dev/null
cmake --build "$build"
for file in "$build"/_core*.so "$build"/_cuda*.so; do
  [ -e "$file" ] || continue  # renamed into place: a running process keeps the old one
  cp "$file" "python/freedive/.new" && mv "python/freedive/.new" "python/freedive/$(basename "$file")"
done
