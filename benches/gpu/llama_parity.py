#!/usr/bin/env python3
"""Holds logits at the shape of Llama 3 8B against transformers on the same GPU.

Makes a checkpoint of random weights (normal, standard deviation 0.02, norms of ones, bf16) and random sequences of tokens. Then
all logits are computed three times: by `teacher_forced write` in bf16, by transformers in single precision, which
is the reference, and by transformers in bf16, which says how far rounding alone may lead. Prints a verdict; exits with 1 if ours
are further from the reference than 1.25 times transformers' own, or not numbers.

Needs torch, transformers and safetensors. All layers take about 16 GB of disk and 40 GB of GPU memory.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).resolve().parent
LIMIT = 1.25


def make_checkpoint(folder: Path, layers: int) -> dict:
    """Writes config.json and safetensors, a file for the ends and one a layer."""
    config = json.loads((HERE / "llama-3-8b/config.json").read_text())
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    generator = torch.Generator("cuda").manual_seed(1)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
        return (values * 0.02).to(torch.bfloat16).cpu()

    def ones() -> torch.Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    weight_map = {}

    def save(name: str, tensors: dict) -> None:
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
        weight_map.update({key: f"{name}.safetensors" for key in tensors})

    save(
        "ends",
        {
            "model.embed_tokens.weight": draw(vocab, hidden),
            "model.norm.weight": ones(),
            "lm_head.weight": draw(vocab, hidden),
        },
    )
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        save(
            f"layer-{layer}",
            {
                prefix + "input_layernorm.weight": ones(),
                prefix + "post_attention_layernorm.weight": ones(),
                prefix + "self_attn.q_proj.weight": draw(hidden, hidden),
                prefix + "self_attn.k_proj.weight": draw(kv, hidden),
                prefix + "self_attn.v_proj.weight": draw(kv, hidden),
                prefix + "self_attn.o_proj.weight": draw(hidden, hidden),
                prefix + "mlp.gate_proj.weight": draw(inner, hidden),
                prefix + "mlp.up_proj.weight": draw(inner, hidden),
                prefix + "mlp.down_proj.weight": draw(hidden, inner),
            },
        )
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return config


def theirs(folder: Path, tokens: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Returns transformers' logits, [tokens - 1, vocab] for each sequence."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).cuda().eval()
    with torch.inference_mode():
        found = [model(row[None].cuda()).logits[0, :-1].float().cpu() for row in tokens]
    del model
    torch.cuda.empty_cache()
    return found


def distance(got: list[torch.Tensor], expected: list[torch.Tensor]) -> tuple[float, float, float]:
    """Returns the error relative to the reference's own spread, the mean KL divergence, and the share of other top tokens."""
    error = spread = divergence = other = 0.0
    for g, e in zip(got, expected):
        g, e = g.cuda().double(), e.cuda().double()
        error += (g - e).square().sum().item()
        spread += (e - e.mean(-1, keepdim=True)).square().sum().item()
        other += (g.argmax(-1) != e.argmax(-1)).sum().item()
        g, e = g.log_softmax(-1), e.log_softmax(-1)
        divergence += (e.exp() * (e - g)).sum().item()
    rows = sum(len(part) for part in expected)
    return (error / spread) ** 0.5, divergence / rows, other / rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", default=HERE / "teacher_forced", type=Path)
    parser.add_argument("--layers", default=32, type=int, help="layers of the model [32]")
    parser.add_argument("--sequences", default=4, type=int)
    parser.add_argument("--tokens", default=256, type=int, help="tokens of a sequence [256]")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = make_checkpoint(folder, args.layers)
        torch.cuda.empty_cache()
        print(f"made a checkpoint of {args.layers} layers", flush=True)
        torch.manual_seed(2)
        tokens = torch.randint(0, config["vocab_size"], (args.sequences, args.tokens))
        listed = folder / "tokens.txt"
        listed.write_text("".join(" ".join(map(str, row)) + "\n" for row in tokens.tolist()))
        out = folder / "logits.f32"
        subprocess.run([args.binary, "write", folder, listed, out, "bf16"], check=True)
        ours = np.fromfile(out, np.float32).reshape(args.sequences, -1, config["vocab_size"])
        ours = list(torch.from_numpy(ours))
        print("computed ours", flush=True)
        reference = theirs(folder, tokens, torch.float32)
        print("computed transformers' in single precision", flush=True)
        rounded = theirs(folder, tokens, torch.bfloat16)
    if any(not part.isfinite().all() or len(part) != args.tokens - 1 for part in ours):
        print("FAIL ours are not numbers, or not as many as expected")
        return 1
    verdicts = {"transformers in bf16": distance(rounded, reference), "ours in bf16": distance(ours, reference)}
    for name, (error, divergence, other) in verdicts.items():
        print(f"{name:22} error {error:.2e}, KL {divergence:.2e}, other top token {other:.2%} (reference: single precision)")
    is_near = verdicts["ours in bf16"][0] <= LIMIT * verdicts["transformers in bf16"][0]
    print("ok   ours match" if is_near else f"FAIL ours are more than {LIMIT} times as far away")
    return 0 if is_near else 1


if __name__ == "__main__":
    sys.exit(main())
