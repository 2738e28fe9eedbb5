"""How fast is our fine-tuning beside Hugging Face's, and which part of the gain is whose?

    python -m benchmarks.finetune --data DIRECTORY [--out FILE.json]
    python -m benchmarks.finetune --quick              # minutes, on the built-in sentences: does it run?

Before any timing, three gates: the same logits as Hugging Face's classifier, the same ten losses with no dropout, and
dev accuracy within the spread over seeds (from `book/benchmarks/agreement.json`, where it is). What does not do the
same work is not timed.

Then, for each batch size:

  runs    whole runs over the same sentences, in the order A-B-...-B-A: Hugging Face's Trainer as it comes, without
          clipping, and tuned (group_by_length and bf16); ours in float32, in bfloat16, with the embedding rows that
          occur, and with no clipping.
  steps   batch by batch in turn: a plain loop around Hugging Face's model, ours in float32 on the very same batches,
          and ours with all techniques, each of them switched off in turn.
  dev     evaluation: Hugging Face's model with the sentences as they come, ours sorted, and of very short sentences
          more in a batch; before the training above ("dev") and after it, in the same process ("dev after").

A ratio is their time over ours, so more is faster: the median over runs or steps, with both quartiles. Every contender
starts from the same weights, with the same dropout, weight decay, learning-rate schedule and fused AdamW. Warm-up steps
are not timed. The clock on the wall and the processor's time are both written down, and the load before and after.
"""

import argparse
import gc
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from minbert.optim import linear_schedule
from minbert.pretrained import find_weights
from minbert.run import device, loop, records, recipes, tasks
from minbert.run.batching import batches, collate, filled_batches, padding_share
from minbert.run.checkpoint import write_whole
from minbert.run.recipes import Config

AGREEMENT = Path(__file__).parents[1] / "book/benchmarks/agreement.json"
LR, DECAY, WARMUP = 3e-5, 0.01, 0.1

# Ours: settings of `minbert train`. The names are the rows of the book's table.
PLAIN = dict(attention="plain", last_layer="all", embedding_rows="all", bucket=50, clip=1.0)
FP32 = dict(PLAIN, attention="fast", last_layer="cls", precision="fp32")
BF16 = dict(FP32, precision="bf16")
ROWS = dict(BF16, embedding_rows="occurring")
RUNS = {
    "ours fp32": FP32,
    "ours bf16": BF16,
    "ours bf16, rows": ROWS,
    "ours bf16, rows, no clipping": dict(ROWS, clip=0.0),
}
TRAINERS = {
    "Trainer": {},
    "Trainer, no clipping": dict(max_grad_norm=0.0),
    "Trainer tuned": dict(train_sampling_strategy="group_by_length", bf16=True),
}
# Everything, and everything but one. "unfused" is no setting of ours: it is PyTorch's default AdamW.
WITHOUT = {
    "buckets": dict(ROWS, bucket=1),
    "bf16": dict(ROWS, precision="fp32"),
    "fused AdamW": dict(ROWS, unfused=True),
    "[CLS] only": dict(ROWS, last_layer="all"),
    "occurring rows": dict(ROWS, embedding_rows="all"),
    "fused attention": dict(ROWS, attention="plain"),
}
# (name, the ratio's row, batch size → target), from the table of the project's targets.
TARGETS = [
    ("float32, against Trainer", ("runs", "Trainer", "ours fp32"), {8: 1.4, 32: 1.9}),
    ("bfloat16, against Trainer", ("runs", "Trainer", "ours bf16"), {8: 1.6, 32: 2.8}),
    ("everything, no clipping on either side, against Trainer",
     ("runs", "Trainer, no clipping", "ours bf16, rows, no clipping"), {8: 2.3, 32: 3.4}),
    ("bfloat16, against Trainer tuned", ("runs", "Trainer tuned", "ours bf16"), {8: 1.1, 32: 1.1}),
    ("bfloat16 and occurring rows, against Trainer tuned",
     ("runs", "Trainer tuned", "ours bf16, rows"), {8: 1.1, 32: 1.1}),
    ("the same batches in float32, against a plain loop", ("steps", "plain loop", "ours fp32"), {8: 1.05, 32: 1.08}),
    ("evaluation in float32", ("dev", "Hugging Face", "ours fp32"), {8: 1.8, 32: 1.8}),
    ("evaluation in bfloat16", ("dev", "Hugging Face", "ours bf16"), {8: 4.5, 32: 4.5}),
    ("evaluation in float32, after training", ("dev after", "Hugging Face", "ours fp32"), {8: 1.8, 32: 1.8}),
    ("evaluation in bfloat16, after training", ("dev after", "Hugging Face", "ours bf16"), {8: 4.5, 32: 4.5}),
]


