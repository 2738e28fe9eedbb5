"""The training loop: what every full training run of the book goes through.

    for each epoch:
        for each batch:   forward → loss → backward → clip → optimizer step
        score on the dev set; keep the best weights; save everything that the rest of the run depends on

Around it stands what makes a run trustworthy: the seed, the checkpoint every few minutes (a resumed run continues bit for
bit, from the middle of an epoch too), the stop when a number is no longer a number, and the record.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minbert.classify import trainable
from minbert.optim import linear_schedule, make_optimizer
from minbert.run import checkpoint, device as devices, parallel, records, tasks
from minbert.run.recipes import Config, public
from minbert.run.tasks import evaluate, micro_batches, predict  # noqa: F401  (part of this module's interface)

CURVE_EVERY = 25                                     # the training curve of a record: a mean loss every so many steps
SAVE_EVERY = 10.0                                    # minutes between two checkpoints within an epoch
SKIPS_IN_A_ROW = 30                                  # float16: so many steps left out one after the other are hopeless


class TrainingStopped(RuntimeError):
    """Training can't go on; the message says where it stopped, what is kept, and what to try."""


class Interrupted(KeyboardInterrupt):
    """Someone asked the run to stop, and it stopped between two steps; the message says what is kept and how to go on."""


class RunError(ValueError):
    """The output directory can't be used as asked."""


@dataclass
class Result:
    """What a training run leaves behind."""

    record: dict                                     # what is written under book/results
    directory: Path | None                           # where the run's files are; None if it kept none
    checkpoint: Path | None                          # the best weights
    task: object                                     # with the best weights loaded: .model, .tokenizer, .dev_labels …
    losses: list[float]                              # of every step


def nothing_yet() -> dict:
    """The sums over an epoch's steps, before the first of them; `loss` is weighted by the answers of a step."""
    return {"loss": 0.0, "right": 0, "answers": 0, "examples": 0, "seconds": 0.0, "skipped": 0}


@dataclass
class Progress:
    """Where a run stands.  All of it is in the checkpoint."""

    epoch: int = 0                                   # epochs done, their scores on the dev set included
    step: int = 0                                    # steps done, over all epochs
    losses: list = field(default_factory=list)       # of every step
    history: list = field(default_factory=list)      # metrics of every epoch
    best: int = 0                                    # the epoch with the best dev score, from 1; 0: none yet
    untrained: dict = field(default_factory=dict)    # the dev scores before the first step, of tasks that ask for them
    sums: dict = field(default_factory=nothing_yet)  # of the epoch that is under way
    cosines: list = field(default_factory=list)      # [step, the cosines between the tasks' gradients] of some steps
    skipped: int = 0                                 # steps just left out, one after the other (float16)

    def is_best(self, dev: dict, score: str) -> bool:
        """Are these the best dev scores yet?  The first of two equals stays.

        An r of 0 that stands for a constant prediction, which has none, is below every r, the negative ones too.
        """
        if not self.best:
            return True
        one, other = ((not scores.get("constant"), scores[score]) for scores in (dev, self.history[self.best - 1]["dev"]))
        return one > other


