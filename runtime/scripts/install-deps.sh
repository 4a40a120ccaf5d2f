#!/usr/bin/env bash
# Installs what a build needs beside Rust and Python, and only what is missing: cmake, a C++ compiler and libclang (they
# compile llama.cpp and its bindings), protoc with the messages that Protocol Buffers define themselves (the etcd
# client's), nats-server and etcd (tests and examples start their own), valgrind (a test counts instructions), pip and venv
# (the model, the test clients).
#
# Meant for Debian and its relatives. Needs root, or sudo that does not ask for a password or a terminal to ask on; when
# nothing is missing it needs neither and takes no time. `install-deps.sh --check` only says what is missing (exit code
# 1 if anything is).
set -euo pipefail

# bindgen loads libclang and reads the headers that come with it; LIBCLANG_PATH names a libclang elsewhere.
have_libclang() {
    [[ -n "${LIBCLANG_PATH:-}" ]] && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}

# Debian puts servers where only root's search path leads.
PATH="$PATH:/usr/sbin"
have() { command -v "$1" >/dev/null 2>&1; }

missing=()
have cmake || missing+=(cmake)
{ have c++ && have cc; } || missing+=(g++)
have make || missing+=(make)
have_libclang || missing+=(libclang-dev)
have protoc || missing+=(protobuf-compiler)
# Debian's protoc comes without the files that messages import from it, and looks for them beside itself.
have protoc && [[ -f "$(dirname "$(command -v protoc)")/../include/google/protobuf/descriptor.proto" ]] ||
    [[ -n "${PROTOC_INCLUDE:-}" ]] || missing+=(libprotobuf-dev)
have nats-server || missing+=(nats-server)
have etcd || missing+=(etcd-server)
# Counts instructions for a test.
have valgrind || missing+=(valgrind)
# The benches' load: `install-deps.sh wrk`.
[[ "${1:-}" != wrk ]] || have wrk || missing+=(wrk)
if have python3; then
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    python3 -c 'import ensurepip' >/dev/null 2>&1 || missing+=(python3-venv)
else
    missing+=(python3 python3-pip python3-venv)
fi

if [[ ${#missing[@]} -eq 0 ]]; then
    exit 0
fi
if [[ "${1:-}" == --check ]]; then
    echo "missing: ${missing[*]}"
    exit 1
fi
if ! have apt-get; then
    echo "install-deps: this machine has no apt-get; install the equivalents of these Debian packages by hand: ${missing[*]}" >&2
    exit 1
fi

as_root=()
if [[ $EUID -ne 0 ]]; then
    if have sudo && { sudo -n true 2>/dev/null || [[ -t 0 ]]; }; then
        as_root=(sudo)
    else
        echo "install-deps: these Debian packages are missing and installing them needs root: ${missing[*]}" >&2
        echo "install-deps: run as root: apt-get install -y ${missing[*]}" >&2
        exit 1
    fi
fi

echo "installing ${missing[*]}"
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
# The package lists of a fresh machine are empty or old; a mirror that is half down is no reason to stop before trying.
apt update || echo "install-deps: apt-get update failed; trying with the package lists that are here" >&2
if ! apt install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "install-deps: apt-get could not install ${missing[*]}; its messages are above" >&2
    exit 1
fi
