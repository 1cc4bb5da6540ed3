"""Our engine, llama.cpp and others in turn on the same model, threads and tokens: medians and ratios (see tools/bench).

    bench.py PROGRAM GGUF BUNDLE [--runs N] [--threads N] [--quick] [--keep] [--mlx] [--avx2] [--candle PROGRAM]

Each run is a process of its own, so that memory and the time to the first token are measured from outside and alike.
"""

import argparse
import json
import os
import platform
import pty
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

CONTEXT = 2048
LONG = 4096
MLX_WEIGHTS = ("4-bit", "bfloat16")
CANDLE_WEIGHTS = ("Q4_1", "Q4_0")
FOLDER = os.path.join(".cache", "bench-model")
SMALLER = os.path.join(".cache", "bench-q4_0.gguf")
BASELINE = os.path.join("tests", "bench", "baseline.json")
PASSPHRASE = "a passphrase for benchmarks alone"
# How far a ratio may fall below the baseline before that is said.
TOLERANCE = 0.10


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

    def decode(before, tokens):
        model.reset()
        model.eval(prompt(before, vocabulary))
        token = best()
        began = time.perf_counter()
        for _ in range(tokens):
            model.eval([token])
            token = best()
        return tokens / (time.perf_counter() - began)

    context = LONG + CONTEXT if what == "long" else CONTEXT
    began = time.perf_counter()
    model = llama_cpp.Llama(
        gguf, n_ctx=context, n_batch=512, n_threads=threads, n_threads_batch=threads, logits_all=False, verbose=False
    )
    vocabulary = model.n_vocab()
    if what == "first-token":
        model.eval(prompt(37, vocabulary))
        print(json.dumps({"token": best(), "own_s": time.perf_counter() - began}))
    elif what == "long":
        print(json.dumps({"decode_4k": decode(LONG, 64)}))
    else:
        # A first computation touches the weights, as loading does for ours.
        model.eval(prompt(8, vocabulary))
        model.reset()
        began = time.perf_counter()
        model.eval(prompt(512, vocabulary))
        best()
        prefill = 512 / (time.perf_counter() - began)
        print(json.dumps({"prompt": prefill, "decode": decode(32, 128), "peak_mb": peak_bytes() / 1e6}))


def mlx(folder, weights):
    """One run of mlx-lm in this process, over MLX's CPU kernels, on the same weights: as they are, or as bfloat16.

    Its threads aren't ours to choose. It compiles kernels when they are first needed, so everything is computed once before.
    """
    import mlx.core as mx
    from pathlib import Path
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import dequantize_model, load_model

    mx.set_default_device(mx.cpu)
    model, config = load_model(Path(folder))
    if weights == "bfloat16":
        model = dequantize_model(model)
    # The scales are float16, in which its quantised product takes seconds a token on x86, and far less in float32.
    model.set_dtype(mx.bfloat16 if weights == "bfloat16" else mx.float32)
    mx.eval(model.parameters())

    def best(tokens, cache):
        token = mx.argmax(model(mx.array([tokens]), cache=cache)[0, -1])
        mx.eval(token)
        return token.item()

    def timed(before, tokens):
        cache = make_prompt_cache(model)
        began = time.perf_counter()
        token = best(prompt(before, config["vocab_size"]), cache)
        read = time.perf_counter()
        for _ in range(tokens):
            token = best([token], cache)
        return before / (read - began), tokens / max(time.perf_counter() - read, 1e-9)

    timed(8, 2)
    print(json.dumps({"prompt": timed(512, 0)[0], "decode": timed(32, 32)[1]}))