def train(config: Config, out=None, resume=False, again=False, progress=True, device="auto", timing="shared",
          runs="runs", save_every=SAVE_EVERY) -> Result:
    """Train as `config` says.

    Args:
        config: see `minbert.run.recipes`.
        out: a directory for the checkpoints, the tokenizer and the record.  None: nothing is kept on disk.
        resume: go on from the last checkpoint in `out`, if there is one; every loss is as if nothing had happened.
        again: throw away what an earlier run left in `out`.
        progress: show a bar and a line an epoch (the environment variable TQDM_DISABLE also hides the bar).
        device: "auto", "cpu" or "cuda".
        timing: "alone" if nothing else runs on the machine; otherwise the record's times are marked as shared.
        runs: where earlier runs are, for weights of the form "run:RECIPE".
        save_every: minutes between two checkpoints within an epoch; 0: only at the end of each epoch.

    Returns:
        a Result, with the best weights in `result.task.model`.

    Raises:
        RunError: `out` holds another run already.  TrainingStopped: loss or gradient is no number any more.
        Interrupted: Ctrl-C or SIGTERM came; everything up to the last step is in `out`.
        CheckpointError, DataError, WeightsError, DeviceError, ParallelError: see there.

    Started by torchrun, each process calls this and gets the same Result; see parallel.py.
    """
    arithmetic = devices.choose(parallel.own_device(device), config.precision)
    config = dataclasses.replace(config, precision=arithmetic.precision)
    first = parallel.is_first()
    out = None if out is None else prepare_directory(Path(out), resume, again) if first else Path(out)
    parallel.meet(config.batch_size, arithmetic.device)
    seed_everything(config.seed)
    task = parallel.first_then_others(lambda: tasks.make(config, runs))
    if out is not None and again and first:
        clear_directory(out)
    announce(config, task, arithmetic)

    model = task.model.to(arithmetic.device).train()
    optimizer = make_optimizer(model, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, rates=config.rates,
                               rate_decay=config.rate_decay)
    steps = [task.steps(epoch) for epoch in range(config.epochs)]
    done = Progress()
    best_weights = None
    identity = {"config": public(config), "data": task.data, "weights": task.start.weights}
    if out is not None:
        if resume and (out / "last.safetensors").exists():
            done, best_weights = restore_run(out, identity, model, optimizer, arithmetic)
            say(config, f"resumed after {standing(done, steps)}")
        if first:
            write_start(out, identity, task)
    if task.first_score and not done.step:
        done.untrained = parallel.from_first(lambda: scores_to_keep(config, task, arithmetic, progress))
        if progress:
            say(config, f"untrained  |  {dev_line(done.untrained)}")

    wrapped = parallel.wrap(task)
    saved = time.monotonic()
    with StopSignal(out is not None) as stop:

        def between_steps():
            """Save when it is time, stop when asked."""
            nonlocal saved
            asked, due = parallel.in_any(stop.asked, save_every and time.monotonic() - saved >= save_every * 60)
            if out is not None and (due or asked):
                check_weights(model, done)
                if first:
                    save_last(out, identity, model, optimizer, arithmetic, done)
                saved = time.monotonic()
            stop_if(asked)

        def stop_if(asked):
            if asked:
                parallel.wait()                      # for the one that saves
                raise Interrupted(f"interrupted: everything up to {standing(done, steps)} is kept in {out}; "
                                  "the same command with --resume goes on from there")

        while done.epoch < config.epochs:
            try:
                totals = train_epoch(config, task, done, steps, optimizer, arithmetic, progress, between_steps, wrapped)
            except FloatingPointError as error:      # the step was not taken: what was there before it can be kept
                kept = f"what was saved in {out} before stays" if out else "nothing is kept, there is no directory for it"
                if out is not None and broken_weights(model) is None:
                    if first:
                        save_last(out, identity, model, optimizer, arithmetic, done)
                    parallel.wait()
                    kept = f"everything up to {standing(done, steps)} is kept in {out}"
                raise TrainingStopped(f"stopped {error}; {kept}. Try a lower --lr, a longer --warmup or --precision fp32"
                                      ) from None
            check_weights(model, done)               # or it would guess one class throughout, and that would be a score
            dev = parallel.from_first(lambda: scores_to_keep(config, task, arithmetic, progress))
            bad = broken_score(dev)                  # no record could be written with it, however many epochs later
            if bad:
                raise TrainingStopped(f"stopped after epoch {done.epoch + 1}: the dev {bad}; what was saved before stays. "
                                      "Try a lower --lr, or --precision fp32")
            done.epoch += 1
            done.sums = nothing_yet()
            done.history.append({"epoch": done.epoch, "train": totals, "dev": dev})
            if done.is_best(dev, task.score):
                done.best = done.epoch
                # A copy: the model's own tensors change with the next step.
                best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            if out is not None:
                if first:
                    save_epoch(out, identity, task, model, optimizer, arithmetic, done, best_weights)
                saved = time.monotonic()
            if progress:
                say(config, epoch_line(done.history[-1], config.epochs))
            stop_if(*parallel.in_any(stop.asked))

    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    record = records.make(config, task, arithmetic, done, timing, thin(done.losses))
    best_file = None
    if out is not None:
        best_file = out / f"best-{done.best:03d}.safetensors"
        if first:
            task.finish(out)
            checkpoint.write_whole(out / "record.json", records.to_bytes(record))
            (out / "last.safetensors").unlink(missing_ok=True)   # finished: nothing to resume
        parallel.wait()
    return Result(record, out, best_file, task, done.losses)


