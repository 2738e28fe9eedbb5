"""The training loop: what every full training run of the book goes through.

    for each epoch:
        for each batch:   forward → loss → backward → clip → optimizer step
        score on the dev set; keep the best weights; save everything that the next epoch depends on

Around it stands what makes a run trustworthy: the seed, the checkpoint after each epoch (a resumed run continues bit for
bit), the stop when a number is no longer a number, and the record.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from minbert.classify import trainable
from minbert.optim import linear_schedule, make_optimizer
from minbert.run import checkpoint, device as devices, records, tasks
from minbert.run.batching import batches
from minbert.run.recipes import Config, public
from minbert.run.tasks import evaluate, predict  # noqa: F401  (part of this module's interface)

CURVE_EVERY = 25                                     # the training curve of a record: a mean loss every so many steps


class TrainingStopped(RuntimeError):
    """Training can't go on; the message says where it stopped, what is kept, and what to try."""


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


@dataclass
class Progress:
    """Where a run stands.  All of it is in the checkpoint."""

    epoch: int = 0                                   # epochs done
    step: int = 0                                    # steps done
    losses: list = field(default_factory=list)       # of every step
    history: list = field(default_factory=list)      # metrics of every epoch
    best: int = 0                                    # the epoch with the best dev score, from 1; 0: none yet

    def best_score(self, score: str) -> float:
        return self.history[self.best - 1]["dev"][score] if self.best else -math.inf


def train(config: Config, out=None, resume=False, again=False, progress=True, device="auto", timing="shared",
          runs="runs") -> Result:
    """Train as `config` says.

    Args:
        config: see `minbert.run.recipes`.
        out: a directory for the checkpoints, the tokenizer and the record.  None: nothing is kept on disk.
        resume: go on from the last finished epoch in `out`, if there is one.
        again: throw away what an earlier run left in `out`.
        progress: show a bar and a line an epoch (the environment variable TQDM_DISABLE also hides the bar).
        device: "auto", "cpu" or "cuda".
        timing: "alone" if nothing else runs on the machine; otherwise the record's times are marked as shared.
        runs: where earlier runs are, for weights of the form "run:RECIPE".

    Returns:
        a Result, with the best weights in `result.task.model`.

    Raises:
        RunError: `out` holds another run already.  TrainingStopped: loss or gradient is no number any more.
        CheckpointError, DataError, WeightsError, DeviceError: see there.
    """
    arithmetic = devices.choose(device, config.precision)
    config = dataclasses.replace(config, precision=arithmetic.precision)
    out = None if out is None else prepare_directory(Path(out), resume, again)
    seed_everything(config.seed)
    task = tasks.make(config, runs)
    announce(config, task, arithmetic)

    model = task.model.to(arithmetic.device).train()
    optimizer = make_optimizer(model, config.optimizer, lr=config.lr, weight_decay=config.weight_decay, rates=config.rates,
                               rate_decay=config.rate_decay)
    lengths = [len(ids) for ids in task.train_ids]
    done = Progress()
    best_weights = None
    identity = {"config": public(config), "data": task.data, "weights": task.start.weights}
    if out is not None:
        if resume and (out / "last.safetensors").exists():
            done, best_weights = restore_run(out, identity, model, optimizer, arithmetic)
            say(config, f"resumed after epoch {done.epoch} of {config.epochs}")
        write_start(out, identity, task)

    while done.epoch < config.epochs:
        totals = train_epoch(config, task, done, lengths, optimizer, arithmetic, out, progress)
        dev = {key: value for key, value in task.evaluate(arithmetic).items() if key != "predictions"}
        if not math.isfinite(dev[task.score]):
            raise TrainingStopped(f"stopped after epoch {done.epoch + 1}: the dev {task.score} is {dev[task.score]}; "
                                  "try a lower --lr")
        done.epoch += 1
        done.history.append({"epoch": done.epoch, "train": totals, "dev": dev})
        if dev[task.score] > done.best_score(task.score):        # the first of two equals stays
            done.best = done.epoch
            # A copy: the model's own tensors change with the next step.
            best_weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if out is not None:
            save_run(out, identity, task, model, optimizer, arithmetic, done, best_weights)
        if progress:
            say(config, epoch_line(done.history[-1], config.epochs))

    if best_weights is not None:
        model.load_state_dict(best_weights)
    model.eval()
    record = records.make(config, task, arithmetic, done, timing, thin(done.losses))
    best_file = None
    if out is not None:
        best_file = out / f"best-{done.best:03d}.safetensors"
        task.finish(out)
        checkpoint.write_whole(out / "record.json", records.to_bytes(record))
        (out / "last.safetensors").unlink(missing_ok=True)       # finished: nothing to resume
    return Result(record, out, best_file, task, done.losses)


