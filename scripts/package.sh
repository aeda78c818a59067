#!/usr/bin/env bash
# Builds what a program that embeds the library installs, in cargo-c's layout, and packs it: OUT/runtime-VERSION-TARGET.tar.xz
# with the shared library (SONAME), the static one, headers, pkg-config and CMake files, and licences. Prints sizes and the
# native libraries that the static one needs.
#
#   scripts/package.sh [OUT]        default: target/package
#
# PROFILE chooses cargo's profile (dist), FEATURES its features (wgpu,cuda: a library needs no server; default: cargo's own);
# RUNTIME_NO_NVRTC=1 leaves out the compiled CUDA kernels. Linux only.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-target/package}
profile=${PROFILE:-dist}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
major=${version%%.*}
# Before 1.0 a minor version may change the interface.
soversion=$major
[ "$major" = 0 ] && soversion=$(echo "$version" | cut -d. -f1,2)
target=$(rustc -vV | sed -n 's/^host: //p')
name=runtime-$version-$target
built=target/$profile
prefix=$out/$name

echo "building ($profile)"
features=(--no-default-features --features "${FEATURES:-wgpu,cuda}")
[ "${FEATURES:-}" = default ] && features=()
cargo build --locked --profile "$profile" --lib "${features[@]}"
command -v patchelf >/dev/null || { echo "error: patchelf is missing: it sets the SONAME" >&2; exit 1; }
newest() { ls -t "$built/$1" "$built/deps/$1" 2>/dev/null | head -1; }
# All that the library wants of the system beyond Rust's own list is loaded at run time; package_check.sh links with it.
mkdir -p "$out"
native=$(rustc --crate-type staticlib --print native-static-libs -o "$out/none.a" - </dev/null 2>&1 |
    sed -n 's/^note: native-static-libs: //p' | tail -1)
[ -n "$native" ] || { echo "error: rustc did not say which native libraries are needed" >&2; exit 1; }

rm -rf "$prefix" "$out/none.a"
mkdir -p "$prefix"/{include,lib/pkgconfig,lib/cmake/runtime,share/licenses/runtime,share/doc/runtime}
cp include/*.h include/*.hpp "$prefix/include/"
cp "$(newest libruntime.so)" "$prefix/lib/libruntime.so.$version"
strip --strip-unneeded "$prefix/lib/libruntime.so.$version"
patchelf --set-soname "libruntime.so.$soversion" "$prefix/lib/libruntime.so.$version"
ln -s "libruntime.so.$version" "$prefix/lib/libruntime.so.$soversion"
ln -s "libruntime.so.$soversion" "$prefix/lib/libruntime.so"
cp "$(newest libruntime.a)" "$prefix/lib/libruntime.a"
strip --strip-debug "$prefix/lib/libruntime.a"
cp LICENSE-* "$prefix/share/licenses/runtime/"
cp bindings/c/README.md "$prefix/share/doc/runtime/"

# Found relative to the file, so that the folder can lie anywhere.
cat >"$prefix/lib/pkgconfig/runtime.pc" <<EOF
prefix=\${pcfiledir}/../..
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: runtime
Description: Loads a language model once, serves it and fine-tunes it
Version: $version
Libs: -L\${libdir} -lruntime
Libs.private: $native
Cflags: -I\${includedir}
EOF
cat >"$prefix/lib/cmake/runtime/runtimeConfig.cmake" <<EOF
# find_package(runtime), then target_link_libraries(program runtime::runtime), or runtime::static.
get_filename_component(_runtime_prefix "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET runtime::runtime)
    add_library(runtime::runtime SHARED IMPORTED)
    set_target_properties(runtime::runtime PROPERTIES
        IMPORTED_LOCATION "\${_runtime_prefix}/lib/libruntime.so.$version"
        IMPORTED_SONAME "libruntime.so.$soversion"
        INTERFACE_INCLUDE_DIRECTORIES "\${_runtime_prefix}/include")
    add_library(runtime::static STATIC IMPORTED)
    set_target_properties(runtime::static PROPERTIES
        IMPORTED_LOCATION "\${_runtime_prefix}/lib/libruntime.a"
        INTERFACE_INCLUDE_DIRECTORIES "\${_runtime_prefix}/include"
        INTERFACE_LINK_LIBRARIES "$native")
endif()
unset(_runtime_prefix)
EOF
cat >"$prefix/lib/cmake/runtime/runtimeConfigVersion.cmake" <<EOF
set(PACKAGE_VERSION "$version")
if(PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
    set(PACKAGE_VERSION_COMPATIBLE FALSE)
else()
    set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
EOF

XZ_OPT=${XZ_OPT:-"-T0 -3"} tar -C "$out" -cJf "$out/$name.tar.xz" "$name"
mib() { awk "BEGIN { printf \"%.1f MiB\", $(stat -L -c %s "$1") / 1048576 }"; }
echo "shared library, stripped: $(mib "$prefix/lib/libruntime.so")"
# Code; constants, of which the packed CUDA kernels are most where there are any; what unwinding needs; relocations.
size -A "$prefix/lib/libruntime.so" | awk '
    $1 == ".text" { code += $2 }
    $1 == ".rodata" { constants += $2 }
    $1 ~ /eh_frame|gcc_except_table/ { unwinding += $2 }
    $1 ~ /rela|data.rel.ro/ { relocations += $2 }
    END { m = 1048576; printf "  code %.1f, constants %.1f, unwinding %.1f, relocations %.1f MiB\n", code / m, constants / m, unwinding / m, relocations / m }'
echo "static library:           $(mib "$prefix/lib/libruntime.a")"
echo "archive:                  $(mib "$out/$name.tar.xz")"
echo "native static libraries:  $native"
echo "$out/$name.tar.xz"
