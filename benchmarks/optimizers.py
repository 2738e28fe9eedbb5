"""How long does a step of the optimizer take? Our AdamW beside PyTorch's three, on MiniLM's parameters.

    python -m benchmarks.optimizers [--out FILE.json]

Contenders: ours, and `torch.optim.AdamW` as a loop over tensors (its default on a CPU), "for each" (a list of tensors a
call) and fused (one kernel). All start from the same values and see the same gradients; they must agree before any time
is taken. They step in turn, in another order each round, so that what else the machine does falls on all alike. Each
round gives one ratio to the loop. A ratio below 1 is faster than PyTorch's default.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch

from minbert.bert import BertConfig, BertModel
from minbert.classify import SentenceClassifier
from minbert.optim import AdamW, parameter_groups

MINILM = BertConfig(hidden_size=384, layers=6, heads=12, intermediate_size=1536)
CONTENDERS = {
    "ours": lambda groups: AdamW(groups),
    "torch, loop": lambda groups: torch.optim.AdamW(groups, foreach=False, fused=False),
    "torch, for each": lambda groups: torch.optim.AdamW(groups, foreach=True),
    "torch, fused": lambda groups: torch.optim.AdamW(groups, fused=True),
}
DEFAULT = "torch, loop"


def line_up(shape):
    """{contender: (its parameters, its optimizer)}: the same values and the same gradients for each."""
    found, gradients = {}, []
    for name, make in CONTENDERS.items():
        torch.manual_seed(0)
        model = SentenceClassifier(BertModel(shape), classes=5)
        parameters = list(model.parameters())
        gradients = gradients or [1e-3 * torch.randn_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient  # no optimizer writes into it
        found[name] = parameters, make(parameter_groups(model, lr=3e-5, weight_decay=0.01))
    return found


def disagreement(found):
    """The largest difference of any parameter to PyTorch's default."""
    reference = found[DEFAULT][0]
    return max((a - b).abs().max().item() for parameters, _ in found.values() for a, b in zip(parameters, reference))


def measure(shape=MINILM, rounds=50, warm=3):
    """Take the times.

    Args:
        shape: a `BertConfig`.
        rounds: how often each contender steps.
        warm: rounds before the first time is taken.

    Returns:
        a dict: for each contender the quartiles of its milliseconds (on the clock, and of the processor alone, which
        other programs disturb less), those of its ratio to PyTorch's default (on the clock), and the circumstances.

    Raises:
        RuntimeError: the contenders don't agree.
    """
    found = line_up(shape)
    times, work = {name: [] for name in found}, {name: [] for name in found}
    order = list(found)
    load_before = load()
    for number in range(warm + rounds):
        order = order[1:] + order[:1]
        for name in order:
            began, began_work = time.perf_counter(), time.process_time()
            found[name][1].step()
            if number >= warm:
                times[name].append(time.perf_counter() - began)
                work[name].append(time.process_time() - began_work)
        if number == warm - 1 and disagreement(found) > 1e-6:
            raise RuntimeError(f"the optimizers differ by {disagreement(found):.1e}: times would compare different things")
    rows = {}
    for name, seconds in times.items():
        rows[name] = {
            "ms": statistics.quantiles([1e3 * s for s in seconds], n=4),
            "cpu_ms": statistics.quantiles([1e3 * s for s in work[name]], n=4),
            "ratio": statistics.quantiles([s / d for s, d in zip(seconds, times[DEFAULT])], n=4),
        }
    return {
        "parameters": sum(p.numel() for p in found["ours"][0]), "tensors": len(found["ours"][0]), "rounds": rounds,
        "default": DEFAULT, "contenders": rows, "largest_difference": disagreement(found),
        "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.machine(),
        "cores": os.cpu_count(), "load_before": load_before, "load_after": load(),
    }  # fmt: skip


def load():
    """The mean number of running processes in the last minute; None where the system doesn't say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def as_text(result):
    """The result as a table: median [first quartile, third quartile]."""
    lines = [f"{result['tensors']} tensors, {result['parameters']:,} parameters, {result['rounds']} rounds, "
             f"{result['threads']} thread(s), load {result['load_before']} before and {result['load_after']} after",
             f"{'':<16} {'ms a step':>24} {'ms of processor':>24} {'to ' + result['default']:>24}"]
    for name, row in result["contenders"].items():
        cells = ["{1:.1f} [{0:.1f}, {2:.1f}]".format(*row["ms"]), "{1:.1f} [{0:.1f}, {2:.1f}]".format(*row["cpu_ms"]),
                 "{1:.2f} [{0:.2f}, {2:.2f}]".format(*row["ratio"])]
        lines.append(f"{name:<16} " + " ".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = measure(rounds=options.rounds)
    print(as_text(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
