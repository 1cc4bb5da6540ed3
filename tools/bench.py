"""Our engine and llama.cpp in turn on the same model, threads and tokens: medians and ratios (see tools/bench).

    bench.py PROGRAM GGUF [--runs N] [--threads N]

Each run is a process of its own, so that memory and the time to the first token are measured from outside and alike.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

CONTEXT = 2048
FOLDER = os.path.join(".cache", "bench-model")


def prompt(tokens, vocabulary):
    """The tokens that tests/bench/engine.rs takes too."""
    return [(idx * 7919 + 101) % (vocabulary - 100) + 50 for idx in range(tokens)]


def peak_bytes():
    """The most memory that this process ever held."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def llama(gguf, threads, what):
    """One run of llama.cpp in this process: prints what one run of ours prints."""
    import llama_cpp
    import numpy

    def best():
        logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
        return int(numpy.argmax(numpy.ctypeslib.as_array(logits, shape=(vocabulary,))))

    model = llama_cpp.Llama(
        gguf, n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
    )
    vocabulary = model.n_vocab()
    if what == "first-token":
        model.eval(prompt(37, vocabulary))
        print(json.dumps({"token": best(), "peak_bytes": peak_bytes()}))
        return
    # A first computation touches the weights, as loading does for ours.
    model.eval(prompt(8, vocabulary))
    model.reset()
    began = time.perf_counter()
    model.eval(prompt(512, vocabulary))
    best()
    prefill = 512 / (time.perf_counter() - began)
    model.reset()
    model.eval(prompt(32, vocabulary))
    token = best()
    began = time.perf_counter()
    for _ in range(128):
        model.eval([token])
        token = best()
    decode = 128 / (time.perf_counter() - began)
    print(json.dumps({"prompt": prefill, "decode": decode, "peak_bytes": peak_bytes()}))


def lines(command):
    """Runs a command: its JSON lines as one dictionary for each, and how many seconds it took until it had printed."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        first = process.stdout.readline()
        took = time.perf_counter() - began
        rest = process.stdout.read()
    if process.returncode:
        sys.exit(f"bench: {command[0]} failed")
    return [json.loads(line) for line in (first + rest).splitlines()], took


def ours(program, threads):
    """One run of ours."""
    (_, prefill, decode, memory), _ = lines([program, FOLDER, "--threads", str(threads), "--runs", "1"])
    return {
        "prompt": prefill["tokens_per_second"],
        "decode": decode["tokens_per_second"],
        "peak_bytes": memory["peak_bytes"],
    }


def measure(arguments):
    """All runs, in turn; returns the values of each engine by what they measure."""
    found = {engine: {} for engine in ("tiles", "llama.cpp")}

    def keep(engine, values):
        for name, value in values.items():
            found[engine].setdefault(name, []).append(value)

    threads = arguments.threads
    again = [sys.executable, __file__, "llama", arguments.gguf, "--threads", str(threads), "--what"]
    for _ in range(arguments.runs):
        keep("tiles", ours(arguments.program, threads))
        keep("llama.cpp", lines([*again, "speed"])[0][0])
        _, took = lines([arguments.program, FOLDER, "--first-token", "--threads", str(threads)])
        keep("tiles", {"first_token_s": took})
        _, took = lines([*again, "first-token"])
        keep("llama.cpp", {"first_token_s": took})
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("gguf")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--what", default="speed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program == "llama":
        return llama(arguments.gguf, arguments.threads, arguments.what)
    if not os.path.exists(os.path.join(FOLDER, "config.json")):
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([arguments.program, "--convert", arguments.gguf, FOLDER], check=True)
    found = measure(arguments)
    print(f"{arguments.runs} runs in turn, {arguments.threads} threads, medians")
    # For speeds more is better, for time and memory less: a ratio above 1 is always in our favour.
    for name, more in (("decode", True), ("prompt", True), ("first_token_s", False), ("peak_bytes", False)):
        mine, theirs = (statistics.median(found[engine][name]) for engine in ("tiles", "llama.cpp"))
        ratio = mine / theirs if more else theirs / mine
        row = {"measure": name, "tiles": round(mine, 3), "llama.cpp": round(theirs, 3), "ratio": round(ratio, 2)}
        print(json.dumps(row))
    return None


if __name__ == "__main__":
    main()
