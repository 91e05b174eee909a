"""Learned N:M masks of a Llama, and trained kept weights, in plain PyTorch on the CPU.

    python learn.py MODEL_DIR --calib train.txt --stages block,model[,repair-model] [--eval valid.txt]

Prints one JSON object: seconds of each stage, perplexity after each when there is a text to evaluate.

Weights W of every projection are masked in groups of M along in_features by a soft mask of logits phi at a temperature t;
p = softmax(phi / t) of a group:

    draw     the probability that N draws without replacement take a weight; for N = 2
             p_i + sum over j != i of p_j p_i / (1 - p_j)
    subsets  the marginals of a softmax over all subsets of N, by the sum of their logits / t
    sharp    N times: mu = softmax(a / t), mask += mu, a += log(1 - mu); a = phi at first
    plain    N times: mu = softmax(a), mask += mu, a += log(1 - mu); a = phi / t at first

The first three tend to the hard mask as t falls. `plain` does not: of two kept weights, the one with the larger logit is
taken twice half of the time, so its masks tend to (1.5, 0.5, 0, 0). The temperature falls geometrically over the steps;
the final mask keeps the N largest logits. Stages, in order:

    start         a mask: wanda, descent, ... of oneshot.py
    block         block after block, logits start at --strength x start mask and learn to give the output of the dense block
                  on dense inputs from the inputs that the masks before let through; loss: squared error / variance of
                  what the dense block adds to its input. The start mask of each block is made on those inputs as well
    joint         as block, but the weights learn with the logits
    model         logits of the whole model, from --strength x mask, learn from KL(dense, masked) or the text's cross-entropy
    joint-model   as model, but the weights learn with the logits; the masks harden halfway and the kept weights go on
    repair-block  masks fixed, the kept weights of block after block learn, by the loss of `block`
    repair-model  masks fixed, all kept weights learn, by the loss of `model`

Every stage is Adam (0.9, 0.999) with a rate that falls to 0 as a cosine over its steps.
"""
import argparse
import itertools
import json
import math
import statistics
import time
from argparse import Namespace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import oneshot
from oneshot import Clock, Llama, Pruner, pattern, perplexity, token_windows, top_n

PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
STAGES = ("start", "block", "joint", "model", "joint-model", "repair-block", "repair-model")
SOFT = ("draw", "subsets", "sharp", "plain")


class Network(Llama):
    """A Llama whose forward autograd can go through; `dense` keeps the weights it was read with."""

    def __init__(self, folder):
        super().__init__(folder)
        self.dense = dict(self.weights)

    def names(self, block):
        return [f"model.layers.{block}.{part}.weight" for part in PARTS]

    def all_names(self):
        return [name for block in range(self.blocks) for name in self.names(block)]

    def gated(self, x, block):
        return F.silu(self.linear(x, f"{block}.mlp.gate_proj")) * self.linear(x, f"{block}.mlp.up_proj")

    def block(self, x, index, rotation):
        block = f"model.layers.{index}"
        a = self.attend(self.norm(x, f"{block}.input_layernorm"), block, rotation)
        x = x + self.linear(a, f"{block}.self_attn.o_proj")
        a = self.gated(self.norm(x, f"{block}.post_attention_layernorm"), block)
        return x + self.linear(a, f"{block}.mlp.down_proj")

    def stream(self, ids, rotation):
        """What the last norm gives, [windows, length, hidden]."""
        x = self.embed(ids)
        for index in range(self.blocks):
            x = self.block(x, index, rotation)
        return self.norm(x, "model.norm")

    def restore(self, names):
        for name in names:
            self.weights[name] = self.dense[name]


def soft_mask(logits, n, m, temperature, kind="draw"):
    """[rows, columns] of values that sum to n in every group."""
    a = logits.unflatten(1, (-1, m)) / temperature
    itself = torch.eye(m, dtype=torch.bool)
    if n == 1:
        return a.softmax(-1).flatten(1)
    if kind == "draw" and n == 2:
        first = a.softmax(-1)
        second = a[..., None, :].masked_fill(itself, -torch.inf).softmax(-1)
        return (first + (first[..., None] * second).sum(-2)).flatten(1)
    if kind == "draw":
        raise ValueError("draw is written for N of 1 and 2; --soft subsets is for any N")
    if kind == "subsets":
        kept = torch.tensor([[float(j in subset) for j in range(m)] for subset in itertools.combinations(range(m), n)])
        kept = kept.to(a.dtype)
        return ((a @ kept.t()).softmax(-1) @ kept).flatten(1)
    mask = 0
    for step in range(n):
        mask = mask + a.softmax(-1)
        if step < n - 1:  # log(1 - mu) without cancellation: of the others' sum of exponentials over that of all
            others = a[..., None, :].masked_fill(itself, -torch.inf).logsumexp(-1)
            log_rest = others - a.logsumexp(-1, keepdim=True)
            a = a + (log_rest / temperature if kind == "sharp" else log_rest)
    return mask.flatten(1)


