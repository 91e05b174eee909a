"""Load the masked models that runs wrote with transformers, and hold their perplexities against those in run.json.

    python check_families.py FOLDER --text FILE --window 12 --windows 8 [--rtol 1e-4]

FOLDER holds a run in NAME-run for every NAME. Prints a line for each; exits with 1 when one is off.
"""
import argparse
import json
import math
import sys
from pathlib import Path

import torch
from check_hf_model import load_model, mean_nll
from tokenizers import Tokenizer


def main():
    args = argparse.ArgumentParser()
    args.add_argument("folder", type=Path)
    args.add_argument("--text", required=True)
    args.add_argument("--window", type=int, required=True)
    args.add_argument("--windows", type=int, required=True)
    args.add_argument("--rtol", type=float, default=1e-4)
    args = args.parse_args()
    wrong = 0
    runs = sorted(args.folder.glob("*-run"))
    for run in runs:
        rows = json.loads((run / "run.json").read_text())["results"]
        ours = next(row["perplexity"] for row in rows if row["model"] == "result")
        model = load_model(run / "model")
        # As the file says: AutoTokenizer would cut words as the family's own tokenizer does.
        tokens = Tokenizer.from_file(str(run / "model" / "tokenizer.json")).encode(Path(args.text).read_text()).ids
        ids = torch.tensor(tokens[: args.windows * args.window]).view(args.windows, args.window)
        theirs = math.exp(mean_nll(lambda part: model(part, use_cache=False).logits, ids))
        off = abs(ours / theirs - 1)
        wrong += not off <= args.rtol
        print(f"{run.name}: {ours:.6f}, transformers {theirs:.6f}, off by {off:.1e}", flush=True)
    print(f"{len(runs)} models, {wrong} off by more than {args.rtol:g}")
    sys.exit(1 if wrong or not runs else 0)


if __name__ == "__main__":
    main()
