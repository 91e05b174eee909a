"""MaskPro in PyTorch: the published algorithm with its released defaults, to hold our own numbers against.

    python maskpro_reference.py --model DIR --calib TEXT --eval TEXT [--steps 2400] [--start wanda] ...

What it does, for every projection at once:

- one logit a weight, `C * m0` at first (m0: the start mask, C: --logits);
- each step draws N of M in every group without replacement from the softmax (Gumbel-top-N), except step 1, which runs
  on m0 itself; minibatches come in fixed order, unshuffled, and the loss f(m0, batch) of each is computed once;
- residual r = f(m, batch) - f(m0, batch); logits -= rate * (r - delta) * d log P(m) / d logits with the probability of
  the unordered mask (N = 2 in closed form), delta = 0.99 delta + 0.01 r. `--tracker released` updates delta before it is used,
  as the released code does; `paper` after; `none` leaves it at 0;
- the mask at the end: top N of the logits, ties to the lower index.

The loss is the mean next-token cross-entropy of the whole model. Only N = 2 of M.
"""
import argparse
import json
import math
import time

import torch
import transformers

from check_hf_model import PROJECTION, load_model, mean_nll, token_windows


class Flat:
    """All pruned weights in one [groups, M] buffer of which the model's parameters are views."""

    def __init__(self, model, m):
        self.m, self.model = m, model
        parts = [(n, p) for n, p in model.named_parameters() if PROJECTION.search(n)]
        for n, p in parts:
            if p.shape[1] % m:
                raise ValueError(f"{n}: {p.shape[1]} columns do not divide by {m}")
        self.spans, at = {}, 0
        self.dense = torch.cat([p.detach().reshape(-1) for _, p in parts]).view(-1, m)
        self.live = self.dense.clone()
        for n, p in parts:
            self.spans[n] = (at, p.shape)
            p.data = self.live.view(-1)[at:at + p.numel()].view(p.shape)
            at += p.numel()

    def apply(self, mask):
        torch.mul(self.dense, mask, out=self.live)

    def restore(self):
        self.live.copy_(self.dense)