def batches(count, batch, seed):
    """Endless index batches, every epoch a new permutation, its tail dropped."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from order[:count - count % batch].split(batch)


def adam(groups, steps, loss_of):
    """Minimises loss_of(step) by the parameters of `groups`, pairs of a dict and a rate."""
    optimizer = torch.optim.Adam([{"params": list(p.values()), "lr": rate, "full": rate} for p, rate in groups])
    losses, seconds = [], []
    for step in range(steps):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (1 + math.cos(math.pi * step / steps)) / 2
        loss = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - begin)
    return losses, seconds


class Learner:
    def __init__(self, model, ids, options, clock=None):
        self.model, self.ids, self.o, self.clock = model, ids, options, clock or Clock()
        self.rotation = model.rotation(ids.shape[1])
        self.logits, self.masks, self.step_seconds = {}, {}, []

    def temperature(self, step, o):
        return o.hot * (o.cold / o.hot) ** (step / max(1, o.steps - 1))

    def everything(self, function, x):
        with torch.no_grad():
            return torch.cat([function(part) for part in x.split(self.o.batch)])

    def start_masks(self, index, x):
        """Masks of one block by the method of --start, on its input x."""
        model, o = self.model, self.o
        model.restore(model.names(index))
        options = Namespace(method=o.start, start="wanda", pattern=o.pattern, tolerance=1e-6, max_sweeps=50, seed=o.seed,
                            repair="none", compare=None, sparsegpt_damp=0.01, damp=1e-4)
        pruner = Pruner(options, Clock())
        pruner.report = lambda *_: None
        with torch.no_grad():
            oneshot.walk_block(model, f"model.layers.{index}", x.clone(), self.rotation, o.batch, pruner, Clock(), last=True)
        model.restore(model.names(index))
        return {name: mask.bool() for name, mask in pruner.masks.items()}

    def apply_masks(self, names):
        for name in names:
            self.model.weights[name] = self.model.weights[name] * self.masks[name]

    def logits_of(self, names, strength):
        return {name: (strength * self.masks[name].float()).requires_grad_() for name in names}

    def set_soft(self, logits, weights, temperature):
        n, m = self.o.pattern
        for name, p in logits.items():
            self.model.weights[name] = weights[name] * soft_mask(p, n, m, temperature, self.o.soft)

    def harden(self, logits):
        """The masks that the logits end with; they replace the weights by kept ones."""
        for name, p in logits.items():
            self.logits[name] = p.detach()
            self.masks[name] = top_n(p.detach(), *self.o.pattern)

    def block_loss(self, index, x, target, scale):
        return lambda pick: F.mse_loss(self.model.block(x[pick], index, self.rotation), target[pick]) / scale

    def learn_block(self, index, x, target, scale, o, joint=False):
        model, names = self.model, self.model.names(index)
        logits = self.logits_of(names, o.strength)
        weights = {name: model.dense[name].clone().requires_grad_(joint) for name in names}
        loss, picks = self.block_loss(index, x, target, scale), batches(len(x), o.batch, o.seed)

        def loss_of(step):
            self.set_soft(logits, weights, self.temperature(step, o))
            return loss(next(picks))

        losses, seconds = adam([(logits, o.rate)] + [(weights, o.joint_rate)] * joint, o.steps, loss_of)
        self.step_seconds += seconds
        self.harden(logits)
        for name in names:
            model.weights[name] = weights[name].detach() * self.masks[name]
        return losses

    def repair(self, names, loss, steps, rate, count, batch, seed):
        """Kept weights of the named projections by `loss` of a pick."""
        model = self.model
        weights = {name: model.weights[name].clone().requires_grad_() for name in names}
        picks = batches(count, batch, seed)

        def loss_of(_):
            for name in names:
                model.weights[name] = weights[name] * self.masks[name]
            return loss(next(picks))

        losses, seconds = adam([(weights, rate)], steps, loss_of)
        self.step_seconds += seconds
        for name in names:
            model.weights[name] = weights[name].detach() * self.masks[name]
        return losses

    def walk(self, start=False, learn=None, joint=False, repair=None, log=lambda *_: None):
        """Block after block: start masks, learned masks, trained weights, each as asked."""
        model = self.model
        dense_in = self.everything(model.embed, self.ids)
        x = dense_in
        for index in range(model.blocks):
            names = model.names(index)
            now = {name: model.weights[name] for name in names}
            model.restore(names)
            target = self.everything(lambda part: model.block(part, index, self.rotation), dense_in)
            scale = (target - dense_in).var().item()
            model.weights.update(now)
            if start:
                self.masks |= self.start_masks(index, x)
                self.apply_masks(names)
            losses = []
            if learn:
                losses.append(self.learn_block(index, x, target, scale, learn, joint))
            if repair:
                losses.append(self.repair(names, self.block_loss(index, x, target, scale), repair.steps, repair.rate,
                                          len(x), repair.batch, repair.seed))
            x = self.everything(lambda part: model.block(part, index, self.rotation), x)
            dense_in = target
            log(index, losses, F.mse_loss(x, target).item() / scale)

    def model_loss(self, kind):
        """Loss of a pick over the whole model; the dense stream is computed once."""
        model = self.model
        if kind == "kl":
            now = {name: model.weights[name] for name in model.all_names()}
            model.restore(now)
            dense = self.everything(lambda part: model.stream(part, self.rotation), self.ids)
            model.weights.update(now)

        def loss(pick):
            logp = F.linear(model.stream(self.ids[pick], self.rotation)[:, :-1], model.head).flatten(0, 1)
            if kind == "ce":
                return F.cross_entropy(logp, self.ids[pick][:, 1:].flatten())
            with torch.no_grad():
                wanted = F.linear(dense[pick][:, :-1], model.head).flatten(0, 1).log_softmax(-1)
            return F.kl_div(logp.log_softmax(-1), wanted, reduction="batchmean", log_target=True)

        return loss

    def learn_model(self, o, joint=False):
        """Logits of the whole model; with `joint` its weights too, over twice the steps, the later half under hard masks."""
        model, names = self.model, self.model.all_names()
        loss, picks = self.model_loss(o.loss), batches(len(self.ids), o.batch, o.seed)
        logits = self.logits_of(names, o.strength)
        weights = {name: model.dense[name].clone().requires_grad_(joint) for name in names}
        def loss_of(step):
            if step < o.steps:
                self.set_soft(logits, weights, self.temperature(step, o))
            else:
                if step == o.steps:
                    self.harden(logits)
                for name in names:
                    model.weights[name] = weights[name] * self.masks[name]
            return loss(next(picks))

        groups = [(logits, o.rate)] + [(weights, o.joint_rate)] * joint
        losses, seconds = adam(groups, o.steps * (2 if joint else 1), loss_of)
        self.step_seconds += seconds
        if not joint:
            self.harden(logits)
        for name in names:
            model.weights[name] = weights[name].detach() * self.masks[name]
        return losses

    def repair_model(self, o):
        return self.repair(self.model.all_names(), self.model_loss(o.loss), o.steps, o.rate, len(self.ids), o.batch, o.seed)


# --------------------------------------------------------------------------------------------------------- command line


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", help="folder with config.json, model.safetensors (or shards) and tokenizer.json")
    p.add_argument("--calib", required=True, help="calibration text")
    p.add_argument("--windows", type=int, default=512)
    p.add_argument("--window", type=int, default=256, help="tokens a window")
    p.add_argument("--pattern", type=pattern, default=(2, 4), help="N:M, keep N of M")
    p.add_argument("--stages", default="block", help="comma-separated, of " + ", ".join(STAGES))
    p.add_argument("--start", choices=oneshot.METHODS, default="descent", help="method of the start masks")
    p.add_argument("--batch", type=int, default=8, help="windows a step")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--soft", choices=SOFT, default="draw", help="soft masks")
    p.add_argument("--strength", type=float, default=1.0, help="logits of the weights that the start mask keeps")
    block = p.add_argument_group("stages block and joint")
    block.add_argument("--steps", type=int, default=100, help="of each block")
    block.add_argument("--rate", type=float, default=0.1)
    block.add_argument("--hot", type=float, default=1.0, help="first temperature")
    block.add_argument("--cold", type=float, default=0.05, help="last temperature")
    block.add_argument("--joint-rate", type=float, default=5e-4, help="of the weights of stages joint and joint-model")
    whole = p.add_argument_group("stages model and joint-model")
    whole.add_argument("--loss", choices=("kl", "ce"), default="kl", help="of all three stages of the whole model")
    whole.add_argument("--model-steps", type=int, default=60)
    whole.add_argument("--model-rate", type=float, default=0.05)
    whole.add_argument("--model-hot", type=float, default=0.3)
    whole.add_argument("--model-cold", type=float, default=0.03)
    repair = p.add_argument_group("stages repair-block and repair-model")
    repair.add_argument("--repair-steps", type=int, default=100, help="of each block")
    repair.add_argument("--repair-rate", type=float, default=1e-3)
    repair.add_argument("--repair-model-steps", type=int, default=60)
    repair.add_argument("--repair-model-rate", type=float, default=3e-4)
    p.add_argument("--eval", help="text to measure perplexity on, before and after every stage; not timed")
    p.add_argument("--eval-window", type=int, default=256)
    p.add_argument("--eval-every", type=int, default=1, help="only every so many windows of it")
    p.add_argument("--from", dest="resume", help="a file of --out to go on from")
    p.add_argument("--out", help="safetensors file for masks (U8), weights and logits")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--time-step", type=int, metavar="STEPS",
                   help="only time so many steps of the block objective (block 0, start mask magnitude)")
    o = p.parse_args()
    o.stages = o.stages.split(",")
    if unknown := set(o.stages) - set(STAGES):
        p.error(f"unknown stages: {', '.join(sorted(unknown))}")
    if not o.resume and o.stages[0] not in ("start", "block", "joint"):
        p.error("the first stage makes masks (start, block, joint) unless --from gives them")
    return o


def settings(o, **changes):
    return Namespace(**(vars(o) | changes))


def run_stage(stage, learner, o):
    """Runs one stage; what it has to say, one entry a block, or the losses of the first and the last steps."""
    model, entries = learner.model, []

    def log(block, losses, error):
        entries.append({"block": block, "first": [x[0] for x in losses], "last": [x[-1] for x in losses], "error": error})

    if stage in ("start", "block", "joint"):
        model.restore(model.all_names())
        learner.walk(start=True, learn=None if stage == "start" else o, joint=stage == "joint", log=log)
    elif stage == "repair-block":
        learner.walk(repair=settings(o, steps=o.repair_steps, rate=o.repair_rate), log=log)
    elif stage in ("model", "joint-model"):
        options = settings(o, steps=o.model_steps, rate=o.model_rate, hot=o.model_hot, cold=o.model_cold)
        losses = learner.learn_model(options, joint=stage == "joint-model")
        entries = {"first": losses[:5], "last": losses[-5:]}
    else:
        losses = learner.repair_model(settings(o, steps=o.repair_model_steps, rate=o.repair_model_rate))
        entries = {"first": losses[:5], "last": losses[-5:]}
    return entries


def time_step(learner, steps):
    """Median seconds of a step of the block objective: forward, backward, update."""
    o, model = learner.o, learner.model
    o.start = "magnitude"
    x = learner.everything(model.embed, learner.ids)
    target = learner.everything(lambda part: model.block(part, 0, learner.rotation), x)
    learner.masks |= learner.start_masks(0, x)
    learner.learn_block(0, x, target, (target - x).var().item(), settings(o, steps=steps + 2))
    return statistics.median(learner.step_seconds[2:])


def load_state(learner, file):
    for key, value in load_file(file).items():
        kind, name = key.split(".", 1)
        if kind == "weight":
            learner.model.weights[name] = value
        elif kind == "mask":
            learner.masks[name] = value.bool()
        else:
            learner.logits[name] = value


def save_state(learner, file):
    names = learner.model.all_names()
    out = {"weight." + name: learner.model.weights[name] for name in names}
    out |= {"mask." + name: learner.masks[name].to(torch.uint8) for name in names}
    out |= {"logits." + name: value for name, value in learner.logits.items()}
    save_file({key: value.contiguous() for key, value in out.items()}, file)


def main():
    o = arguments()
    torch.set_num_threads(o.threads)
    model = Network(o.model)
    ids = token_windows(o.model, o.calib, o.window, o.windows)
    learner = Learner(model, ids, o)
    head = {"model": Path(o.model).name, "torch": torch.__version__}
    if o.time_step:
        print(json.dumps(head | {"threads": o.threads, "tokens": o.batch * o.window,
                                 "step_seconds": time_step(learner, o.time_step)}, indent=1))
        return
    held_out = token_windows(o.model, o.eval, o.eval_window)[::o.eval_every] if o.eval else None

    def measure():
        with torch.inference_mode():
            return perplexity(model, held_out, o.batch) if o.eval else None

    result = [{"stage": "dense", "perplexity": measure()}]
    if o.resume:
        load_state(learner, o.resume)
        result.append({"stage": "resumed", "perplexity": measure()})
    for stage in o.stages:
        learner.step_seconds.clear()
        begin = time.perf_counter()
        entries = run_stage(stage, learner, o)
        seconds = time.perf_counter() - begin
        steps = learner.step_seconds
        result.append({"stage": stage, "seconds": seconds, "steps": len(steps),
                       "step_seconds": statistics.median(steps) if steps else None,
                       "perplexity": measure(), "entries": entries})
    if o.out:
        save_state(learner, o.out)
    options = {k: v for k, v in vars(o).items() if k not in ("calib", "eval", "out", "model", "resume", "time_step")}
    print(json.dumps(head | options | {"results": result}, indent=1))


if __name__ == "__main__":
    main()
