#!/usr/bin/env bash
# Builds the policies and the tests' guests from source.
#
#   build-policies.sh           writes policies/built/*.wasm and integration-tests/guests/*.wasm, which are committed
#   build-policies.sh --check   writes neither, and fails when a policy built now decides differently from the committed
#                               one on runtime/policy-host/tests/snapshots.jsonl
set -euo pipefail

check=false
case ${1:-} in
'') ;;
--check) check=true ;;
*)
    echo "usage: build-policies.sh [--check]" >&2
    exit 2
    ;;
esac

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$scripts/../.." && pwd)
# Where the policy host's examples are built already: `make test` says so, to not build them a second time.
tools=${SIGNALBOX_POLICY_TOOLS:-}
host() {
    local tool=$1
    shift
    if [ -n "$tools" ]; then
        "$tools/$tool" "$@"
    else
        cargo run --quiet --manifest-path "$root/Cargo.toml" --package signalbox-policy-host --example "$tool" -- "$@"
    fi
}
shipped=(round-robin kv-aware kv-linear replica-synced least-loaded power-of-two random session-affinity prefix-hash)

toolchain=$("$scripts/wasm-toolchain.sh")
# In the folder whose .cargo/config.toml names target, linker and features; whatever the caller set for its own builds
# (make, cargo, CI) is not meant for these.
target=$root/policies/target
(
    cd "$root/policies"
    for examples in '' --examples; do
        env -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET \
            cargo "+$toolchain" build --release --locked --workspace --target-dir "$target" $examples
    done
)
built=$target/wasm32-unknown-unknown/release

if $check; then
    failed=false
    for policy in "${shipped[@]}"; do
        echo "$policy, committed against rebuilt: " >&2
        host same_decisions "$root/policies/built/$policy.wasm" "$built/${policy//-/_}.wasm" \
            "$root/runtime/policy-host/tests/snapshots.jsonl" || failed=true
    done
    if $failed; then
        echo "build-policies: what is committed is not what is in policies/; run \`make policies\` and commit policies/built" >&2
        exit 1
    fi
    exit 0
fi

mkdir -p "$root/policies/built" "$root/integration-tests/guests"
for policy in "${shipped[@]}"; do
    cp "$built/${policy//-/_}.wasm" "$root/policies/built/$policy.wasm"
done
for source in "$root"/policies/misbehaving/*.rs; do
    guest=$(basename "$source" .rs)
    cp "$built/examples/${guest//-/_}.wasm" "$root/integration-tests/guests/$guest.wasm"
done
for source in "$root"/policies/misbehaving/*.wat; do
    host assemble "$source" "$root/integration-tests/guests/$(basename "$source" .wat).wasm"
done
ls -l "$root/policies/built" "$root/integration-tests/guests" >&2
