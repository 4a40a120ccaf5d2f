#!/usr/bin/env bash
# Finds or makes a Rust toolchain that compiles policies to wasm32-unknown-unknown, and prints its rustup name.
#
#   wasm-toolchain.sh [--debian] [DIR]     DIR: where to put what has to be made
#                                          (default: ${SIGNALBOX_CACHE:-~/.cache/signalbox}/wasm-toolchain)
#
# 1. The active toolchain has the target, or `rustup target add` can fetch it: that one, and nothing is made.
#    (--debian skips this step, to try the second where the first would do.)
# 2. Otherwise, on Debian: the compiler of the package `rustc-web` with the library sources of `rust-web-src` (one
#    version, hence compatible) and the linkers of the active toolchain; the standard library for wasm32 is compiled
#    once. About a minute, 0.7 GB, no root. Linked in rustup as `signalbox-wasm`; made again when Debian's version moves.
#
# Only the toolchain's name goes to standard output, for `cargo +"$(wasm-toolchain.sh)" build`.
set -euo pipefail

TARGET=wasm32-unknown-unknown
NAME=signalbox-wasm
debian=false
if [ "${1:-}" = --debian ]; then
    debian=true
    shift
fi
DIR=${1:-${SIGNALBOX_CACHE:-$HOME/.cache/signalbox}/wasm-toolchain}

say() { echo "wasm-toolchain: $*" >&2; }
die() { say "$*"; exit 1; }
# A toolchain has the target when its own standard library for it is there.
has_target() {
    local root
    root=$(rustc "+$1" --print sysroot 2>/dev/null) || return 1
    compgen -G "$root/lib/rustlib/$TARGET/lib/libcore-*.rlib" >/dev/null
}

command -v rustup >/dev/null || die "rustup is not installed; see https://rustup.rs"
active=$(rustup show active-toolchain | awk '{ print $1; exit }')
[ -n "$active" ] || die "rustup has no active toolchain; install one with: rustup toolchain install stable"

if ! $debian; then
    if has_target "$active"; then
        echo "$active"
        exit 0
    fi
    say "$active lacks $TARGET; asking rustup for it"
    if timeout 120 rustup target add --toolchain "$active" "$TARGET" >&2 && has_target "$active"; then
        echo "$active"
        exit 0
    fi
    say "rustup cannot add it here; taking Debian's compiler instead"
fi

for tool in apt-get apt-cache dpkg-deb dpkg; do
    command -v "$tool" >/dev/null || die "this is no Debian ($tool is missing): install $TARGET for $active by hand"
done
version=$(apt-cache policy rustc-web 2>/dev/null | awk '/Candidate:/ { print $2 }')
if [ -z "$version" ] || [ "$version" = "(none)" ]; then
    die "apt knows no package rustc-web; run \`apt-get update\` first (Debian 12 with its security updates has it)"
fi
minor=$(cut -d. -f1,2 <<<"$version")
host=$(rustc "+$active" -vV | awk '/^host:/ { print $2 }')
sysroot=$(rustc "+$active" --print sysroot)
tools=$sysroot/lib/rustlib/$host/bin
[ -x "$tools/wasm-component-ld" ] || die "$active has no wasm-component-ld in $tools; update it to Rust 1.82 or later"

mkdir -p "$DIR"
DIR=$(cd "$DIR" && pwd)
prefix=$DIR/$version/usr
# Written last, so a toolchain that was interrupted half way is made again.
stamp=$DIR/$version/made-for
wanted="$NAME $version with $sysroot"

exec 9>"$DIR/.lock"
flock 9
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    [ "$(rustc "+$NAME" --print sysroot 2>/dev/null)" = "$prefix" ] || rustup toolchain link "$NAME" "$prefix" >&2
    echo "$NAME"
    exit 0
fi

say "making $NAME from rustc-web $version in $DIR (about a minute)"
for old in "$DIR"/*/made-for; do
    if [ -f "$old" ]; then rm -rf "$(dirname "$old")"; fi
done
rm -rf "${DIR:?}/$version" "$DIR/packages"
mkdir -p "$DIR/$version" "$DIR/packages"
cd "$DIR/packages"
llvm=$(apt-cache depends "libstd-rust-web-$minor=$version" | awk '/Depends: libllvm/ { print $2; exit }')
apt-get download -q "rustc-web=$version" "libstd-rust-web-$minor=$version" "libstd-rust-web-dev=$version" \
    "rust-web-src=$version" ${llvm:+"$llvm"} >&2 || die "apt could not download Debian's Rust packages"
for package in *.deb; do
    # Of the sources only the standard library is needed: a tenth of them.
    case $package in
    rust-web-src_*)
        dpkg-deb --fsys-tarfile "$package" |
            tar -x -C "$DIR/$version" --wildcards './usr/src/*/library' './usr/src/*/Cargo.lock' './usr/lib/rustlib/*' 2>/dev/null ||
            dpkg-deb -x "$package" "$DIR/$version"
        ;;
    *) dpkg-deb -x "$package" "$DIR/$version" ;;
    esac
done
cd "$DIR"
rm -rf "$DIR/packages"

# rustup puts only the prefix's `lib` on the loader's path; Debian keeps shared objects one level down.
multiarch=$(uname -m)-linux-gnu
for object in "$prefix/lib/$multiarch"/*.so*; do
    ln -sf "$object" "$prefix/lib/$(basename "$object")"
done
# rust-lld and wasm-component-ld come with rustup's toolchain, and so does a cargo without Debian's dependencies.
ln -sfn "$tools" "$prefix/lib/rustlib/$host/bin"
ln -sf "$(rustup which --toolchain "$active" cargo)" "$prefix/bin/cargo"
rustup toolchain link "$NAME" "$prefix" >&2
rustc "+$NAME" --version >&2 || die "Debian's rustc does not start; \`ldd $prefix/bin/rustc\` shows what it misses"

# The standard library, compiled once from an empty crate. Its bitcode must stay in for policies built with lto.
empty=$DIR/$version/std
mkdir -p "$empty/src"
: >"$empty/src/lib.rs"
cat >"$empty/Cargo.toml" <<'MANIFEST'
[package]
name = "empty"
version = "0.0.0"
edition = "2024"
[profile.release]
panic = "abort"
[workspace]
MANIFEST
(
    cd "$empty"
    # Flags and targets of whoever calls (cargo, CI) are not meant for this build.
    env -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_TARGET -u CARGO_TARGET_DIR RUSTFLAGS=-Cembed-bitcode=yes RUSTC_BOOTSTRAP=1 \
        cargo "+$NAME" build --quiet --release --target "$TARGET" -Zbuild-std=std,panic_abort >&2
) || die "the standard library for $TARGET did not compile"
std=$prefix/lib/rustlib/$TARGET/lib
mkdir -p "$std"
cp "$empty/target/$TARGET/release/deps"/*.rlib "$std"
rm -rf "$std"/libempty-* "$empty"
has_target "$NAME" || die "the toolchain was made but has no $TARGET; please report this with the output above"
echo "$wanted" >"$stamp"
echo "$NAME"