@dataclass
class Setting:
    """What all contenders share: the data, the tokens, one checkpoint."""

    data: str
    weights: str
    dropout: float = 0.1
    max_length: int = 128
    checkpoint: dict = field(default_factory=dict)      # of Hugging Face's classifier, its head too
    ids: list = field(default_factory=list)             # of the training sentences
    labels: list = field(default_factory=list)
    dev_ids: list = field(default_factory=list)
    classes: int = 5


@dataclass
class Meter:
    """What was measured of one contender: a number a run or a step."""

    precision: str = "fp32"
    wall: list = field(default_factory=list)            # seconds
    cpu: list = field(default_factory=list)             # seconds of the processor
    examples: list = field(default_factory=list)
    tokens: list = field(default_factory=list)          # without padding
    positions: list = field(default_factory=list)       # with padding
    flop: list = field(default_factory=list)            # on the real tokens

    def add(self, wall, cpu, counts):
        self.wall.append(wall)
        self.cpu.append(cpu)
        for key in ("examples", "tokens", "positions", "flop"):
            getattr(self, key).append(counts[key])


# ---- the contenders ----------------------------------------------------------------------------------------------

def hugging_face(setting):
    """`transformers.BertForSequenceClassification` with the shared weights."""
    import transformers

    model = transformers.BertForSequenceClassification.from_pretrained(
        find_weights(setting.weights), num_labels=setting.classes, hidden_dropout_prob=setting.dropout,
        attention_probs_dropout_prob=setting.dropout, classifier_dropout=setting.dropout,
    )  # fmt: skip
    if not setting.checkpoint:                          # the first one draws the head for all
        setting.checkpoint = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(setting.checkpoint)
    return model.train()


def prepare(data, weights="minilm", dropout=0.1):
    """Read and tokenise the data, draw the head."""
    torch.manual_seed(0)
    setting = Setting(data, weights, dropout)
    task = tasks.make(config_of(setting, 8, PLAIN))
    setting.ids, setting.labels, setting.dev_ids = task.train_ids, task.train_labels, task.dev_ids
    setting.classes = task.classes
    hugging_face(setting)
    return setting


def config_of(setting, batch_size, choice) -> Config:
    """Our configuration: a choice of techniques on top of the shared settings."""
    choice = {key: value for key, value in choice.items() if key != "unfused"}
    return recipes.make(
        task="sst", data=setting.data, weights=setting.weights, max_length=setting.max_length, batch_size=batch_size,
        lr=LR, weight_decay=DECAY, warmup=WARMUP, dropout=setting.dropout, head_dropout=setting.dropout, **choice,
    )  # fmt: skip


class Ours:
    """Our training loop's own step, with its task, its optimizer and its schedule."""

    def __init__(self, setting, batch_size, choice, total):
        self.config = config_of(setting, batch_size, choice)
        self.arithmetic = device.choose("cpu", self.config.precision)
        self.task = tasks.make(self.config)
        with torch.no_grad():
            self.task.model.head.weight.copy_(setting.checkpoint["classifier.weight"])
            self.task.model.head.bias.copy_(setting.checkpoint["classifier.bias"])
        self.task.model.train()
        self.unfused = choice.get("unfused", False)
        self.restart(total)

    def restart(self, total):
        self.total, self.done = total, 0
        self.optimizer = loop.make_optimizer(self.task.model, self.config.optimizer, lr=LR, weight_decay=DECAY)
        if self.unfused:
            groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in self.optimizer.param_groups]
            self.optimizer = torch.optim.AdamW(groups, lr=LR)

    def step(self, indices):
        batch = self.arithmetic.move(self.task.batch(indices, self.done))
        loop.set_learning_rate(self.optimizer, loop.schedule(self.config, self.done, self.total))
        loss, _, _ = loop.training_step(self.task, batch, self.optimizer, self.arithmetic, self.config.clip)
        self.done += 1
        return loss


