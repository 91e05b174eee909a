"""Compare `maskwright eval --against` with the same numbers from transformers.

    python check_eval.py MASKWRIGHT MASKED_MODEL DENSE_MODEL --text FILE [--window 128] [--windows 64] [--tolerance 1e-4]

Perplexity ratio, mean divergence KL(dense || masked) over the predicted tokens in nats, and the share of them with the same most likely
token. Arithmetic in float32 whatever the stored type. Prints one JSON object; exits with 1 when a number differs by more than the
tolerance.
"""
import argparse
import json
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM

from check_hf_model import token_windows


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("masked")
    p.add_argument("dense")
    p.add_argument("--text", required=True)
    p.add_argument("--window", type=int, default=128)
    p.add_argument("--windows", type=int, default=64)
    p.add_argument("--tolerance", type=float, default=1e-4)
    o = p.parse_args()
    told = subprocess.run(
        [o.binary, "eval", o.masked, "--against", o.dense, "--text", o.text, "--window", str(o.window),
         "--windows", str(o.windows), "--json", "--quiet"], check=True, capture_output=True, text=True)
    told = json.loads(told.stdout)
    load = lambda folder: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    masked, dense = load(o.masked), load(o.dense)
    ids = token_windows(o.dense, o.text, o.window, o.windows)
    kl, same, nll, dense_nll = [], [], [], []
    with torch.inference_mode():
        for part in ids.split(8):
            logp, wanted = (m(part).logits[:, :-1].double().log_softmax(-1) for m in (masked, dense))
            kl.append((wanted.exp() * (wanted - logp)).sum(-1).flatten())
            same.append((wanted.argmax(-1) == logp.argmax(-1)).double().flatten())
            for out, found in ((nll, logp), (dense_nll, wanted)):
                out.append(-found.gather(-1, part[:, 1:, None]).flatten())
    mean = lambda parts: torch.cat(parts).mean().item()
    theirs = {"kl_to_dense": mean(kl), "top1_agreement": mean(same), "nll": mean(nll)}
    theirs["perplexity_ratio"] = torch.tensor(mean(nll) - mean(dense_nll), dtype=torch.float64).exp().item()
    differences = {name: abs(told[name] / value - 1.0) for name, value in theirs.items()}
    equal = all(difference <= o.tolerance for difference in differences.values())
    print(json.dumps({"model": o.masked, "torch": theirs, "relative_differences": differences, "equal": equal}))
    sys.exit(not equal)


if __name__ == "__main__":
    main()
