#!/usr/bin/env bash
# dev/check_wheel.sh [--others | PYTHON ...]: can what we would publish be built, installed and used? About a minute for each Python.
# Without arguments: each of Python 3.10 to 3.13 that PATH or pyenv has; --others leaves out the version of `python3` if there are others.
#
# Builds the sdist and looks at what is in it; builds a wheel from the sdist with each Python, as pip does for a user; installs it in a fresh
# venv and, away from the source, runs `freedive doctor`, the public API, one step of pretraining and the model it wrote. One line for each
# Python; exit code 1 if anything failed. Needs pip's index and nothing else of the network.
set -uo pipefail
cd "$(dirname "$0")/.."
source=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1 FREEDIVE_THREADS=${FREEDIVE_THREADS:-2}
unset PYTHONPATH

fail() { # fail WHAT [LOG]
  echo "check_wheel: $1" >&2
  [ -z "${2:-}" ] || tail -n 40 "$2" >&2
  exit 1
}

others=
if [ "${1:-}" = --others ]; then
  others=$(python3 -c 'import sys; print(sys.version_info[1])')
  shift
fi
pythons=("$@")
usable() { "$1" -c 'import ensurepip, os, sysconfig as s; assert os.path.exists(s.get_path("include") + "/Python.h")' 2>/dev/null; }
if ((!$#)); then
  for minor in 10 11 12 13; do
    [ "$minor" != "$others" ] || continue
    mapfile -t candidates < <(
      command -v "python3.$minor"
      find "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions" -maxdepth 3 -path "*/3.$minor.*/bin/python" 2>/dev/null | sort -rV
    )
    for candidate in "${candidates[@]}" ""; do
      if [ -z "$candidate" ]; then echo "python 3.$minor: none here with venv and headers, skipped"; break; fi
      if usable "$candidate"; then pythons+=("$candidate"); break; fi
    done
  done
  ((${#pythons[@]})) || [ -z "$others" ] || pythons=("$(command -v python3)")
fi
((${#pythons[@]})) || fail "no Python 3.10 to 3.13 found; name one: dev/check_wheel.sh /path/to/python3"

# ---- the sdist
"${pythons[0]}" -m venv "$work/build-venv" && "$work/build-venv/bin/pip" install -q build || fail "the package build could not be installed"
"$work/build-venv/bin/python" -m build --sdist -o "$work" . >"$work/sdist.log" 2>&1 || fail "python -m build --sdist failed" "$work/sdist.log"
sdist=$(echo "$work"/freedive-*.tar.gz)
mkdir "$work/sdist" && tar -xzf "$sdist" -C "$work/sdist" --strip-components=1 || fail "the sdist could not be unpacked"
for needed in LICENSE README.md PKG-INFO pyproject.toml CMakeLists.txt csrc/ops.h python/freedive/__init__.py python/freedive/py.typed tests/conftest.py; do
  [ -f "$work/sdist/$needed" ] || fail "the sdist lacks $needed"
done
wrong=$(cd "$work/sdist" && find . \( -name '*.so' -o -name '*.o' -o -name '*.pyc' -o -name '__pycache__' -o -path ./build -o -path ./dist -o -path ./.ci -o -path ./.git \) -print)
[ -z "$wrong" ] || fail "the sdist holds what it should not: $wrong"
if git ls-files >"$work/tracked" 2>/dev/null && [ -s "$work/tracked" ]; then
  (cd "$work/sdist" && find . -type f ! -path ./PKG-INFO -printf '%P\n') | sort | comm -23 - <(sort "$work/tracked") >"$work/untracked"
  [ ! -s "$work/untracked" ] || echo "note: in the sdist, but not known to git: $(tr '\n' ' ' <"$work/untracked")"
fi
echo "sdist: $(find "$work/sdist" -type f | wc -l) files, $(du -k "$sdist" | cut -f1) KB"

# ---- a wheel for each Python
check() { # check PYTHON NUMBER: runs in a folder of its own, so that nothing is imported from the source tree
  local here=$work/$2
  mkdir -p "$here/empty" && cd "$here/empty" || return
  "$1" -m venv "$here/venv" || return
  "$here/venv/bin/pip" wheel -q --no-deps -w "$here" "$sdist" || return
  "$here/venv/bin/pip" install -q "$here"/freedive-*.whl || return
  "$here/venv/bin/freedive" doctor && ! "$here/venv/bin/freedive" doctor --json | grep '"missing"' || return
  "$here/venv/bin/python" -W error - "$source/README.md" <<'PY' || return
import pathlib
import sys

import freedive

assert "site-packages" in freedive.__file__, freedive.__file__
for name in freedive.__all__:
    getattr(freedive, name)
tok = freedive.train_tokenizer([pathlib.Path(sys.argv[1]).read_text()], vocab_size=300)
assert tok.decode(tok.encode("three, two")) == "three, two"
PY
  "$here/venv/bin/freedive" pretrain --text "$source/README.md" --tokenizer bytes --steps 1 --samples 1 --out "$here/base" || return
  "$here/venv/bin/python" -c 'import freedive, sys; print(len(freedive.load(sys.argv[1]).generate("The", max_new_tokens=4)))' "$here/base"
}
failures=0
for i in "${!pythons[@]}"; do
  name=$("${pythons[$i]}" -c 'import sys; print("python %d.%d.%d" % sys.version_info[:3])') || fail "${pythons[$i]} does not run"
  began=$SECONDS
  if (check "${pythons[$i]}" "$i") >"$work/log" 2>&1; then
    wheel=$(basename "$work/$i"/freedive-*.whl)
    echo "$name: $wheel built, installed, doctor, API, one step of pretraining, sampling: ok ($((SECONDS - began)) s)"
  else
    failures=$((failures + 1))
    echo "$name: FAILED"
    tail -n 40 "$work/log"
  fi
  rm -rf "${work:?}/$i"
done
((failures == 0))
