#!/usr/bin/env bash
# Runs the conformance suite of the CUDA backend and the tests of all families on this machine's GPU, and those of several ranks
# if there are two, and prints a summary as JSON: cards, driver, commit, and the tests that passed and failed. With --memcheck, a
# part of the suite also runs under memcheck and racecheck of compute-sanitizer.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export ZMLX_REQUIRE_CUDA=1
log=$(mktemp)
for tests in conformance cuda_families; do "$here/$tests" --test-threads=8 2>&1 | tee -a "$log"; done
n_gpus=$(nvidia-smi --list-gpus | wc -l)
if [ "$n_gpus" -ge 2 ]; then
  ZMLX_REQUIRE_CUDA=2 ZMLX_BINARY="$here/zmlx" "$here/cuda_launch" --test-threads=1 2>&1 | tee -a "$log"
fi
passed=$(grep -c '^test .* \.\.\. ok$' "$log")
failed=$(grep '^test .* \.\.\. FAILED$' "$log" | sed 's/^test \(.*\) \.\.\. FAILED$/"\1"/' | paste -sd, -)
memcheck=null racecheck=null
part=(attention:: latent rope router elementwise caches extremes gather_qmm_combine per_token_and_per_slot)
# check TOOL: runs a part of the suite under a tool of compute-sanitizer and prints whether the tool found an error.
check() {
  if compute-sanitizer --tool "$1" --error-exitcode 1 "$here/conformance" --test-threads=4 "${part[@]}" >&2; then
    echo '"clean"'
  else
    echo '"errors"'
  fi
}
if [ "${1:-}" = --memcheck ]; then
  memcheck=$(check memcheck) racecheck=$(check racecheck)
fi
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)
printf '{"kind": "gpu-check", "date": "%s", "commit": "%s", "gpus": %s, "gpu": "%s", "driver": "%s", "passed": %s, "failed": [%s], "memcheck": %s, "racecheck": %s}\n' \
  "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(cat "$here/commit")" "$n_gpus" "$card" "$driver" "$passed" "$failed" "$memcheck" "$racecheck"
[ "$passed" -gt 0 ] && [ -z "$failed" ] && [ "$memcheck$racecheck" = "${memcheck/errors/}${racecheck/errors/}" ]
