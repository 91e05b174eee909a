"""Hold what `maskwright generate` writes, greedily, against transformers, dense and under a mask.

    python check_generate.py MASKWRIGHT MODEL_DIR [--mask FILE --masked MASKED_MODEL_DIR] [--tokens 64]

MASKED_MODEL_DIR is the model with the zeros of FILE. Prints a line for each prompt; exits with 1 when a token differs.
Weights and arithmetic in float32 on both sides.
"""
import argparse
import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM

PROMPTS = ("Once upon a time", "The dog", "Lily and Tom went to")


def ours(o, prompt):
    command = [o.maskwright, "generate", o.model, "--prompt", prompt, "--tokens", str(o.tokens), "--json", "--quiet"]
    if o.mask:
        command += ["--mask", o.mask]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def theirs(model, prompt_ids, tokens):
    ids = torch.tensor([prompt_ids])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[0, len(prompt_ids):].tolist()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("maskwright")
    p.add_argument("model")
    p.add_argument("--mask")
    p.add_argument("--masked")
    p.add_argument("--tokens", type=int, default=64)
    o = p.parse_args()
    if bool(o.mask) != bool(o.masked):
        p.error("--mask and --masked go together")
    folders = {"dense": o.model} | ({"masked": o.masked} if o.masked else {})
    models = {name: AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for name, f in folders.items()}
    wrong = 0
    for prompt in PROMPTS:
        found = ours(o, prompt)
        for name, model in models.items():
            want = theirs(model, found["prompt_ids"], o.tokens)
            equal = want == found[name]["ids"]
            wrong += not equal
            print(json.dumps({"model": o.model, "weights": name, "prompt": prompt, "tokens": len(want), "equal": equal}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
