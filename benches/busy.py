#!/usr/bin/env python3
"""Tokens per second of the default number of threads beside fixed ones, on a quiet machine and on busy ones.

usage: busy.py BIN MODEL [-m TOKENS] [-r RUNS] [--json FILE]

The conditions: idle; beside one and two programs that compute for ever; pinned to one core; eight processes at once (their
tokens together). Nothing else should run on the machine. Prints a Markdown table of medians."""
import argparse, json, os, statistics, subprocess, sys, time

p = argparse.ArgumentParser()
p.add_argument("bin")
p.add_argument("model")
p.add_argument("-m", type=int, default=300, help="tokens of each run")
p.add_argument("-r", type=int, default=3, help="runs of each kind")
p.add_argument("--json", help="write the results there, too")
args = p.parse_args()

LIMIT_S = 20


def start(threads, pinned):
    command = [args.bin, "generate", "--model", args.model, "-p", "It", "-m", str(args.m), "--ignore-eos", "--json", "-q"]
    if threads:
        command += ["--threads", str(threads)]
    pin = (lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) if pinned else None
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=pin)


def speed(process):
    """Tokens per second; of a run that takes too long, less than this."""
    try:
        out, _ = process.communicate(timeout=LIMIT_S)
        return json.loads(out)["generation_tps"]
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return args.m / LIMIT_S


def measure(threads, n_processes=1, pinned=False):
    return sum(speed(process) for process in [start(threads, pinned) for _ in range(n_processes)])


n_cores = len(os.sched_getaffinity(0))
kinds = [None, *sorted({1, 2, n_cores, 2 * n_cores})]
conditions = [
    ("idle", 0, {}),
    ("beside 1 loop", 1, {}),
    ("beside 2 loops", 2, {}),
    ("pinned to one core", 0, {"pinned": True}),
    ("8 at once", 0, {"n_processes": 8}),
]
results = {}
for name, n_loops, options in conditions:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_loops)]
    try:
        time.sleep(0.5)
        runs = {kind: [] for kind in kinds}
        for _ in range(args.r):  # in turns
            for kind in kinds:
                runs[kind].append(measure(kind, **options))
        results[name] = {"default" if k is None else str(k): statistics.median(v) for k, v in runs.items()}
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    print(name, results[name], file=sys.stderr)

names = ["default" if k is None else str(k) for k in kinds]
print("| tokens/s | " + " | ".join("default" if n == "default" else f"--threads {n}" for n in names) + " | default / best |")
print("|---|" + "---|" * (len(names) + 1))
for condition, of in results.items():
    best = max(v for n, v in of.items() if n != "default")
    print(f"| {condition} | " + " | ".join(f"{of[n]:.0f}" for n in names) + f" | {of['default'] / best:.2f} |")
if args.json:
    version = subprocess.run([args.bin, "--version"], capture_output=True, text=True).stdout.strip()
    with open(args.json, "w") as f:
        json.dump({"version": version, "tokens": args.m, "runs": args.r, "cores": n_cores, "results": results}, f, indent=1)
