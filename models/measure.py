#!/usr/bin/env python3
"""Loss of a model folder on its held-out text: dense, and under 2:4 masks by magnitude and by Wanda.

Everything goes through transformers, in f32 from the stored f16 weights. Perplexity follows the convention of GPTQ and
SparseGPT: the whole text is tokenised once with <s> at its very start, cut into windows that do not overlap, the tail is
dropped, and the result is the exponential of the mean of the windows' mean losses.

    python3 measure.py village
"""

import argparse
import json
import os

import torch
import transformers

import generate
from train import SEEDS


def losses(model, ids, window):
    """Mean loss of each window, in nats per predicted token."""
    out = []
    with torch.no_grad():
        for rows in ids[: len(ids) // window * window].view(-1, window).split(16):
            logits = model(rows).logits[:, :-1].transpose(1, 2)
            loss = torch.nn.functional.cross_entropy(logits, rows[:, 1:], reduction="none")
            out.append(loss.double().mean(dim=1))
    return torch.cat(out)


def projections(model):
    return {name: layer for name, layer in model.named_modules() if name.endswith("_proj")}


def input_norms(model, ids, window, count):
    """L2 norm of every input feature of every projection of the dense model over `count` windows."""
    squares, hooks = {}, []
    for name, layer in projections(model).items():
        def add(_, inputs, __, name=name):
            x = inputs[0].flatten(0, 1).double()
            squares[name] = squares.get(name, 0) + x.pow(2).sum(dim=0)
        hooks.append(layer.register_forward_hook(add))
    with torch.no_grad():
        for rows in ids[: count * window].view(-1, window).split(16):
            model(rows)
    for hook in hooks:
        hook.remove()
    return {name: total.sqrt().float() for name, total in squares.items()}


def mask(scores):
    """2:4: of every four neighbours in a row the two of highest score, ties to the lower index."""
    groups = scores.view(scores.shape[0], -1, 4)
    kept = groups.sort(dim=-1, descending=True, stable=True).indices[..., :2]
    return torch.zeros_like(groups).scatter_(-1, kept, 1.0).view_as(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(args.folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32).eval()

    def read(file):
        with open(os.path.join(args.folder, file), encoding="ascii", newline="") as text:
            return text.read()

    ids = {file: torch.tensor(tokenizer(read(file)).input_ids) for file in ("calib.txt", "heldout.txt")}
    for file in ids:
        text = read(file)
        stories, nats = generate.text_of(SEEDS[file], 330_000)
        assert text == "".join(story + "\n" for story in stories), f"{file} is not what generate.py writes"
        tokens = len(ids[file]) - 1
        print(json.dumps({"file": file, "stories": len(stories), "characters": len(text), "words": len(text.split()),
                          "tokens_without_bos": tokens, "nats_per_character": round(nats / len(text), 5),
                          "nats_per_word": round(nats / len(text.split()), 5),
                          "nats_per_token": round(nats / tokens, 5)}))

    dense = {name: layer.weight.detach().clone() for name, layer in projections(model).items()}
    norms = input_norms(model, ids["calib.txt"], 256, 64)
    masks = {
        "dense": {name: torch.ones_like(weight) for name, weight in dense.items()},
        "magnitude 2:4": {name: mask(weight.abs()) for name, weight in dense.items()},
        "wanda 2:4": {name: mask(weight.abs() * norms[name]) for name, weight in dense.items()},
    }
    for kind, chosen in masks.items():
        for name, layer in projections(model).items():
            layer.weight.data = dense[name] * chosen[name]
        for window in (128, 256):
            nll = losses(model, ids["heldout.txt"], window).mean().item()
            print(json.dumps({"weights": kind, "window": window, "windows": len(ids["heldout.txt"]) // window,
                              "nll": round(nll, 6), "perplexity": round(float(torch.tensor(nll).exp()), 6)}))


if __name__ == "__main__":
    main()
