#!/usr/bin/env bash
# Builds and runs what others would: consumers of a package by CMake (shared, static, C++) and by pkg-config (shared, static).
#
#   scripts/package_check.sh FOLDER     the unpacked package that scripts/package.sh made
set -euo pipefail
cd "$(dirname "$0")/.."
prefix=$(cd "$1" && pwd)
root=$PWD
model=tests/golden/tiny/chat
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake -S tests/c/consumer -B "$work/cmake" -DCMAKE_PREFIX_PATH="$prefix" -DSOURCES="$root" >"$work/log" 2>&1 &&
    cmake --build "$work/cmake" >>"$work/log" 2>&1 || { cat "$work/log"; exit 1; }
for program in shared static; do "$work/cmake/$program" "$model" Hello cpu >"$work/$program.txt"; done
"$work/cmake/cpp" "$model"
echo "CMake: shared, static, C++"

export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
cc examples/c/first_text.c -o "$work/pc" $(pkg-config --cflags --libs runtime) -Wl,-rpath,"$prefix/lib"
cc examples/c/first_text.c -o "$work/pc_static" $(pkg-config --cflags runtime) "$prefix/lib/libruntime.a" \
    $(pkg-config --static --libs-only-l runtime | sed 's/-lruntime//')
for program in pc pc_static; do "$work/$program" "$model" Hello cpu >"$work/$program.txt"; done
for program in static pc pc_static; do cmp "$work/shared.txt" "$work/$program.txt"; done
readelf -d "$work/pc" | grep -q "NEEDED.*libruntime.so.[0-9]" || { echo "error: the program does not ask for the SONAME"; exit 1; }
echo "pkg-config: shared, static; all say the same"