def top_n(scores, n):
    """Mask of the N largest of each row; ties to the lower index."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :n]
    return torch.zeros_like(scores).scatter_(1, order, 1.0)


def top_n_fast(keys):
    """Top two of each row; ties have probability zero here, so no stable sort is needed."""
    return torch.zeros_like(keys).scatter_(1, keys.topk(2, dim=1, sorted=False).indices, 1.0)


@torch.no_grad()
def wanda_scores(flat, calib, batch):
    """|w| times the L2 norm of its input over the calibration tokens; inputs from the model as it stands."""
    sums, hooks = {}, []
    for name, module in flat.model.named_modules():
        if name + ".weight" in flat.spans:
            def hook(_module, args, key=name + ".weight"):
                x = args[0].reshape(-1, args[0].shape[-1]).double()
                sums[key] = sums.get(key, 0) + (x * x).sum(0)
            hooks.append(module.register_forward_pre_hook(hook))
    for part in calib.split(batch):
        flat.model(part)
    for h in hooks:
        h.remove()
    scores = torch.empty(flat.dense.numel())
    for name, (at, shape) in flat.spans.items():
        w = flat.dense.view(-1)[at:at + shape.numel()].view(shape)
        scores[at:at + shape.numel()] = (w.abs() * sums[name].sqrt().float()).reshape(-1)
    return scores.view_as(flat.dense)


def wanda_mask(flat, calib, batch, inputs):
    """`dense`: all norms from the dense model. `pruned`: block by block, each block dense, those before it pruned."""
    flat.restore()
    if inputs == "dense":
        return top_n(wanda_scores(flat, calib, batch), 2)
    mask = torch.ones_like(flat.dense)
    blocks = sorted({int(n.split(".")[2]) for n in flat.spans})
    for block in blocks:
        flat.apply(mask)
        chosen = top_n(wanda_scores(flat, calib, batch), 2).view(-1)
        for name, (at, shape) in flat.spans.items():
            if int(name.split(".")[2]) == block:
                span = slice(at, at + shape.numel())
                mask.view(-1)[span] = chosen[span]
    flat.restore()
    return mask


def score(logits, mask):
    """d log P(mask) / d logits for two draws of M without replacement: F32 [groups, M]."""
    e = torch.exp(logits - logits.amax(1, keepdim=True))
    total = e.sum(1, keepdim=True)
    p = e / total
    # 1 - p_i as the sum of the others, not as a difference: near one the difference has no digits left.
    q = (e @ (1.0 - torch.eye(e.shape[1]))).div_(total).clamp_min_(1e-12)
    r = 1.0 / (mask / q).sum(1, keepdim=True)
    c = mask * (1.0 + r * p / (q * q))
    # s_i = c_i (1 - p_i) - p_i * (sum of the other c)
    return c * q - p * (c @ (1.0 - torch.eye(e.shape[1])))


def gumbel(shape, generator):
    u = torch.rand(shape, generator=generator).clamp_(1e-7, 1.0 - 1e-7)
    return -torch.log(-torch.log(u))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True)
    p.add_argument("--calib", required=True, help="text the windows come from")
    p.add_argument("--windows", type=int, default=512, help="calibration windows, from the front")
    p.add_argument("--window", type=int, default=128, help="tokens a window")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--steps", type=int, default=10000)
    p.add_argument("--rate", type=float, default=50.0)
    p.add_argument("--logits", type=float, default=10.0, help="C: the start's logits are C * m0")
    p.add_argument("--logits-end", type=float, help="rescale the sharpness linearly to this at the end (not in the paper)")
    p.add_argument("--tracker", choices=("released", "paper", "none"), default="released")
    p.add_argument("--refresh", type=int, help="every so many steps take the top-N mask as new m0 (not in the paper)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--m", type=int, default=4, help="group size; two of M are kept")
    p.add_argument("--start", choices=("wanda", "magnitude"), default="wanda")
    p.add_argument("--start-windows", type=int, default=128, help="calibration windows for Wanda's norms")
    p.add_argument("--start-inputs", choices=("pruned", "dense"), default="pruned",
                   help="whether Wanda's norms of a block see the blocks before it pruned, as the released Wanda does")
    p.add_argument("--eval", help="text to measure on")
    p.add_argument("--eval-windows", type=int, default=128)
    p.add_argument("--eval-window", type=int, default=256)
    p.add_argument("--eval-every", type=int, help="also every so many steps")
    p.add_argument("--threads", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    generator = torch.Generator().manual_seed(args.seed)

    def say(**facts):
        print(json.dumps({k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in facts.items()}), flush=True)

    model = load_model(args.model)
    calib = token_windows(args.model, args.calib, args.window, args.windows)
    held = token_windows(args.model, args.eval, args.eval_window, args.eval_windows) if args.eval else None
    flat = Flat(model, args.m)

    def forward(ids):
        return model(ids, use_cache=False).logits

    def perplexity(mask):
        if held is None:
            return None
        flat.apply(mask)
        return math.exp(mean_nll(forward, held))

    if args.start == "wanda":
        m0 = wanda_mask(flat, calib[:args.start_windows], args.batch, args.start_inputs)
    else:
        m0 = top_n(flat.dense.abs(), 2)
    batches = list(calib.split(args.batch))

    def base_losses(mask):
        flat.apply(mask)
        return [mean_nll(forward, b, args.batch, torch.float32) for b in batches]

    if held is not None:
        flat.restore()
        say(dense_perplexity=math.exp(mean_nll(forward, held)), start_perplexity=perplexity(m0), groups=len(m0))
    base = base_losses(m0)
    say(config=vars(args), start_loss=sum(base) / len(base))

    start, mask, logits, delta = m0, m0, args.logits * m0, 0.0
    began, seen, flipped = time.time(), [], 0
    for step in range(1, args.steps + 1):
        sharp = 1.0
        if args.logits_end:
            sharp += (args.logits_end / args.logits - 1.0) * (step - 1) / max(1, args.steps - 1)
        if step > 1:
            mask = top_n_fast(sharp * logits + gumbel(logits.shape, generator))
            flipped += int((mask != m0).any(1).sum())
        flat.apply(mask)
        k = (step - 1) % len(batches)
        loss = mean_nll(forward, batches[k], args.batch, torch.float32)
        r = loss - base[k]
        if args.tracker == "released":
            delta = 0.99 * delta + 0.01 * r
        advantage = r - delta
        if args.tracker == "paper":
            delta = 0.99 * delta + 0.01 * r
        if advantage:
            logits = logits - args.rate * advantage * score(sharp * logits, mask)
        seen.append((loss, r))
        if args.refresh and step % args.refresh == 0:
            m0 = top_n(logits, 2)
            base, delta = base_losses(m0), 0.0
        if step % 50 == 0 or step == args.steps:
            best = top_n(logits, 2)
            say(step=step, loss=sum(x[0] for x in seen) / len(seen), residual=sum(x[1] for x in seen) / len(seen),
                delta=delta, sampled_off_start=flipped / len(seen), groups_changed=int((best != start).any(1).sum()),
                seconds=round(time.time() - began, 1))
            seen, flipped = [], 0
        if args.eval_every and step % args.eval_every == 0 and step != args.steps:
            say(step=step, perplexity=perplexity(top_n(logits, 2)))
    best = top_n(logits, 2)
    final = base_losses(best)
    say(steps=args.steps, calib_loss=sum(final) / len(final), perplexity=perplexity(best),
        groups_changed=int((best != start).any(1).sum()), seconds=round(time.time() - began, 1))


if __name__ == "__main__":
    main()