def scores_to_keep(config, task, arithmetic, progress) -> dict:
    """The dev scores for the record, without the prediction of each example.  A large dev set takes minutes: words say so."""
    with progress_bar(None, f"{label(config)}scoring on dev ...", progress, total=1, bar_format="{desc}"):
        scores = task.evaluate(arithmetic)
    return {key: value for key, value in scores.items() if key != "predictions"}


def train_epoch(config, task, done, steps, optimizer, arithmetic, progress, between_steps, wrapped=None) -> dict:
    """One pass over the training examples, or the rest of one: `done` says where it stands.

    `steps`: the number of steps of every epoch.  `between_steps()` is called after each step.  `wrapped`: of several
    processes, `parallel.wrap(task)`.  Returns loss and accuracy (for tasks whose answers are right or wrong) as they were
    along the way, seconds, examples/s.  Raises FloatingPointError, with the weights, `done` and the random numbers as they
    were before the step, where loss or gradient is no number; the message says where, and names the examples and the first
    bad layer.
    """
    # The order depends on seed and epoch alone: it is dealt again, and what is done of it is left out.
    order = task.order(done.epoch)
    first = done.step - sum(steps[:done.epoch])
    sums = done.sums
    began = time.perf_counter()
    with progress_bar(order[first:], f"{label(config)}epoch {done.epoch + 1}/{config.epochs}", progress,
                      initial=first, total=len(order)) as bar:
        for indices in bar:
            if config.cosine_every and hasattr(task, "cosines") and done.step % config.cosine_every == 0:
                if not done.cosines or done.cosines[-1][0] < done.step:      # a resumed run may have it already
                    done.cosines.append([done.step, task.cosines(done.step)])
            batch = arithmetic.move(task.batch(indices, done.step))
            set_learning_rate(optimizer, schedule(config, done.step, sum(steps)))
            if wrapped is not None:
                parallel.seed_step(config.seed, done.step)
            random_numbers, scale = checkpoint.random_state(), arithmetic.scaler.get_scale()
            try:
                if done.skipped >= SKIPS_IN_A_ROW:
                    raise FloatingPointError(f"the gradient overflowed float16 in each of the last {done.skipped} steps")
                loss, hits, count = training_step(task, batch, optimizer, arithmetic, config.clip, config.micro_batch, wrapped)
            except FloatingPointError as error:
                # Of several processes the first looks through the whole batch, in parts of the size of its share.
                rows = config.micro_batch or (math.ceil(config.batch_size / parallel.world()[1]) if wrapped else 0)
                layer = parallel.from_first(lambda: first_bad_layer(task, batch, arithmetic, random_numbers, rows))
                checkpoint.set_random_state(random_numbers)
                raise FloatingPointError(f"{step_name(task, done, indices, steps)}: {error}, first seen in {layer}"
                                         ) from None
            done.step += 1
            done.losses.append(loss)
            done.skipped = done.skipped + 1 if arithmetic.scaler.get_scale() < scale else 0
            new = {"loss": loss * count, "right": hits, "answers": count, "examples": task.size(indices),
                   "seconds": time.perf_counter() - began, "skipped": int(done.skipped > 0)}
            for key in sums:
                sums[key] = sums[key] + new[key]
            bar.set_postfix({"loss": f"{loss:.3f}", f"{task.unit}/s": f"{sums['examples'] / sums['seconds']:.0f}"},
                            refresh=False)
            between_steps()
            began = time.perf_counter()              # the time of saving is not training time
    totals = {"loss": sums["loss"] / sums["answers"], "accuracy": int(sums["right"]) / sums["answers"],
              "steps": len(order), "examples": sums["examples"], "seconds": sums["seconds"],
              "examples_per_second": sums["examples"] / sums["seconds"]}
    if not task.counts_right:
        del totals["accuracy"]
    if config.precision == "fp16":
        totals["skipped"] = sums["skipped"]
    return totals