def train_epoch(config, task, done, lengths, optimizer, arithmetic, out, progress) -> dict:
    """One pass over the training examples: loss and accuracy as they were along the way, seconds, examples/s."""
    order = batches(lengths, config.batch_size, config.seed, done.epoch, bucket=config.bucket)
    steps = min(len(order), config.steps_per_epoch or len(order))
    total = steps * config.epochs
    seen = right = answers = 0
    weighted = 0.0
    began = time.perf_counter()
    with progress_bar(order[:steps], f"{label(config)}epoch {done.epoch + 1}/{config.epochs}", progress) as bar:
        for indices in bar:
            batch = arithmetic.move(task.batch(indices))
            set_learning_rate(optimizer, schedule(config, done.step, total))
            try:
                loss, hits, count = training_step(task, batch, done.step, optimizer, arithmetic, config.clip)
            except FloatingPointError as error:
                raise TrainingStopped(stop_message(error, config, task, done, indices, steps, out)) from None
            done.step += 1
            done.losses.append(loss)
            seen, right, answers, weighted = seen + len(indices), right + hits, answers + count, weighted + loss * count
            bar.set_postfix({"loss": f"{loss:.3f}", f"{task.unit}/s": f"{seen / (time.perf_counter() - began):.0f}"},
                            refresh=False)
    seconds = time.perf_counter() - began
    return {"loss": weighted / answers, "accuracy": int(right) / answers, "steps": steps, "examples": seen,
            "seconds": seconds, "examples_per_second": seen / seconds}


def training_step(task, batch, step, optimizer, arithmetic, clip):
    """Forward, backward, clip, update: (loss, right answers, answers).

    `batch` is on the model's device, `step` counts from 0.  `clip` is the largest gradient norm allowed, 0 for any.
    Raises FloatingPointError, before the weights are touched, when the loss or (with clipping) a gradient is NaN or infinite.
    """
    with arithmetic.autocast():
        loss, right, count = task.loss(batch, step)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value}")
    optimizer.zero_grad(set_to_none=True)
    arithmetic.scaler.scale(loss).backward()         # the scaler does nothing unless the precision is fp16
    if clip:
        arithmetic.scaler.unscale_(optimizer)
        norm = clip_gradients([parameter for _, parameter in trainable(task.model)], clip)
        # In float16 a scaled gradient may overflow: then the scaler leaves this step out and lowers its factor.
        if not math.isfinite(norm) and arithmetic.precision != "fp16":
            broken = [name for name, p in trainable(task.model) if p.grad is not None and not p.grad.isfinite().all()]
            raise FloatingPointError(f"the gradient of {broken[0] if broken else 'the whole model'} is {norm}")
    arithmetic.scaler.step(optimizer)
    arithmetic.scaler.update()
    return value, right, count


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

def prepare_directory(out: Path, resume: bool, again: bool) -> Path:
    """Make the directory, or decide what an earlier run's files in it mean.  Raises RunError."""
    try:
        if out.exists() and not out.is_dir():
            raise RunError(f"{out}: this is a file; a run needs a directory: choose another --out")
        present = [p for pattern in ("config.json", "record.json", "*.safetensors") for p in out.glob(pattern)]
        if present and again:
            for path in [*present, out / "tokenizer.json"]:
                path.unlink(missing_ok=True)
            shutil.rmtree(out / "encoder", ignore_errors=True)
        elif present and not resume:
            raise RunError(f"{out}: a run is here already. Go on with it by --resume, or start over by --again")
        elif (out / "record.json").exists():
            raise RunError(f"{out}: this run is finished. Start over by --again")
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise RunError(f"{out}: can't be written ({error.strerror}): choose another --out") from None
    return out


def write_start(out: Path, identity: dict, task) -> None:
    """What the directory needs from the beginning: the configuration and the tokenizer."""
    checkpoint.write_whole(out / "config.json", json.dumps(identity["config"], indent=2).encode() + b"\n")
    checkpoint.write_whole(out / "tokenizer.json", task.tokenizer.to_str().encode())


