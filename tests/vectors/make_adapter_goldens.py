#!/usr/bin/env python3
"""Write seeded LoRA adapters for the tiny models, with the logits and greedy tokens that mlx-lm gives with them.

    pip install mlx==0.32.2 mlx-cpu==0.32.2 mlx-lm==0.32.0
    tests/vectors/make_adapter_goldens.py

Reads `goldens/tiny/` beside this file and writes `goldens/adapters/NAME/`: `adapters.safetensors` and
`adapter_config.json` as `mlx_lm.lora` writes them, and `golden.json` with float32 arithmetic on the stored weights:
  model       the folder of the model below `goldens/`
  prompt      the tokens of the prompt; logits: those after each of `positions`; argmax: the best token after each
  greedy      the 32 best tokens after the prompt; last_logits: those after the last but one of them
  base_greedy the same without the adapter, so that a test can't pass by leaving it out
Every number comes from mlx-lm's own code.
"""
import json, shutil
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

GOLDENS = Path(__file__).parent / "goldens"
PROMPT, GREEDY, MARGIN = 40, 32, 0.1
POSITIONS = [0, 1, 7, 8, 20, PROMPT - 1]
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
MLP = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
# Name, model, layers from the last one, rank, scale, modules, type. The last has a rank and modules out of the ordinary.
ADAPTERS = [
    ("llama-bf16", "tiny/llama-untied/bf16", 3, 8, 20.0, ATTENTION + MLP, mx.float32),
    ("llama-q4", "tiny/llama-untied/q4-g64", 2, 8, 10.0, ATTENTION[::2], mx.bfloat16),
    ("qwen3-q8", "tiny/qwen3/q8-g64", 1, 3, 0.5, MLP + ["lm_head"], mx.float16),
]


def shapes(config, module):
    """Columns and rows of a matrix."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    head = config.get("head_dim", hidden // config["num_attention_heads"])
    heads, kv_heads = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "q_proj": (hidden, heads), "k_proj": (hidden, kv_heads), "v_proj": (hidden, kv_heads), "o_proj": (heads, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
        "lm_head": (hidden, config["vocab_size"]),
    }[module.rsplit(".", 1)[-1]]


def write_adapter(folder, config, layers, rank, scale, keys, dtype):
    count = config["num_hidden_layers"]
    modules = [f"model.layers.{layer}.{key}" for layer in range(count - layers, count) for key in keys if "." in key]
    modules += [key for key in keys if "." not in key]
    tensors = {}
    for module in modules:
        columns, rows = shapes(config, module)
        tensors[f"{module}.lora_a"] = (mx.random.normal((columns, rank)) / columns**0.5).astype(dtype)
        tensors[f"{module}.lora_b"] = (0.5 * mx.random.normal((rank, rows)) / rank**0.5 / scale).astype(dtype)
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    parameters = dict(rank=rank, scale=scale, dropout=0.0, keys=keys)
    text = json.dumps(dict(fine_tune_type="lora", num_layers=layers, lora_parameters=parameters), indent=4)
    (folder / "adapter_config.json").write_text(text + "\n")


def generate(model, prompt, margin=0.0):
    """Greedy tokens, the logits after the last but one, and those of the prompt; None where two tokens are too close."""
    cache = make_prompt_cache(model)
    logits = model(mx.array([prompt]), cache=cache)[0].astype(mx.float32)
    row, tokens = logits[-1], []
    while True:
        second, first = sorted(mx.topk(row, 2).tolist())
        if first - second < margin:
            return None
        tokens.append(mx.argmax(row).item())
        if len(tokens) == GREEDY:
            return tokens, row, logits
        row = model(mx.array([tokens[-1:]]), cache=cache)[0, -1].astype(mx.float32)


def rounded(a):
    return [round(v, 6) for v in a.tolist()] if a.ndim == 1 else [rounded(r) for r in a]


def main():
    mx.set_default_device(mx.cpu)
    for seed, (name, model, *how) in enumerate(ADAPTERS, 1):
        folder = GOLDENS / "adapters" / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        base, config = load_model(GOLDENS / model)
        mx.random.seed(seed)
        write_adapter(folder, config, *how)
        adapted = load_adapters(load_model(GOLDENS / model)[0], folder)
        for loaded in (base, adapted):
            loaded.eval()
            loaded.set_dtype(mx.float32)
        for seed in range(1000):  # a prompt with no near ties, so that rounding cannot change a token
            mx.random.seed(seed)
            prompt = mx.random.randint(0, config["vocab_size"], (PROMPT,)).tolist()
            found = generate(adapted, prompt, MARGIN)
            if found and len(set(found[0])) >= 6:
                break
        else:
            raise SystemExit(f"{name}: no prompt without near ties")
        tokens, last, logits = found
        base_tokens, _, base_logits = generate(base, prompt)
        assert tokens != base_tokens, name
        golden = dict(
            model=model, prompt=prompt, positions=POSITIONS, logits=rounded(logits[mx.array(POSITIONS)]),
            argmax=mx.argmax(logits, -1).tolist(), greedy=tokens, last_logits=rounded(last), base_greedy=base_tokens,
        )
        text = json.dumps(golden, indent=0, separators=(",", ":"))
        (folder / "golden.json").write_text(text.replace(",\n", ",").replace(',"', ',\n"') + "\n")
        print(name, "differs from the model by", mx.max(mx.abs(logits - base_logits)).item())


if __name__ == "__main__":
    main()