def training_step(task, batch, optimizer, arithmetic, clip, micro_batch=0, wrapped=None):
    """Forward, backward, clip, update: (loss, right answers, answers).

    `batch` is on the model's device.  `clip` is the largest gradient norm allowed, 0 for any.  `micro_batch`: the most
    rows that go through the model at once, 0 for all; the gradients of the parts are added up ("gradient accumulation").
    `wrapped`: of several processes, `parallel.wrap(task)`; the step is then taken by all together.
    Raises FloatingPointError, before the weights are touched, when the loss or (with clipping) a gradient is NaN or infinite.
    """
    optimizer.zero_grad(set_to_none=True)
    if wrapped is None:
        value, right, count = forward_backward(task, batch, arithmetic, micro_batch)
    else:
        value, right, count = parallel.forward_backward_together(wrapped, batch, arithmetic, micro_batch)
    if clip:
        arithmetic.scaler.unscale_(optimizer)
        norm = clip_gradients([parameter for _, parameter in trainable(task.model)], clip)
        # In float16 a scaled gradient may overflow: then the scaler leaves this step out and lowers its factor.
        if not math.isfinite(norm) and arithmetic.precision != "fp16":
            raise FloatingPointError(f"the norm of the gradient is {norm}")
    arithmetic.scaler.step(optimizer)
    arithmetic.scaler.update()
    return value, right, count


def forward_backward(task, batch, arithmetic, micro_batch=0):
    """Forward and backward: the gradient of the batch's mean loss is added to the parameters'.  As `training_step`.

    The mean over the batch is not the mean of the parts' means: the last part may be smaller.  So each part counts by
    its share of the answers.  With dropout the parts draw other random numbers than the whole would.
    """
    parts = task.parts(batch, micro_batch)
    value = right = count = 0
    for part, share in zip(parts, task.shares(parts)):
        if not share:                                # nothing is asked in this part: a mean over nothing is NaN
            continue
        with arithmetic.autocast():
            loss, hits, n = task.loss(part)
        loss = loss * share
        number = loss.item()
        if not math.isfinite(number):
            raise FloatingPointError(f"the loss is {number}")
        arithmetic.scaler.scale(loss).backward()     # the scaler does nothing unless the precision is fp16
        value, right, count = value + number, right + hits, count + n
    return value, right, count


def first_bad_layer(task, batch, arithmetic, random_numbers, micro_batch=0) -> str:
    """Where a NaN or an infinity comes from: the step is done once more, with hooks on every layer.

    `random_numbers`: `checkpoint.random_state()` from before the step, so that dropout hides the same entries again.
    Returns a phrase such as "the output of encoder.layers.1.up".  The layers are looked at in the order in which they
    compute: forward, then backward, where the gradient comes from the loss and runs towards the embeddings.
    """
    found, hooks = [], []

    def look(tensor, phrase):
        if not tensor.isfinite().all():
            found.append(phrase)

    def watch(name):
        def hook(module, inputs, output):
            for tensor in output if isinstance(output, (tuple, list)) else [output]:
                if torch.is_tensor(tensor) and tensor.is_floating_point():
                    look(tensor, f"the output of {name}")
                    if tensor.requires_grad:
                        tensor.register_hook(lambda gradient: look(gradient, f"the gradient of the output of {name}"))
        return hook

    for name, parameter in task.model.named_parameters():
        look(parameter, f"the weights {name}, which were no numbers before this step")
        if parameter.requires_grad:
            hooks.append(parameter.register_hook(lambda gradient, name=name: look(gradient, f"the gradient of {name}")))
    hooks += [module.register_forward_hook(watch(name or "the model")) for name, module in task.model.named_modules()]
    checkpoint.set_random_state(random_numbers)
    try:
        forward_backward(task, batch, arithmetic, micro_batch)
    except FloatingPointError:
        found.append("the loss itself (the outputs of all layers are numbers)")
    finally:
        for hook in hooks:
            hook.remove()
        task.model.zero_grad(set_to_none=True)
    return found[0] if found else "no layer: done once more, the step gave numbers (is the machine faulty?)"


