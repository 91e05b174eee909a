"""Times one training step of the block objective, maskwright against learn.py, in turn on the same machine.

    python step.py MASKWRIGHT MODEL_DIR TRAIN_TEXT [--runs 3] [--steps 20] [--batch 16] [--window 256] [--threads 2]

A step is forward, backward and update of one minibatch on one block. maskwright's is the median over the steps of all blocks, but the first of each,
as its metrics have them; learn.py's the median over as many steps of one block. Needs the packages of requirements.txt, in the interpreter
that runs this.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--steps", type=int, default=20)
    p.add_argument("--batch", type=int, default=16)
    p.add_argument("--window", default="256")
    p.add_argument("--threads", default="2")
    return p.parse_args()


def ours(o, folder):
    command = [o.binary, "prune", o.model, "--calib", o.text, "--segments", "sequential", "--windows", str(2 * o.batch),
               "--window", o.window, "--method", "relaxed", "--start", "magnitude", "--steps", str(o.steps + 1),
               "--batch", str(o.batch), "--keep-every", "0", "--no-model", "--out", str(folder), "--quiet"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(line["seconds"] for line in lines if line.get("step", 0) > 0)


def theirs(o):
    command = [sys.executable, str(Path(__file__).with_name("learn.py")), o.model, "--calib", o.text, "--windows",
               str(2 * o.batch), "--window", o.window, "--batch", str(o.batch), "--threads", o.threads,
               "--time-step", str(o.steps)]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)["step_seconds"]


def main():
    o = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        # The first run compiles the driver's code for the kernels, which it keeps.
        ours(o, scratch / "warm-up")
        pairs = []
        for i in range(o.runs):
            a, b = ours(o, scratch / f"run{i}"), theirs(o)
            pairs.append((a, b))
            print(f"maskwright {a:.3f} s a step, PyTorch {b:.3f} s, ratio {a / b:.2f}", flush=True)
        print(f"median ratio {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