class PlainLoop:
    """The loop one writes around Hugging Face's model, with PyTorch's fused AdamW and its own clipping."""

    def __init__(self, setting, total):
        self.setting, self.model, self.total, self.done = setting, hugging_face(setting), total, 0
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        level = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": DECAY}, {"params": level, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)

    def step(self, indices):
        for group in self.optimizer.param_groups:
            group["lr"] = LR * linear_schedule(self.done, round(WARMUP * self.total), self.total)
        batch = collate(indices, self.setting.ids, self.setting.labels)
        loss = self.model(**batch).loss
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.done += 1
        return loss.item()


def trainer_run(setting, examples, batch_size, choice):
    """One run of Hugging Face's Trainer over these examples. Returns (seconds, processor's seconds, its batches).

    group_by_length sorts within 50 batches, but in a short run within a quarter of it, which is more padding than a
    whole epoch has. A short run must not be charged for being short, so the sampler gets its 50 batches here too.
    """
    import transformers
    from transformers.trainer_pt_utils import get_length_grouped_indices

    seen, marks = [], []

    class ByLength(torch.utils.data.Sampler):
        def __len__(self):
            return len(examples)

        def __iter__(self):
            lengths = [len(setting.ids[i]) for i in examples]
            return iter(get_length_grouped_indices(lengths, batch_size, mega_batch_mult=50))

    class WholeEpoch(transformers.Trainer):
        def _get_train_sampler(self, *args, **kwargs):
            if self.args.train_sampling_strategy == "group_by_length":
                return ByLength()
            return super()._get_train_sampler(*args, **kwargs)

    def pad_batch(rows):
        seen.append([row["index"] for row in rows])
        return collate(seen[-1], setting.ids, setting.labels)

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            marks.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *args, **kwargs):
            marks.append((time.perf_counter(), time.process_time()))

    rows = [{"input_ids": setting.ids[i], "index": i} for i in examples]
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            output_dir=out, per_device_train_batch_size=batch_size, num_train_epochs=1, learning_rate=LR,
            weight_decay=DECAY, warmup_steps=WARMUP, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
            remove_unused_columns=False, logging_strategy="no", seed=0, **choice,
        )  # fmt: skip
        trainer = WholeEpoch(model=hugging_face(setting), args=arguments, train_dataset=rows,
                             data_collator=pad_batch, callbacks=[Clock()])  # fmt: skip
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    (began, cpu_began), (ended, cpu_ended) = marks[0], marks[-1]
    return ended - began, cpu_ended - cpu_began, seen


# ---- gates -------------------------------------------------------------------------------------------------------

def gates(setting, agreement=AGREEMENT):
    """The proof that the contenders do the same work. Raises SystemExit when they don't."""
    still = replace(setting, dropout=0.0)
    theirs = PlainLoop(still, total=10)
    shapes = [PLAIN | {"precision": "fp32"}, FP32, FP32 | {"embedding_rows": "occurring"}]
    ours = [Ours(still, 8, choice, total=10) for choice in shapes]
    found = {"logits": 0.0, "losses": 0.0}
    with torch.no_grad():
        batch = collate(range(min(64, len(setting.dev_ids))), setting.dev_ids)
        want = theirs.model.eval()(**batch).logits
        for contender in ours:
            model = contender.task.model.eval()
            difference = model(batch["input_ids"], batch["attention_mask"]) - want
            found["logits"] = max(found["logits"], difference.abs().max().item())
            model.train()
    theirs.model.train()
    order = batches([len(row) for row in setting.ids], 8, seed=1)
    for indices in itertools.islice(itertools.cycle(order), 10):
        want = theirs.step(indices)
        found["losses"] = max(found["losses"], *(abs(contender.step(indices) - want) for contender in ours))
    found["dev accuracy within the spread"] = None      # not known: not run
    if agreement.is_file():
        found["dev accuracy within the spread"] = json.loads(agreement.read_text(encoding="utf-8")).get("agree")
    wrong = [f"{what} differ by {found[what]:.1e}, more than {most:.0e}"
             for what, most in (("logits", 1e-6), ("losses", 1e-5)) if not found[what] <= most]
    if found["dev accuracy within the spread"] is False:
        wrong.append(f"{agreement.name} says that the dev accuracies differ by more than their spread")
    if wrong:
        raise SystemExit("nothing is timed, because the contenders don't do the same work: " + "; ".join(wrong))
    return found