def clip_gradients(parameters, limit: float) -> float:
    """Scale all gradients together so that their norm is `limit`, if it is above; otherwise leave them alone.

    Returns the norm before.  Source: Pascanu et al. 2013, algorithm 1.  Unlike `torch.nn.utils.clip_grad_norm_`, which
    multiplies by 1 when there is nothing to do, no gradient is touched below the limit.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    if norm > limit:
        torch._foreach_mul_(gradients, limit / (norm + 1e-6))
    return norm


def schedule(config: Config, step: int, total: int) -> float:
    """The share of the learning rate at a step: up over the warm-up, then down to 0 ("linear") or level ("constant")."""
    warmup = round(config.warmup * total)
    if config.schedule == "constant":
        return min(1.0, step / warmup) if warmup else 1.0
    return linear_schedule(step, warmup, total)


def set_learning_rate(optimizer, factor: float) -> None:
    """Every group has a rate of its own (`initial_lr`); the schedule scales them all by the same factor."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def seed_everything(seed: int) -> None:
    """Start every generator of random numbers from `seed`.

    The order of the batches does not come from these: it depends on seed and epoch alone (batching.py).
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)                          # the GPU's too


# ---- the run's directory -----------------------------------------------------------------------------------------

# What tells that a run is here, and what else one may have left.  Other files in the directory are the reader's own.
STATE = ("config.json", "record.json", "last.safetensors", "best-*.safetensors")
LEFT = (*STATE, "tokenizer.json", "adapter-*.safetensors", "predictions.json", "null_odds.json", "spans.json")


def prepare_directory(out: Path, resume: bool, again: bool) -> Path:
    """Make the directory, or decide what an earlier run's files in it mean.  Raises RunError."""
    try:
        if out.exists() and not out.is_dir():
            raise RunError(f"{out}: this is a file; a run needs a directory: choose another --out (or --runs)")
        if (out / "model.safetensors").exists():         # its config.json and tokenizer.json must stay what they are
            raise RunError(f"{out}: a model's weights are here, and no run: choose another --out (or --runs)")
        present = [path for pattern in STATE for path in out.glob(pattern)]
        if present and not resume and not again:
            raise RunError(f"{out}: a run is here already. Go on with it by --resume, or start over by --again")
        if (out / "record.json").exists() and not again:
            raise RunError(f"{out}: this run is finished. Start over by --again")
        out.mkdir(parents=True, exist_ok=True)
        for part in out.glob(".*.part"):             # half a file, of a run that was killed while it wrote
            part.unlink()
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise RunError(f"{out}: can't be written ({error.strerror}): choose another --out (or --runs)") from None
    return out


def clear_directory(out: Path) -> None:
    """Throw away what an earlier run left.  Called when data and weights are known to be there for a new one."""
    for pattern in LEFT:
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / "encoder", ignore_errors=True)


def write_start(out: Path, identity: dict, task) -> None:
    """What the directory needs from the beginning: the configuration and the tokenizer."""
    checkpoint.write_whole(out / "config.json", json.dumps(identity["config"], indent=2).encode() + b"\n")
    checkpoint.write_whole(out / "tokenizer.json", task.tokenizer.to_str().encode())


def save_epoch(out, identity, task, model, optimizer, arithmetic, done, best_weights) -> None:
    """Save at the end of an epoch.  The order matters: `last` names the best epoch's file, which must be there before it."""
    best = out / f"best-{done.best:03d}.safetensors"
    if done.best == done.epoch:
        metrics = {key: done.history[-1][key] for key in ("train", "dev")}
        checkpoint.save(best, best_weights, {**identity, **task.about(), "epoch": done.best, "metrics": metrics})
    save_last(out, identity, model, optimizer, arithmetic, done)
    for old in out.glob("best-*.safetensors"):
        if old != best:
            old.unlink()


