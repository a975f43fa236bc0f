#!/usr/bin/env bash
# Runs the MLX backend on this machine's NVIDIA GPU: doctor, validate, the tokens of stock and fused paths, and a bench of whole
# models with random weights. usage: run.sh [OUT]
#
# MLX_CUDA is the folder of MLX's build for CUDA (`cargo xtask setup-mlx --cuda`; default: cuda beside this script). NVIDIA's
# libraries are in it, or else in the Python environment of python3.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/out}
cuda=${MLX_CUDA:-$here/cuda}
mkdir -p "$out"
[ -e "$cuda/nvidia" ] || ln -s "$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])')" "$cuda/nvidia"
# The binary names mlx-c by the path that it had where it was built.
mlxc=$(cat "$here/mlxc.path")
[ -e "$mlxc" ] || { mkdir -p "$(dirname "$mlxc")" && cp "$here/libmlxc.so" "$mlxc"; }
LD_LIBRARY_PATH=$cuda/mlx/lib:$(printf '%s:' "$cuda"/nvidia/*/lib)${LD_LIBRARY_PATH:-}
export LD_LIBRARY_PATH MLX_PTX_CACHE_DIR=${MLX_PTX_CACHE_DIR:-$here/ptx}
mkdir -p "$MLX_PTX_CACHE_DIR"
zmlx() { "$here/zmlx" "$@" --backend mlx; }
status=0
# step NAME COMMAND...: keeps the output in OUT/NAME.
step() {
  local name=$1 began=$SECONDS
  shift
  "$@" >"$out/$name" 2>&1
  local code=$?
  [ $code = 0 ] || status=1
  printf '%s: exit code %s after %s s\n' "$name" $code $((SECONDS - began))
}
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | tee "$out/card"
for model in "$here"/models/*; do
  name=$(basename "$model")
  step "doctor-$name" zmlx doctor "$model"
  step "validate-$name" zmlx validate "$model"
  for fusion in stock fused; do
    step "generate-$fusion-$name" zmlx generate --model "$model" -p 'It is a truth' -m 48 --temp 0 --fusion $fusion -q
  done
  cmp "$out/generate-stock-$name" "$out/generate-fused-$name" && echo "$name: stock and fused give the same text" || status=1
done
for model in qwen3-30b-a3b glm-4.7-flash; do
  step "bench-$model" zmlx bench --synthetic $model -p 0 -n 64 -r 9 --fusion stock --fusion concat --fusion fused --capsule "$out/$model.json" --force
  cat "$out/bench-$model"
done
exit $status
