"""Times `maskwright prune --method descent` against oneshot.py, in turn on the same machine, and prints both and their ratio.

    python compare.py MASKWRIGHT MODEL_DIR TRAIN_TEXT [--runs 3] [--windows 128] [--window 256] [--method descent]

Both prune the same windows from the start of the text, block by block, and write masks; neither evaluates. maskwright's time is that
of the whole process; oneshot.py's is its own total, without the start of Python and torch, which favours it. Needs the packages of
requirements.txt, in the interpreter that runs this.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("model")
    p.add_argument("text")
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--windows", default="128")
    p.add_argument("--window", default="256")
    p.add_argument("--method", default="descent")
    return p.parse_args()


def ours(o, folder):
    command = [o.binary, "prune", o.model, "--calib", o.text, "--segments", "sequential", "--windows", o.windows,
               "--window", o.window, "--method", o.method, "--no-model", "--out", str(folder), "--quiet"]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def theirs(o, folder):
    command = [sys.executable, str(Path(__file__).with_name("oneshot.py")), o.model, "--calib", o.text, "--windows",
               o.windows, "--window", o.window, "--method", o.method, "--out", str(folder / "masks.safetensors")]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(out)["seconds"]


def main():
    o = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        # The first run compiles the driver's code for the kernels, which it keeps.
        ours(o, scratch / "warm-up")
        pairs = []
        for i in range(o.runs):
            a, b = ours(o, scratch / f"run{i}"), theirs(o, scratch)
            pairs.append((a, b["total"]))
            parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in b.items() if name != "total")
            print(f"maskwright {a:.2f} s, PyTorch {b['total']:.2f} s ({parts}), ratio {a / b['total']:.2f}")
        ratios = [a / b for a, b in pairs]
        print(f"median: maskwright {statistics.median(a for a, _ in pairs):.2f} s, "
              f"PyTorch {statistics.median(b for _, b in pairs):.2f} s, ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
