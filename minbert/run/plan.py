"""`minbert plan`: which task's batch comes next, printed before any training.

A plan is a function of a few numbers, see `minbert.multitask.make_plan`; this is its command line.
"""

from __future__ import annotations

import json
from argparse import ArgumentTypeError

from minbert.run.recipes import source_name


SQUAD_NOTE = ("note      squad is counted in questions. A training counts windows, of which a long passage makes several: "
              "give their number by --counts")


def count_list(text: str) -> list[int]:
    """ "8544,6000,6040" as numbers of examples."""
    try:
        counts = [int(part.replace("_", "")) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ArgumentTypeError(f"{text!r} is not a list of numbers of examples, such as 8544,6000,6040")
    return counts


def examples_of(task: str, data: str, quora_limit: int = 0) -> int:
    """How many training examples a task has in a data source; of SQuAD, the questions (see `SQUAD_NOTE`).

    Raises ValueError for a task that is none, with the nearest; DataError when its file is missing or malformed.
    """
    from minbert.run.recipes import TASKS, Config, nearest
    from minbert.run.tasks import read_split

    known = [name for name in TASKS if name != "mlm"]            # pre-training stands alone
    if task not in known:
        raise ValueError(nearest(task, known, "task"))
    dataset = read_split(Config(data=data, quora_limit=quora_limit), task, "train")
    return len(dataset.questions if task == "squad" else dataset)


def plan_summary(names, counts, method, batch_size, epoch, epochs, seed=0, steps=0, stop="shortest", step="per_batch") -> dict:
    """A plan and what it comes to, as plain data; the arguments are those of `make_plan`.

    "plan" holds every step: a list of task numbers. "start" says how many batches of each task earlier epochs have taken:
    with it and the number of a step, a run goes on where it was stopped. As in a run, no epoch is longer than `steps`.
    """
    from minbert import multitask

    choice = dict(method=method, counts=counts, batch_size=batch_size, epochs=epochs, seed=seed, steps=steps, stop=stop, step=step)
    plan = multitask.make_plan(epoch=epoch, **choice)[: steps or None]
    start = [0] * len(counts)
    for earlier in range(1, epoch):
        start = multitask.positions(multitask.make_plan(epoch=earlier, **choice)[: steps or None], len(counts), start)
    drawn = multitask.positions(plan, len(counts))
    alpha = multitask.exponent_of(method, epoch, epochs)
    p = [None] * len(counts) if alpha is None else multitask.task_probabilities(counts, alpha).tolist()
    tasks = []
    for task, passes in enumerate(multitask.batches_of(counts, batch_size)):
        tasks.append({"name": names[task], "examples": counts[task], "batches": passes, "probability": p[task],
                      "expected": None if p[task] is None else p[task] * len(plan), "drawn": drawn[task],
                      "passes": drawn[task] / passes, "start": start[task],
                      "passes_so_far": (start[task] + drawn[task]) / passes,
                      "seen_so_far": min(1.0, (start[task] + drawn[task]) / passes)})  # a pass repeats nothing
    return {"sampling": method, "alpha": alpha, "epoch": epoch, "epochs": epochs, "batch_size": batch_size, "seed": seed,
            "stop": stop, "step_form": step, "steps": len(plan), "tasks": tasks, "plan": [list(step) for step in plan]}


def step_lines(summary: dict, steps: int) -> list[str]:
    """The first steps: which batch of which pass over which task."""
    lines = []
    taken = [task["start"] for task in summary["tasks"]]
    for number, step in enumerate(summary["plan"][:steps], 1):
        parts = []
        for task in step:
            entry = summary["tasks"][task]
            number_of_pass, place = divmod(taken[task], entry["batches"])
            parts.append(f"{entry['name']} (pass {number_of_pass + 1}, batch {place + 1:,} of {entry['batches']:,})")
            taken[task] += 1
        lines.append(f"{number:>6}  " + " + ".join(parts))
    return lines


def summary_text(summary: dict) -> str:
    """The summary as a table."""
    alpha = summary["alpha"]
    how = f"α = {alpha:.3f}: each step's task is drawn with p = N^α / Σ N^α" if alpha is not None else "nothing is drawn"
    if summary["sampling"] == "round-robin":
        how = f"until the {summary['stop']} task is spent, " + \
            ("one batch of each task a step" if summary["step_form"] == "summed" else "one batch a step")
    lines = [f"sampling  {summary['sampling']}, epoch {summary['epoch']} of {summary['epochs']}; {how}",
             f"steps     {summary['steps']:,} of batch size {summary['batch_size']}, seed {summary['seed']}", ""]
    rows = [["task", "examples", "batches", "p", "expected", "taken", "passes", "passes so far", "seen so far"]]
    for task in summary["tasks"]:
        drawn = task["probability"] is not None
        rows.append([task["name"], f"{task['examples']:,}", f"{task['batches']:,}",
                     f"{task['probability']:.4f}" if drawn else "-", f"{task['expected']:,.1f}" if drawn else "-",
                     f"{task['drawn']:,}", f"{task['passes']:.2f}", f"{task['passes_so_far']:.2f}",
                     f"{100 * task['seen_so_far']:.1f} %"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
              for row in rows]
    lines += ["", "batches: of one pass over the task. taken, passes: in this epoch. so far: since epoch 1; seen: of its examples."]
    return "\n".join(lines)


def command_plan(options) -> int:
    """Print the plan of an epoch."""
    from minbert.multitask import METHODS
    from minbert.run.recipes import nearest

    names = [name for word in options.task for name in word.split("+") if name]
    if len(set(names)) < len(names):
        raise ValueError(f"a task is named twice: {' '.join(names)}")
    if options.sampling not in METHODS:
        raise ValueError(nearest(options.sampling, METHODS, "sampling"))
    for what in ("batch_size", "epochs"):
        if getattr(options, what) < 1:
            raise ValueError(f"--{what.replace('_', '-')} must be at least 1, not {getattr(options, what)}")
    if options.counts is None:
        if not names:
            raise ValueError("name the tasks, such as minbert plan sst quora sts, or give --counts 8544,6000,6040")
        counts = [examples_of(name, options.data, options.quora_limit) for name in names]
    else:
        counts = options.counts
        names = names or [f"task {number}" for number in range(1, len(counts) + 1)]
        if len(names) != len(counts):
            raise ValueError(f"{len(names)} tasks ({' '.join(names)}) and {len(counts)} counts: give one count a task")
    summary = plan_summary(names, counts, options.sampling, options.batch_size, options.epoch, options.epochs, options.seed,
                           options.steps_per_epoch, options.stop, options.step_form)
    if options.json:
        summary["data"] = source_name(options.data) if options.counts is None else None
        summary["plan"] = summary["plan"][: options.steps]
        print(json.dumps(summary, indent=1, ensure_ascii=False))
        return 0
    if options.counts is None:
        print(f"data      {source_name(options.data)}, train")
        if "squad" in names:
            print(SQUAD_NOTE)
    print(summary_text(summary))
    if options.steps:
        print("\n" + "\n".join(step_lines(summary, options.steps)))
        if summary["steps"] > options.steps:
            print(f"     …  {summary['steps'] - options.steps:,} more")
    return 0


def add_plan(command) -> None:
    """The command's options. `command` is cli.py's: it makes a subcommand."""
    from minbert.run.cli import whole

    sub = command("plan", command_plan, "print which task's batch comes next when several tasks are trained", [
        "minbert plan sst quora sts", "minbert plan sst quora sts --data path/to/data --epochs 10 --epoch 3 --steps 20",
        "minbert plan --counts 8544,6000,6040 --sampling square-root",
        "minbert plan sst+quora --counts 8544,141498 --sampling round-robin --stop longest --json"])
    sub.add_argument("task", nargs="*", help="sst, cfimdb, quora, sts, squad, sign or score; or joined: sst+quora+sts")
    sub.add_argument("--counts", type=count_list, metavar="N,N,…",
                     help="training examples of each task (default: counted in the data)")
    sub.add_argument("--data", default="builtin", help="where they are counted: builtin or a directory (default: builtin)")
    sub.add_argument("--quora-limit", type=whole, default=0, metavar="N", help="most question pairs to use; 0: all")
    sub.add_argument("--sampling", default="annealed", metavar="NAME",
                     help="sequential, phases, round-robin, proportional, square-root or annealed (default: annealed)")
    sub.add_argument("--stop", choices=("shortest", "longest"), default="shortest",
                     help="round-robin: until which task is spent (default: shortest)")
    sub.add_argument("--step-form", choices=("per_batch", "summed"), default="per_batch",
                     help="round-robin: a step is one batch, or one batch of each task (default: per_batch)")
    sub.add_argument("--batch-size", type=whole, default=8, metavar="N", help="examples a batch (default: 8)")
    sub.add_argument("--epochs", type=whole, default=10, metavar="N", help="epochs of the run (default: 10)")
    sub.add_argument("--epoch", type=whole, default=1, metavar="N", help="which of them, from 1 (default: 1)")
    sub.add_argument("--seed", type=whole, default=0, metavar="N", help="of the drawing (default: 0)")
    sub.add_argument("--steps-per-epoch", type=whole, default=0, metavar="N",
                     help="stop an epoch after so many steps; 0: its own length, if drawn half of all batches (default: 0)")
    sub.add_argument("--steps", type=whole, default=0, metavar="N", help="also list the first N steps (default: 0)")
    sub.add_argument("--json", action="store_true", help="as JSON, for scripts")