def save_last(out, identity, model, optimizer, arithmetic, done) -> None:
    """Save where the run stands, between any two steps."""
    done.sums["right"] = int(done.sums["right"])     # a tensor on the device until now: so no step had to wait for it
    meta = {**identity, "progress": dataclasses.asdict(done)}
    checkpoint.save_training(out / "last.safetensors", model, optimizer, meta, arithmetic.scaler)


def restore_run(out, identity, model, optimizer, arithmetic):
    """Load the last checkpoint: (Progress, the best weights so far).  Raises CheckpointError if it is another run's."""
    path = out / "last.safetensors"
    _, saved = checkpoint.load(path)
    checkpoint.check_same(saved["config"], identity["config"], path)
    for what in ("data", "weights"):
        if saved[what] != identity[what]:
            raise checkpoint.CheckpointError(f"{path}: made with other {what} ({_changed(saved[what], identity[what])}). "
                                             "Use those, or another --out, or start over with --again")
    meta = checkpoint.load_training(path, model, optimizer, arithmetic.scaler)
    try:
        done = Progress(**meta["progress"])
    except TypeError as error:
        raise checkpoint.CheckpointError(f"{path}: written by another version of this book ({error})"
                                         f"{checkpoint.AGAIN}") from None
    best_weights = checkpoint.load(out / f"best-{done.best:03d}.safetensors")[0] if done.best else None
    return done, best_weights


def _changed(old: dict, new: dict) -> str:
    return "; ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in new if old.get(key) != new.get(key))