def save_run(out, identity, task, model, optimizer, arithmetic, done, best_weights) -> None:
    """Save the epoch.  The order matters: `last` names the best epoch's file, which must be there before it."""
    best = out / f"best-{done.best:03d}.safetensors"
    if done.best == done.epoch:
        metrics = {key: done.history[-1][key] for key in ("train", "dev")}
        checkpoint.save(best, best_weights, {**identity, **task.about(), "epoch": done.best, "metrics": metrics})
    meta = {**identity, "progress": dataclasses.asdict(done)}
    checkpoint.save_training(out / "last.safetensors", model, optimizer, meta, arithmetic.scaler)
    for old in out.glob("best-*.safetensors"):
        if old != best:
            old.unlink()


def restore_run(out, identity, model, optimizer, arithmetic):
    """Load the last finished epoch: (Progress, the best weights so far).  Raises CheckpointError if it is another run's."""
    path = out / "last.safetensors"
    _, saved = checkpoint.load(path)
    checkpoint.check_same(saved["config"], identity["config"], path)
    for what in ("data", "weights"):
        if saved[what] != identity[what]:
            raise checkpoint.CheckpointError(f"{path}: made with other {what} ({_changed(saved[what], identity[what])}). "
                                             "Use those, or another --out, or start over with --again")
    meta = checkpoint.load_training(path, model, optimizer, arithmetic.scaler)
    done = Progress(**meta["progress"])
    best_weights, _ = checkpoint.load(out / f"best-{done.best:03d}.safetensors")
    return done, best_weights


def _changed(old: dict, new: dict) -> str:
    return "; ".join(f"{key}: {old.get(key)} → {new.get(key)}" for key in new if old.get(key) != new.get(key))


# ---- what the reader sees ----------------------------------------------------------------------------------------

def label(config: Config) -> str:
    """A smoke run says in every line that its numbers mean nothing."""
    return "plumbing only · " if config.size == "smoke" else ""


def say(config: Config, text: str) -> None:
    """One or more lines to the reader."""
    for line in text.splitlines():
        print(label(config) + line, flush=True)


def announce(config: Config, task, arithmetic) -> None:
    """Which weights, data and device this run really uses, and what it trains."""
    weights, data = task.start.weights, task.data
    sha = f" (sha256 {weights['sha256'][:12]})" if weights["sha256"] else f" (vocabulary: {weights['vocabulary']})"
    sizes = " / ".join(str(data[split].get("examples", data[split].get("texts"))) for split in ("train", "dev"))
    trained, stored = records.parameters(task.model)
    say(config, f"recipe   {config.recipe}, size {config.size}, seed {config.seed}\n"
                f"weights  {weights['name']}{sha}\n"
                f"data     {data['name']}: {config.task}, {sizes} {task.unit} (train / dev)\n"
                f"device   {arithmetic.device.type}, {arithmetic.precision}\n"
                f"trains   {trained:,} of {stored:,} parameters")
    for note in task.notes:
        say(config, f"note     {note}")


def epoch_line(entry: dict, epochs: int) -> str:
    """One line for one epoch."""
    train_part, dev = entry["train"], entry["dev"]
    extra = f", macro-F1 {dev['macro_f1']:.3f}" if "macro_f1" in dev else ""
    return (f"epoch {entry['epoch']}/{epochs}  train loss {train_part['loss']:.3f}, accuracy {train_part['accuracy']:.3f}"
            f"  |  dev loss {dev['loss']:.3f}, accuracy {dev['accuracy']:.3f}{extra}")


def progress_bar(items, description: str, progress: bool):
    """A bar for a terminal or a notebook; into a file, one line every half minute.  TQDM_DISABLE is respected."""
    choices = {} if progress else {"disable": True}
    if not sys.stderr.isatty():
        choices["mininterval"] = 30.0
    return tqdm(items, desc=description, leave=False, dynamic_ncols=True, **choices)


def stop_message(error, config, task, done, indices, steps, out) -> str:
    """Where training stopped, what is kept, what to try."""
    examples = ", ".join(str(task.example_ids[i]) for i in indices[:8]) + (", …" if len(indices) > 8 else "")
    kept = f"everything up to epoch {done.epoch} is kept in {out}" if out and done.epoch else "no epoch was finished"
    return (f"stopped in epoch {done.epoch + 1}, step {done.step % steps + 1} of {steps}: {error} (examples {examples}); "
            f"{kept}. Try a lower --lr, a longer --warmup or --precision fp32")


def thin(losses: list[float]) -> dict:
    """The training curve, short enough for a record: the mean loss of each CURVE_EVERY steps."""
    parts = [losses[i:i + CURVE_EVERY] for i in range(0, len(losses), CURVE_EVERY)]
    return {"every": CURVE_EVERY, "loss": [round(sum(part) / len(part), 5) for part in parts]}
