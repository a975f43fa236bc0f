#!/usr/bin/env bash
# usage: packaging/pack.sh TARGET: packs target/release/zmlx with its licences into dist/zmlx-VERSION-TARGET.tar.gz.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$1
version=$(target/release/zmlx --version | cut -d ' ' -f 2)
name=zmlx-$version-$target
mkdir -p "dist/$name"
cp target/release/zmlx README.md CHANGELOG.md LICENSE-APACHE LICENSE-MIT "dist/$name/"
case $target in
*-apple-darwin)
  # MLX looks for its compiled kernels beside the program.
  metallib=$(find target/release/build -name mlx.metallib | head -n 1)
  [ -n "$metallib" ] || { echo "error: mlx-sys built no mlx.metallib" >&2; exit 1; }
  cp "$metallib" "dist/$name/"
  ;;
esac
tar -C dist -czf "dist/$name.tar.gz" "$name"
rm -r "dist/$name"
(cd dist && { sha256sum "$name.tar.gz" 2>/dev/null || shasum -a 256 "$name.tar.gz"; } >"$name.tar.gz.sha256")
ls -l "dist/$name.tar.gz"