# ---- measuring ---------------------------------------------------------------------------------------------------

def counts_of(setting, ids, batch_list, backward=True):
    """Examples, real tokens, positions and floating-point operations on the real tokens of some batches.

    A matrix product of (n, a) and (a, b) is 2nab operations; the backward pass is twice the forward pass.
    """
    config = setting.checkpoint
    layers = 1 + max(int(name.split(".")[3]) for name in config if name.startswith("bert.encoder.layer."))
    wide, size = config["bert.encoder.layer.0.intermediate.dense.weight"].shape
    lengths = [[len(ids[i]) for i in batch] for batch in batch_list]
    tokens = sum(map(sum, lengths))
    pairs = sum(n * n for row in lengths for n in row)
    flop = layers * (2 * tokens * (4 * size**2 + 2 * size * wide) + 4 * size * pairs)
    return {"examples": sum(map(len, lengths)), "tokens": tokens,
            "positions": sum(len(row) * max(row) for row in lengths), "flop": flop * (3 if backward else 1)}


def timed(function, *arguments):
    """(seconds, processor's seconds) of a call."""
    began, cpu = time.perf_counter(), time.process_time()
    function(*arguments)
    return time.perf_counter() - began, time.process_time() - cpu


def window(setting, number, size):
    """The examples of run `number`: a window of the shuffled training set, the same for every contender."""
    order = torch.randperm(len(setting.ids), generator=torch.Generator().manual_seed(7)).tolist()
    start = number * size % max(1, len(order) - size + 1)
    return order[start:start + size]


def order_of(setting, examples, batch_size, bucket, seed):
    """Our batches of these examples."""
    dealt = batches([len(setting.ids[i]) for i in examples], batch_size, seed=seed, bucket=bucket)
    return [[examples[i] for i in batch] for batch in dealt]


