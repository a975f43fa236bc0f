#!/usr/bin/env bash
# Builds a standard library for a target that rustup did not install. It uses the rustc in use, and the library source
# of the same version that Debian packages. Prints the sysroot folder on stdout and everything else on stderr.
# usage: sysroot.sh TARGET check|build FOLDER    (check: metadata only, nothing can be linked)
set -euo pipefail
TARGET=$1
MODE=$2
HOME_DIR=$(realpath -m "$3")
case $MODE in
  check) STD=std,panic_abort,test PROFILE=dev ;;
  build) STD=std,panic_unwind,test PROFILE=release ;;
  *) echo "unknown mode $MODE" >&2; exit 2 ;;
esac
VER=$(rustc -vV | sed -n 's/^release: //p')
HASH=$(rustc -vV | sed -n 's/^commit-hash: //p')
STAMP=$HOME_DIR/sysroot/.stamp
if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$VER $HASH" ]; then echo "$HOME_DIR/sysroot"; exit 0; fi
rm -rf "$HOME_DIR"; mkdir -p "$HOME_DIR"/{apt/parts,apt/lists/partial,apt/cache/archives/partial,src,probe/src}
A=$HOME_DIR/apt
# the mirrors that this machine's own apt uses
MAIN=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2 !~ /security/ {print $1; exit}')
SECURITY=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2 ~ /security/ {print $1; exit}')
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
{
  for suite in trixie-backports trixie forky sid; do echo "deb [signed-by=$KEYRING] $MAIN $suite main"; done
  [ -z "$SECURITY" ] || echo "deb [signed-by=$KEYRING] $SECURITY bookworm-security main"
} > "$A/parts/d.list"
cat > "$A/apt.conf" <<EOF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$A/parts";
Dir::State::lists "$A/lists";
Dir::Cache "$A/cache";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
EOF
export APT_CONFIG=$A/apt.conf
apt-get update -qq >&2
PKGVER=$(apt-cache madison rust-src rust-web-src 2>/dev/null | awk -F' *\\| *' -v v="$VER+" '{gsub(/ /,"",$1)} index($2,v)==1 {print $1"="$2; exit}')
[ -n "$PKGVER" ] || { echo "no Debian rust-src for rustc $VER; there is: $(apt-cache madison rust-src rust-web-src | awk '{print $3}' | sort -u | xargs)" >&2; exit 3; }
echo "rust source: $PKGVER" >&2
(cd "$A" && apt-get -qq -o APT::Sandbox::User=root download "$PKGVER" >&2)
dpkg-deb --fsys-tarfile "$A"/rust-*src_*.deb | tar -xf - -C "$HOME_DIR/src" --wildcards './usr/src/rustc-*/library'
LIB=$(echo "$HOME_DIR"/src/usr/src/rustc-*/library)
unset APT_CONFIG
cat > "$HOME_DIR/probe/Cargo.toml" <<'EOF'
[package]
name = "probe"
version = "0.0.0"
edition = "2021"
[workspace]
EOF
echo '#![no_std]' > "$HOME_DIR/probe/src/lib.rs"
( cd "$HOME_DIR/probe" && env -u RUSTFLAGS -u CARGO_BUILD_TARGET -u RUSTC_WRAPPER \
    RUSTC_BOOTSTRAP=1 __CARGO_TESTS_ONLY_SRC_ROOT="$LIB" CARGO_TARGET_DIR="$HOME_DIR/target" CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=0 \
    cargo "$MODE" -q --profile "$PROFILE" -Z build-std=$STD --target "$TARGET" >&2 )
D=$HOME_DIR/sysroot/lib/rustlib/$TARGET/lib
mkdir -p "$D"
OUT=$HOME_DIR/target/$TARGET/$([ "$PROFILE" = dev ] && echo debug || echo release)/deps
find "$OUT" -name 'lib*.rlib' -o -name 'lib*.rmeta' | xargs cp -t "$D"
rm -f "$D"/libprobe-*
rm -rf "$HOME_DIR/target" "$HOME_DIR/probe" "$A"
echo "$VER $HASH" > "$STAMP"
echo "$HOME_DIR/sysroot"
