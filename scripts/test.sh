#!/usr/bin/env bash
# Prepares a machine and runs everything: formatting, lints, all tests. Installs software Vulkan where there is none, so
# that the wgpu backend is tested without a GPU. Needs Rust, Python with pip, a C compiler, and apt-get (or root's help)
# only where something is missing. About 45 minutes on 2 cores, from nothing.
set -uo pipefail
cd "$(dirname "$0")/.."

export MESA_SHADER_CACHE_DIR="$PWD/.cache/mesa" # software Vulkan compiles for up to a second a kernel: keep the results
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
mkdir -p .cache

summary=""
failed=0
step() { # step NAME COMMAND…: runs it, goes on after a failure
    local name=$1 start=$SECONDS verdict=ok
    shift
    printf '\n== %s\n' "$name"
    if ! "$@" </dev/null; then
        verdict=FAILED
        failed=1
    fi
    summary+=$(printf '%-8s %5d s  %s' "$verdict" $((SECONDS - start)) "$name")$'\n'
}

apt_install() { # apt_install WHY PACKAGE…
    local why=$1 sudo=""
    shift
    if ! command -v apt-get >/dev/null; then
        echo "error: $why, and there is no apt-get: install the equivalent of: $*" >&2
        return 1
    fi
    if [ "$(id -u)" != 0 ]; then
        sudo="sudo -n"
        if ! $sudo true 2>/dev/null; then
            echo "error: $why: run as root: apt-get install $*" >&2
            return 1
        fi
    fi
    echo "$why: installing $*"
    $sudo apt-get update -qq && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

tools() {
    command -v cargo >/dev/null || { echo "error: cargo is missing: install Rust from https://rustup.rs" >&2; return 1; }
    command -v cc >/dev/null || apt_install "no C compiler" gcc libc6-dev || return 1
    command -v python3 >/dev/null || apt_install "no Python" python3 python3-venv python3-pip || return 1
    python3 -m pip --version >/dev/null 2>&1 || apt_install "Python has no pip" python3-pip || return 1
}

vulkan() {
    case "$(uname -s)" in Linux) ;; *) return 0 ;; esac # elsewhere wgpu uses Metal or DX12
    # The loader, and at least one driver (a real one or Mesa's lavapipe) that announces itself to it.
    if (ldconfig -p 2>/dev/null || /sbin/ldconfig -p) | grep -q 'libvulkan\.so\.1' &&
        compgen -G '/usr/share/vulkan/icd.d/lvp_icd*.json' >/dev/null; then
        return 0
    fi
    apt_install "no software Vulkan" libvulkan1 mesa-vulkan-drivers
}

browser() { # the page's test drives it
    case "$(uname -s)" in Linux) ;; *) return 0 ;; esac
    command -v chromedriver >/dev/null || apt_install "no browser" chromium chromium-driver
}

embedding() { # what the tests of the C ABI and its bindings compile and run with
    case "$(uname -s)" in Linux) ;; *) return 0 ;; esac
    local missing=() pair
    for pair in gcc:gcc g++:g++ clang:clang mcs:mono-mcs mono:mono-runtime valgrind:valgrind cmake:cmake pkg-config:pkg-config nm:binutils patchelf:patchelf xz:xz-utils; do
        command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
    done
    [ "${#missing[@]}" = 0 ] || apt_install "no ${missing[*]}" libc6-dev "${missing[@]}"
}

python_packages() {
    local clients=("openai==3.*" "anthropic==2.*")
    # NVIDIA's compiler needs no GPU: it checks every CUDA kernel, and the build takes its output along.
    case "$(uname -s)" in Linux) clients+=("nvidia-cuda-nvrtc==13.0.*") ;; *) export RUNTIME_NO_NVRTC=1 ;; esac
    python_environment .venv "${clients[@]}" || return 1
    # On their own, because LlamaIndex asks for an older client.
    python_environment .venv-frameworks "langchain-openai==1.*" "llama-index-llms-openai-like==0.8.*"
}
python_environment() { # python_environment FOLDER PACKAGE…
    local folder=$1 python=$1/bin/python
    shift
    if [ ! -x "$python" ] && ! python3 -m venv "$folder"; then
        rm -rf "$folder"
        apt_install "Python cannot make environments" python3-venv && python3 -m venv "$folder" || return 1
    fi
    "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

package() { # of the libraries that the tests were built with, so that nothing is compiled once more
    case "$(uname -s)" in Linux) ;; *) return 0 ;; esac
    PROFILE=release FEATURES=default scripts/package.sh target/package
}
package_consumers() {
    case "$(uname -s)" in Linux) ;; *) return 0 ;; esac
    scripts/package_check.sh target/package/runtime-*/
}

format() { # a toolchain of the minimal profile has neither rustfmt nor clippy
    if cargo fmt --version >/dev/null 2>&1; then cargo fmt --check; else echo "rustfmt is not installed: skipped"; fi
}
lints() {
    if cargo clippy --version >/dev/null 2>&1; then
        cargo clippy --release --locked --all-targets -- -D warnings
    else
        echo "clippy is not installed: skipped"
    fi
}

# The same profile and folder as a user's build, so that a machine compiles the dependencies once.
step "tools" tools
step "software Vulkan" vulkan
step "browser" browser
step "embedding" embedding
step "Python packages" python_packages
step "model" scripts/fetch_model.sh
step "format" format
step "build" cargo build --release --locked
step "tests" cargo test --release --locked --no-fail-fast
step "package" package
step "package's consumers" package_consumers
step "lints" lints

printf '\n%s' "$summary"
if [ "$failed" = 0 ]; then echo "all green in $SECONDS s"; else echo "something failed, see above"; fi
exit "$failed"