class StopSignal:
    """Within this context, Ctrl-C and SIGTERM don't interrupt: they set `asked`, and the loop stops between two steps.

    A second one stops at once, as KeyboardInterrupt; what was saved before stays.  Signals that are ignored stay so.
    """

    def __init__(self, active=True):
        self.asked = False
        # Python allows only the main thread to handle signals.
        self.active = active and threading.current_thread() is threading.main_thread()
        self.before = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM) if self.active else ():
            if signal.getsignal(number) != signal.SIG_IGN:
                self.before[number] = signal.signal(number, self.receive)
        return self

    def receive(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if parallel.is_first():
            with contextlib.suppress(OSError):       # not by print, which may be in the middle of a line
                os.write(2, b"\nstopping after this step (once more: at once) ...\n")

    def __exit__(self, kind, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if kind is None and self.asked:              # it came after the last check
            raise KeyboardInterrupt


# ---- what the reader sees ----------------------------------------------------------------------------------------

def label(config: Config) -> str:
    """A smoke run says in every line that its numbers mean nothing."""
    return "plumbing only · " if config.size == "smoke" else ""


def say(config: Config, text: str) -> None:
    """One or more lines to the reader, from the first process if there are several."""
    for line in text.splitlines() if parallel.is_first() else ():
        print(label(config) + line, flush=True)


def announce(config: Config, task, arithmetic) -> None:
    """Which weights, data and device this run really uses, and what it trains."""
    weights, data = task.start.weights, task.data
    sha = f" (sha256 {weights['sha256'][:12]})" if weights["sha256"] else f" (vocabulary: {weights['vocabulary']})"
    trained, stored = records.parameters(task.model)
    say(config, f"recipe   {config.recipe}, size {config.size}, seed {config.seed}\n"
                f"weights  {weights['name']}{sha}\n"
                f"{sizes_of(config, task)}\n"
                f"device   {arithmetic.device.type}, {arithmetic.precision}\n"
                f"trains   {trained:,} of {stored:,} parameters")
    slow = ["size full is meant for a GPU; on a CPU it takes days (Ctrl-C stops, --size small is for a laptop)"]
    for note in [*task.notes, *(slow if config.size == "full" and arithmetic.device.type == "cpu" else [])]:
        say(config, f"note     {note}")


def sizes_of(config: Config, task) -> str:
    """The data in a line, or in a line a task."""
    lines = []
    for name, own in task.data.get("tasks", {config.task: task.data}).items():
        sizes = " / ".join(str(own[split].get("examples", own[split].get("texts"))) for split in ("train", "dev"))
        lines.append(f"data     {own['name']}: {name}, {sizes} {task.unit} (train / dev)")
    return "\n".join(lines)


def epoch_line(entry: dict, epochs: int) -> str:
    """One line for one epoch."""
    train_part, dev = entry["train"], entry["dev"]
    right = f", accuracy {train_part['accuracy']:.3f}" if "accuracy" in train_part else ""
    return f"epoch {entry['epoch']}/{epochs}  train loss {train_part['loss']:.3f}{right}  |  {dev_line(dev)}"


SHOWN = {"loss": "loss", "accuracy": "accuracy", "macro_f1": "macro-F1", "f1": "F1", "pearson": "r", "em": "EM",
         "average": "average"}                       # the scores in a line, in this order


def dev_line(dev: dict) -> str:
    """The dev scores in a line."""
    if "tasks" in dev:
        parts = [f"{name} {named(scores, ('accuracy', 'pearson', 'em', 'f1'))}" for name, scores in dev["tasks"].items()]
        return "dev " + " · ".join([*parts, named(dev, ("average",))])
    return "dev " + named(dev, SHOWN)


def named(scores: dict, keys) -> str:
    return ", ".join(f"{SHOWN[key]} {scores[key]:.3f}" for key in keys if key in scores)


def progress_bar(items, description: str, progress: bool, **choices):
    """A bar for a terminal or a notebook; into a file, one line every half minute.  TQDM_DISABLE is respected."""
    if not progress or not parallel.is_first():
        choices["disable"] = True
    if not sys.stderr.isatty():
        choices["mininterval"] = 30.0
    return tqdm(items, desc=description, leave=False, dynamic_ncols=True, **choices)


def broken_weights(model) -> str | None:
    """The first parameter with a NaN or an infinity in it.  Without clipping nobody looks at the gradient in each step."""
    return next((name for name, parameter in model.named_parameters() if not parameter.isfinite().all()), None)


def broken_score(scores: dict) -> str | None:
    """The first score that is no number, such as "loss is nan"; of several tasks, with its task's name before it."""
    for key, value in scores.items():
        if isinstance(value, dict):
            found = broken_score(value)
            if found:
                return found if key == "tasks" else f"{key} {found}"
        elif isinstance(value, float) and not math.isfinite(value):
            return f"{key} is {value}"
    return None


def check_weights(model, done: Progress) -> None:
    """Raise TrainingStopped rather than score or save broken weights."""
    name = broken_weights(model)
    if name is not None:
        raise TrainingStopped(f"stopped after step {done.step}: the weights {name} are no numbers any more; what was saved "
                              "before stays. Try a lower --lr, or --clip 1")


def standing(done: Progress, steps: list[int]) -> str:
    """What is done, such as "epoch 2 of 3" or "epoch 2 of 3, step 5 of 8 of the next".  `steps`: of every epoch."""
    step = done.step - sum(steps[:done.epoch])
    return f"epoch {done.epoch} of {len(steps)}" + (f", step {step} of {steps[done.epoch]} of the next" if step else "")


def step_name(task, done, indices, steps: list[int]) -> str:
    """The step under way: epoch, step, and the examples in its batch."""
    names = task.examples(indices)
    examples = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    step = done.step - sum(steps[:done.epoch]) + 1
    return f"in epoch {done.epoch + 1}, step {step} of {steps[done.epoch]} (examples {examples})"


def thin(losses: list[float]) -> dict:
    """The training curve, short enough for a record: the mean loss of each CURVE_EVERY steps."""
    parts = [losses[i:i + CURVE_EVERY] for i in range(0, len(losses), CURVE_EVERY)]
    return {"every": CURVE_EVERY, "loss": [round(sum(part) / len(part), 5) for part in parts]}
