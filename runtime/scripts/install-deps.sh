#!/usr/bin/env bash
# Installs what is needed beside Rust and Python, and only what is missing.
#
#   install-deps.sh            all that tests need
#   install-deps.sh build      what a build needs: cmake, a C++ compiler and libclang (they compile llama.cpp and its
#                              bindings), protoc with the messages that Protocol Buffers define themselves (the etcd
#                              client's), pip (the model)
#   install-deps.sh cluster    nats-server and etcd, which tests and examples start themselves
#   install-deps.sh wrk        the benches' load
#   install-deps.sh --check    says what tests lack; exit code 1 if anything is missing
#
# All includes valgrind (a test counts instructions) and venv (the test clients). The servers are installed as programs:
# where their packages would start them, now and with the machine, that is prevented.
#
# Meant for Debian and its relatives. Needs root, or sudo that does not ask for a password or a terminal to ask on; when
# nothing is missing it needs neither and takes no time.
set -euo pipefail

# bindgen loads libclang and reads the headers that come with it; LIBCLANG_PATH names a libclang elsewhere.
have_libclang() {
    [[ -n "${LIBCLANG_PATH:-}" ]] && return 0
    compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null && compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null
}

# Debian puts servers where only root's search path leads.
PATH="$PATH:/usr/sbin"
have() { command -v "$1" >/dev/null 2>&1; }

case "${1:-}" in
"" | --check) wanted=(build cluster tests) ;;
build | cluster) wanted=("$1") ;;
wrk) wanted=(build cluster tests wrk) ;;
*)
    echo "install-deps: $1 is not known; give build, cluster, wrk, --check or nothing" >&2
    exit 2
    ;;
esac
wants() { [[ " ${wanted[*]} " == *" $1 "* ]]; }

missing=() servers=()
if wants build; then
    have cmake || missing+=(cmake)
    { have c++ && have cc; } || missing+=(g++)
    have make || missing+=(make)
    have_libclang || missing+=(libclang-dev)
    have protoc || missing+=(protobuf-compiler)
    # Debian's protoc comes without the files that messages import from it, and looks for them beside itself.
    have protoc && [[ -f "$(dirname "$(command -v protoc)")/../include/google/protobuf/descriptor.proto" ]] ||
        [[ -n "${PROTOC_INCLUDE:-}" ]] || missing+=(libprotobuf-dev)
    have python3 || missing+=(python3)
    { have python3 && python3 -m pip --version >/dev/null 2>&1; } || missing+=(python3-pip)
fi
if wants cluster; then
    have nats-server || servers+=(nats-server)
    have etcd || servers+=(etcd-server)
    missing+=("${servers[@]}")
fi
if wants tests; then
    have valgrind || missing+=(valgrind)
    { have python3 && python3 -c 'import ensurepip' >/dev/null 2>&1; } || missing+=(python3-venv)
fi
if wants wrk; then
    have wrk || missing+=(wrk)
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

as_root() { "${as_root[@]}" "$@"; }
echo "installing ${missing[*]}"
apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }
# The package lists of a fresh machine are empty or old; a mirror that is half down is no reason to stop before trying.
apt update || echo "install-deps: apt-get update failed; trying with the package lists that are here" >&2

# Debian asks this program whether a package may start its server; without one everything starts.
readonly MAY_START=${MAY_START:-/usr/sbin/policy-rc.d}
forbid_starts() {
    [[ ${#servers[@]} -gt 0 && ! -e $MAY_START ]] || return 0
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$MAY_START" >/dev/null
    as_root chmod 755 "$MAY_START"
    trap 'as_root rm -f "$MAY_START"' EXIT
}
declare -rA UNIT_OF=([nats-server]=nats-server.service [etcd-server]=etcd.service)
# A package also asks that its server starts with the machine.
disable_servers() {
    local package
    have systemctl || return 0
    for package in "${servers[@]}"; do
        as_root systemctl disable --quiet "${UNIT_OF[$package]}" 2>/dev/null || true
    done
}

forbid_starts
if ! apt install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    echo "install-deps: apt-get could not install ${missing[*]}; its messages are above" >&2
    exit 1
fi
disable_servers