def forget(path):
    """Makes the machine forget what it holds of a file, so that it is read from the disk again."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def bandwidth(program, threads):
    """Bytes a second that so many threads read, in pages of 4 KiB and, where the C library gives some, of 2 MiB."""
    found = {}
    for name, tunables in (("small", ""), ("large", "glibc.malloc.hugetlb=1")):
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        printed = subprocess.run([program, "--bandwidth", *threads], env=environment, check=True, capture_output=True)
        found[name] = json.loads(printed.stdout)["read_bytes_per_second"]
    return found


def smaller(gguf):
    """The same model as Q4_0, which llama.cpp has faster kernels for."""
    import llama_cpp

    if not os.path.exists(SMALLER):
        parameters = llama_cpp.llama_model_quantize_default_params()
        parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
        parameters.allow_requantize = True
        if llama_cpp.llama_model_quantize(gguf.encode(), f"{SMALLER}.new".encode(), parameters):
            sys.exit("bench: llama.cpp can't make Q4_0 of the model")
        os.rename(f"{SMALLER}.new", SMALLER)


def lines(command, environment=None):
    """Runs a command: its JSON lines as one dictionary for each, and how many seconds it took until it had printed."""
    began = time.perf_counter()
    environment = {**os.environ, **(environment or {})}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        first = process.stdout.readline()
        took = time.perf_counter() - began
        rest = process.stdout.read()
    if process.returncode:
        sys.exit(f"bench: {command[0]} failed")
    return [json.loads(line) for line in (first + rest).splitlines() if line.startswith("{")], took


def launch(bundle, passphrase):
    """Seconds from the start of the program in a terminal to its prompt, unlocked, without the key derivation."""
    began = time.perf_counter()
    child, terminal = pty.fork()
    if child == 0:
        arguments = [f"{bundle}/tiles", "--verbose", "--passphrase-file", passphrase]
        os.execve(arguments[0], arguments, {"TERM": "xterm-256color", "PATH": os.environ["PATH"]})
    shown = b""
    while b">>> " not in shown:
        if not select.select([terminal], [], [], 30)[0]:
            sys.exit(f"bench: no prompt within 30 s: {shown!r}")
        shown += os.read(terminal, 65536)
    took = time.perf_counter() - began
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(terminal)
    return took - int(re.search(rb"key derived in (\d+) ms", shown).group(1)) / 1000


def second_turn(bundle, passphrase):
    """How long the first token of a second turn takes after about 500 tokens, against computing all of it anew."""
    text = " ".join(f"Note {idx}: the garden has {idx * 7 % 90} plants." for idx in range(40))
    ask = [f"{bundle}/tiles", "run", "--json", "--passphrase-file", passphrase, "--set", "temperature=0"]
    ask += ["--set", "num_predict=8"]

    def answer(*arguments):
        return json.loads(subprocess.run([*ask, *arguments], check=True, capture_output=True, text=True).stdout)

    first = answer("-p", text)
    again = answer("-p", "Thank you.", "--session", first["session"])
    return again["timing"]["first_token_ms"] / first["timing"]["first_token_ms"], again["usage"]


def settle(command, weights, is_cold):
    """Before a start: cold, the weights aren't in memory; warm, the same was run a moment ago. A virtual machine gets memory
    that it hasn't used for a while from its host first (0.2 s for 110 MB on the machine of the baseline), and whoever comes
    after other programs would pay for that."""
    if is_cold:
        forget(weights)
    else:
        lines(command)


def of_ours(arguments):
    """Our program with what all runs have in common."""
    instructions = ["--instructions", "AVX2"] if arguments.avx2 else []
    return [arguments.program, FOLDER, "--threads", str(arguments.threads), *instructions]


def measure(arguments):
    """All runs, in turn; returns the values of each engine by what they measure."""
    found = {}

    def keep(engine, values):
        for name, value in values.items():
            found.setdefault(name, {}).setdefault(engine, []).append(value)

    threads = ["--threads", str(arguments.threads)]
    ours = of_ours(arguments)
    again = [sys.executable, __file__, "llama", arguments.gguf, "-", *threads, "--what"]
    on_smaller = [*again[:3], SMALLER, *again[4:]]
    passphrase = os.path.join(".cache", "bench-passphrase")
    with open(passphrase, "w", encoding="ascii") as file:
        file.write(PASSPHRASE)
    if not os.path.exists(os.path.join(arguments.bundle, "data", "key.a")):
        make = [f"{arguments.bundle}/tiles", "account", "create", "--no-recovery", "--passphrase-file", passphrase]
        subprocess.run(make, check=True, capture_output=True)
    if not arguments.quick:
        smaller(arguments.gguf)
    for run in range(arguments.runs):
        print(f"bench: run {run + 1} of {arguments.runs}", file=sys.stderr)
        _, prefill, decode, memory, streamed = lines([*ours, "--runs", "1"])[0]
        keep("tiles", {"prompt": prefill["tokens_per_second"], "decode": decode["tokens_per_second"]})
        keep("tiles", {"peak_mb": memory["peak_bytes"] / 1e6})
        keep("weights_and_cache", {"peak_mb": memory["weights_and_cache_bytes"] / 1e6})
        reading, streamed = bandwidth(arguments.program, threads), streamed["decode_bytes_per_second"]
        for pages, rate in reading.items():
            keep("tiles", {f"decode_share_of_read_bandwidth_{pages}_pages": streamed / rate})
            keep("tiles", {f"read_gb_per_s_{pages}_pages": rate / 1e9})
        keep("llama.cpp", lines([*again, "speed"])[0][0])
        for name, is_cold in (("first_token_s", False), ("first_token_cold_s", True)):
            mine, theirs = [*ours, "--first-token"], [*again, "first-token"]
            settle(mine, os.path.join(FOLDER, "model.safetensors"), is_cold)
            keep("tiles", {name: lines(mine)[1]})
            settle(theirs, arguments.gguf, is_cold)
            (printed,), took = lines(theirs)
            keep("llama.cpp", {name: took})
            keep("llama.cpp without Python", {name: printed["own_s"]})
        keep("tiles", {"launch_s": launch(arguments.bundle, passphrase)})
        ratio, usage = second_turn(arguments.bundle, passphrase)
        keep("tiles", {"second_turn": ratio, "second_turn_cached": usage["cached_tokens"] / usage["input_tokens"]})
        if not arguments.quick:
            others = lines([*on_smaller, "speed"])[0][0]
            keep("llama.cpp Q4_0", {"prompt": others["prompt"], "decode": others["decode"]})
            long = lines([*ours, "--decode-at", str(LONG)])[0][0]
            keep("tiles", {"decode_4k": long["tokens_per_second"]})
            keep("llama.cpp", lines([*again, "long"])[0][0])
            for weights, file in zip(CANDLE_WEIGHTS, (arguments.gguf, SMALLER)) if arguments.candle else ():
                others = lines([arguments.candle, file], {"RAYON_NUM_THREADS": str(arguments.threads)})[0][0]
                keep(f"candle {weights}", {"prompt": others["prompt"], "decode": others["decode"]})
        for weights in MLX_WEIGHTS if arguments.mlx else ():
            keep(f"mlx-lm {weights}", lines([sys.executable, __file__, "mlx", FOLDER, "-", "--what", weights])[0][0])
    return found


def rows(found):
    """What is printed: for speeds more is better, for time and memory less; a ratio above 1 is in our favour."""
    median = {
        name: {engine: statistics.median(values) for engine, values in engines.items()}
        for name, engines in found.items()
    }
    for name, peer in (
        ("decode", "llama.cpp"),
        ("decode", "llama.cpp Q4_0"),
        *(("decode", f"candle {weights}") for weights in CANDLE_WEIGHTS),
        *(("decode", f"mlx-lm {weights}") for weights in MLX_WEIGHTS),
        ("decode_4k", "llama.cpp"),
        ("prompt", "llama.cpp"),
        ("prompt", "llama.cpp Q4_0"),
        *(("prompt", f"candle {weights}") for weights in CANDLE_WEIGHTS),
        *(("prompt", f"mlx-lm {weights}") for weights in MLX_WEIGHTS),
        ("first_token_s", "llama.cpp"),
        ("first_token_s", "llama.cpp without Python"),
        ("first_token_cold_s", "llama.cpp"),
        ("first_token_cold_s", "llama.cpp without Python"),
        ("peak_mb", "llama.cpp"),
        ("peak_mb", "weights_and_cache"),
    ):
        if peer in median.get(name, {}):
            mine, theirs = median[name]["tiles"], median[name][peer]
            ratio = mine / theirs if name.startswith(("decode", "prompt")) else theirs / mine
            yield {"measure": name, "tiles": round(mine, 3), peer: round(theirs, 3), "ratio": round(ratio, 3)}
    alone = ["launch_s", "second_turn", "second_turn_cached"]
    for pages in ("small", "large"):
        alone += [f"read_gb_per_s_{pages}_pages", f"decode_share_of_read_bandwidth_{pages}_pages"]
    for name in alone:
        yield {"measure": name, "tiles": round(median[name]["tiles"], 4)}


def compare(found, keep, avx2):
    """Says which ratios fell against the committed ones, or commits these."""
    peer = lambda row: next(key for key in row if key not in ("measure", "tiles", "ratio"))
    ratios = {f"{row['measure']} / {peer(row)}": row["ratio"] for row in found if "ratio" in row}
    before = {}
    if os.path.exists(BASELINE):
        with open(BASELINE, encoding="ascii") as file:
            before = json.load(file)
    # Kernels differ with the instruction set, so machines are compared with their like.
    here = machine(avx2)
    if keep:
        with open(BASELINE, "w", encoding="ascii") as file:
            json.dump({**before, here: ratios}, file, indent=1)
            file.write("\n")
        return
    if here not in before:
        print(f"bench: no baseline for {here}: --keep makes this one")
    for name, ratio in ratios.items():
        was = before.get(here, {}).get(name)
        if was and ratio < was * (1 - TOLERANCE):
            print(f"bench: REGRESSION: {name} was {was}, is {ratio}")


def machine(avx2):
    """The processor and the widest of its instruction sets that the kernels use, for whoever compares."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        lines = [line.split(":", 1) for line in file if ":" in line]
    found = {name.strip(): value.strip() for name, value in lines}
    flags = found.get("flags", found.get("Features", "")).split()
    if avx2:
        flags = ["avx2"]
    widest = next((name for name in ("avx512_vnni", "avx_vnni", "avx2", "i8mm", "asimddp") if name in flags), "scalar")
    return f"{found.get('model name', platform.machine())}, {len(os.sched_getaffinity(0))} processors, {widest}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("gguf")
    parser.add_argument("bundle")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--mlx", action="store_true")
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--candle")
    parser.add_argument("--what", default="speed", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.program == "llama":
        return llama(arguments.gguf, arguments.threads, arguments.what)
    if arguments.program == "mlx":
        return mlx(arguments.gguf, arguments.what)
    if not os.path.exists(os.path.join(FOLDER, "config.json")):
        shutil.rmtree(FOLDER, ignore_errors=True)
        subprocess.run([arguments.program, "--convert", arguments.gguf, FOLDER], check=True)
    found = list(rows(measure(arguments)))
    if not arguments.quick:
        found += lines([*of_ours(arguments), "--agreement"])[0]
    print(f"{machine(arguments.avx2)}: {arguments.runs} runs in turn, {arguments.threads} threads, medians")
    for row in found:
        print(json.dumps(row))
    compare(found, arguments.keep, arguments.avx2)
    return None


if __name__ == "__main__":
    main()