def measure_runs(setting, batch_size, steps, runs, say):
    """Whole runs, in the order of the contenders and then backwards."""
    meters = {name: Meter("bf16" if choice.get("bf16") else "fp32") for name, choice in TRAINERS.items()}
    meters |= {name: Meter(choice["precision"]) for name, choice in RUNS.items()}
    ours = {name: Ours(setting, batch_size, choice, steps) for name, choice in RUNS.items()}
    warm = window(setting, 0, 2 * batch_size)
    for name, choice in TRAINERS.items():               # warm-up, apart
        trainer_run(setting, warm, batch_size, choice)
    for contender in ours.values():
        for indices in order_of(setting, warm, batch_size, 50, 0):
            contender.step(indices)
    for run in range(runs):
        examples = window(setting, run + 1, steps * batch_size)
        for name in list(meters) if run % 2 == 0 else list(meters)[::-1]:
            gc.collect()
            if name in TRAINERS:
                wall, cpu, order = trainer_run(setting, examples, batch_size, TRAINERS[name])
                order = order[:-(-len(examples) // batch_size)]
            else:
                contender = ours[name]
                contender.restart(steps)
                order = order_of(setting, examples, batch_size, contender.config.bucket, run)
                wall, cpu = timed(lambda: [contender.step(indices) for indices in order])
            meters[name].add(wall, cpu, counts_of(setting, setting.ids, order))
        say(f"batch {batch_size}, run {run + 1} of {runs}: " +
            ", ".join(f"{name} {meter.examples[-1] / meter.wall[-1]:.0f}/s" for name, meter in meters.items()))
    return meters


def measure_steps(setting, batch_size, steps, say, warmup=2):
    """Batch by batch in turn. Every contender sees the same sentences; all but one, the same batches."""
    total = steps + warmup
    choices = {"ours fp32": FP32, "everything": ROWS}
    choices |= {f"without {name}": choice for name, choice in WITHOUT.items()}
    contenders = {"plain loop": PlainLoop(setting, total)}
    contenders |= {name: Ours(setting, batch_size, choice, total) for name, choice in choices.items()}
    examples = window(setting, 1, steps * batch_size)
    orders = {name: order_of(setting, examples, batch_size, choices.get(name, FP32)["bucket"], 0)
              for name in contenders}
    for name, contender in contenders.items():          # warm-up, apart
        for indices in orders[name][:warmup]:
            contender.step(indices)
    meters = {name: Meter(choices.get(name, FP32)["precision"]) for name in contenders}
    for step in range(len(orders["everything"])):
        for name in list(contenders) if step % 2 == 0 else list(contenders)[::-1]:
            indices = orders[name][step]
            wall, cpu = timed(contenders[name].step, indices)
            meters[name].add(wall, cpu, counts_of(setting, setting.ids, [indices]))
    say(f"batch {batch_size}, step by step: " +
        ", ".join(f"{name} {sum(meter.examples) / sum(meter.wall):.0f}/s" for name, meter in meters.items()))
    return meters


def measure_dev(setting, batch_size, sentences, runs, say):
    """Evaluation: Hugging Face's model on the sentences as they come, ours sorted by length.

    In bfloat16 without dropout PyTorch's fused attention for the CPU is the slower one, so ours takes the plain form.
    """
    ids = setting.dev_ids[:sentences]
    theirs = hugging_face(setting).eval()
    choices = {"ours fp32": FP32, "ours bf16": dict(BF16, attention="plain")}
    ours = {name: Ours(setting, batch_size, choice, 1) for name, choice in choices.items()}
    unsorted = [list(range(i, min(i + batch_size, len(ids)))) for i in range(0, len(ids), batch_size)]
    ordered = filled_batches([len(row) for row in ids], batch_size)

    @torch.inference_mode()
    def hugging_face_pass(order):
        for indices in order:
            theirs(**collate(indices, ids)).logits.argmax(-1).tolist()

    def our_pass(contender):
        return lambda order: tasks.predict(contender.task.model, ids, contender.arithmetic, batch_size)

    passes = {"Hugging Face": hugging_face_pass, **{name: our_pass(contender) for name, contender in ours.items()}}
    meters = {name: Meter("bf16" if "bf16" in name else "fp32") for name in passes}
    for one in passes.values():                         # warm-up, apart
        one(unsorted)
    for run in range(runs):
        for name in list(passes) if run % 2 == 0 else list(passes)[::-1]:
            wall, cpu = timed(passes[name], unsorted)
            order = unsorted if name == "Hugging Face" else ordered
            meters[name].add(wall, cpu, counts_of(setting, ids, order, backward=False))
    say(f"batch {batch_size}, evaluation: " +
        ", ".join(f"{name} {sum(meter.examples) / sum(meter.wall):.0f}/s" for name, meter in meters.items()))
    return meters


def ratio(theirs, ours, same_batches=True):
    """Their time over ours: median, quartiles, the number of pairs, and the same in the processor's time.

    Where a pair of steps has other batches, only the whole is compared: the sum over all steps, which have the same
    sentences.
    """
    pairs = [a / b for a, b in zip(theirs.wall, ours.wall, strict=True)]
    cpu = [a / b for a, b in zip(theirs.cpu, ours.cpu, strict=True)]
    whole = sum(theirs.wall) / sum(ours.wall)
    if not same_batches:
        return {"median": whole, "low": None, "high": None, "n": 1, "whole": whole,
                "cpu": sum(theirs.cpu) / sum(ours.cpu)}
    low, _, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else (pairs[0],) * 3
    return {"median": statistics.median(pairs), "low": low, "high": high, "n": len(pairs), "whole": whole,
            "cpu": statistics.median(cpu)}


def summary(meter, peak):
    """One contender's line: speeds, padding, and the share of the processor's peak that goes into real tokens."""
    seconds = sum(meter.wall)
    return {"seconds": seconds, "cpu_seconds": sum(meter.cpu), "examples_per_second": sum(meter.examples) / seconds,
            "tokens_per_second": sum(meter.tokens) / seconds, "padding": 1 - sum(meter.tokens) / sum(meter.positions),
            "utilisation": sum(meter.flop) / seconds / peak}


def peak_flops(dtype, size=1024, repeats=5):
    """Operations a second in a large matrix product: what this machine can do at best, now."""
    a = torch.randn(size, size).to(dtype)
    a @ a
    return 2 * size**3 / min(timed(torch.matmul, a, a)[0] for _ in range(repeats))


def where_time_goes(setting, batch_size, choice, batch_list):
    """Seconds a step of ours in collating, forward, backward, clipping and the optimizer, each on its own."""
    ours = Ours(setting, batch_size, choice, len(batch_list) + 2)
    found = dict.fromkeys(("collate", "forward", "backward", "clip", "optimizer"), 0.0)
    for number, indices in enumerate([*batch_list[:2], *batch_list]):
        loop.set_learning_rate(ours.optimizer, 0.5)
        marks = [time.perf_counter()]
        batch = ours.task.batch(indices, number)
        marks.append(time.perf_counter())
        with ours.arithmetic.autocast():
            logits = ours.task.model(batch["input_ids"], batch["attention_mask"])
            loss = cross_entropy(logits.float(), batch["labels"])
        loss.item()
        marks.append(time.perf_counter())
        ours.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        marks.append(time.perf_counter())
        loop.clip_gradients([p for p in ours.task.model.parameters() if p.requires_grad], 1.0)
        marks.append(time.perf_counter())
        ours.optimizer.step()
        marks.append(time.perf_counter())
        if number >= 2:                                 # the first two are warm-up
            for part, (a, b) in zip(found, itertools.pairwise(marks)):
                found[part] += (b - a) / len(batch_list)
    return found


def measure(data="builtin", weights="minilm", steps=(25, 15), batch_sizes=(8, 32), runs=4, dev_sentences=400, note="",
            say=print):
    """The whole benchmark as one dictionary: what `--out` writes. `steps`: of a run, for each batch size."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    load = os.getloadavg()
    setting = prepare(data, weights)
    passed = gates(setting)
    say(f"gates: logits {passed['logits']:.0e}, losses {passed['losses']:.0e}, "
        f"dev accuracy within the spread: {passed['dev accuracy within the spread']}")
    peak = {"fp32": peak_flops(torch.float32), "bf16": peak_flops(torch.bfloat16)}
    result = {
        "command": f"python -m benchmarks.finetune --data {recipes.source_name(data)} "
                   f"--steps {','.join(map(str, steps))} --batch-sizes {','.join(map(str, batch_sizes))}",
        "note": note, "data": recipes.source_name(data), "weights": recipes.source_name(weights), "steps": list(steps),
        "runs": runs, "dev_sentences": dev_sentences,
        "rows": {"table": len(setting.checkpoint["bert.embeddings.word_embeddings.weight"]),
                 "occurring": len(set().union(*setting.ids))},
        "threads": torch.get_num_threads(), "cores": os.cpu_count(), "device": device.describe(torch.device("cpu")),
        "system": platform.system(), "malloc": os.environ.get("GLIBC_TUNABLES", ""), "gates": passed,
        "peak_flops": peak,
        "versions": records.versions() | {name: metadata.version(name) for name in ("transformers", "accelerate")},
        "load_before": load, "batch_sizes": {},
    }  # fmt: skip
    alone = {size: measure_dev(setting, size, dev_sentences, runs, say) for size in batch_sizes}   # before all training
    for size, count in zip(batch_sizes, steps, strict=True):
        meters = {"dev": alone[size],
                  "runs": measure_runs(setting, size, count, runs, say),
                  "steps": measure_steps(setting, size, count, say),
                  "dev after": measure_dev(setting, size, dev_sentences, runs, say)}
        speeds = {part: {name: summary(meter, peak[meter.precision]) for name, meter in of_part.items()}
                  for part, of_part in meters.items()}
        pairs = [("runs", "Trainer", b) for b in TRAINERS if b != "Trainer"]
        pairs += [("runs", a, b) for a in TRAINERS for b in RUNS]
        pairs += [("steps", "plain loop", "ours fp32"), ("steps", "plain loop", "everything")]
        pairs += [("steps", f"without {name}", "everything") for name in WITHOUT]
        pairs += [(part, "Hugging Face", name) for part in ("dev", "dev after") for name in ("ours fp32", "ours bf16")]
        order = order_of(setting, window(setting, 1, min(10, count) * size), size, 50, 0)
        result["batch_sizes"][str(size)] = {
            "speeds": speeds,
            "ratios": [{"part": part, "theirs": a, "ours": b,
                        **ratio(meters[part][a], meters[part][b], same_batches=a != "without buckets")}
                       for part, a, b in pairs],
            "seconds_a_step": {name: where_time_goes(setting, size, choice, order)
                               for name, choice in (("ours fp32", FP32), ("ours bf16, rows", ROWS))},
            "padding_whole_set": {
                str(bucket): padding_share(batches([len(i) for i in setting.ids], size, bucket=bucket),
                                           [len(i) for i in setting.ids]) for bucket in (1, 50)},
        }  # fmt: skip
    result["load_after"] = os.getloadavg()
    result["targets"] = judge(result)
    return result


def judge(result):
    """Each target that the measured batch sizes have, beside the ratio that was measured."""
    rows = []
    for name, (part, theirs, ours), wanted in TARGETS:
        for size, entry in result["batch_sizes"].items():
            if int(size) in wanted:
                [found] = [r for r in entry["ratios"] if (r["part"], r["theirs"], r["ours"]) == (part, theirs, ours)]
                rows.append({"name": name, "batch_size": int(size), "target": wanted[int(size)], **found})
    return rows


def report(result):
    """The result as lines of text."""
    lines = [f"{result['device']['name']}, {result['threads']} thread(s), load {result['load_before'][0]:.1f} before "
             f"and {result['load_after'][0]:.1f} after; peak {result['peak_flops']['fp32'] / 1e9:.0f} (fp32) and "
             f"{result['peak_flops']['bf16'] / 1e9:.0f} (bf16) GFLOP/s"]
    for size, entry in result["batch_sizes"].items():
        lines.append(f"\nbatch {size}: examples/s, real tokens/s, padding, utilisation on real tokens")
        for part, speeds in entry["speeds"].items():
            lines += [f"  {part:10}{name:34}{s['examples_per_second']:7.1f} {s['tokens_per_second']:8.0f} "
                      f"{s['padding']:6.1%} {s['utilisation']:6.1%}" for name, s in speeds.items()]
        lines.append("  ratios: theirs over ours, the median [quartiles], in the processor's time")
        for r in entry["ratios"]:
            spread = f"[{r['low']:.2f}, {r['high']:.2f}]" if r["low"] else "(over the whole)"
            pair = r["theirs"] + " / " + r["ours"]
            lines.append(f"  {r['part']:10}{pair:58}{r['median']:5.2f} {spread} {r['cpu']:5.2f}")
    lines.append("\ntargets")
    lines += [f"  {row['name']}, batch {row['batch_size']}: {row['median']:.2f}, at least {row['target']}: "
              f"{'reached' if row['median'] >= row['target'] else 'missed'}" for row in result["targets"]]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="builtin, or a directory in the course's format")
    parser.add_argument("--weights", default="minilm")
    parser.add_argument("--steps", default="25,15", help="timed steps of a run, for each batch size (25,15)")
    parser.add_argument("--batch-sizes", default="8,32", help="with commas between them (8,32)")
    parser.add_argument("--runs", type=int, default=4, help="runs of each contender (4)")
    parser.add_argument("--threads", type=int, default=1, help="more than 1 is refused on a busy machine (1)")
    parser.add_argument("--note", default="", help="what the reader must know of the machine; goes into the file")
    parser.add_argument("--quick", action="store_true", help="a few steps: the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    options = parser.parse_args()
    if options.threads > 1 and os.getloadavg()[0] > 0.5:
        parser.error(f"the machine is busy (load {os.getloadavg()[0]:.1f}): with another program running, several "
                     "threads wait for each other; use --threads 1, or wait")
    torch.set_num_threads(options.threads)
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    steps = [int(count) for count in options.steps.split(",")]
    if len(steps) == 1:
        steps *= len(sizes)
    if len(steps) != len(sizes):
        parser.error(f"{len(steps)} numbers of steps for {len(sizes)} batch sizes")
    small = dict(steps=[3], batch_sizes=sizes[:1], runs=2, dev_sentences=32) if options.quick else \
        dict(steps=steps, batch_sizes=sizes, runs=options.runs)
    result = measure(options.data, options.weights, note=options.note, **small)
    print(report(result))
    if options.out:
        write_whole(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
