"""The command line `minbert`: train, evaluate, predict, ask, embed, similar, run, report, recipes, exercises, plan, data, doctor.

Each subcommand is one function below.  PyTorch takes seconds to import, so that each function imports what it needs.
What goes wrong is told in one line, on stderr, with a non-zero exit code; --debug shows the whole traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

from minbert import __version__
from minbert.run import ask, recipes, vectors
from minbert.run.recipes import CHOICES, Config, RecipeError

# What `minbert train --help` says of each setting.  The name of the option is the setting's own, but for --model.
HELP = {
    "task": "what is learned: sst (5 classes), cfimdb (2 classes), mlm (masked-language-model pre-training), quora "
            "(paraphrase), sts (similarity), squad (questions), sign and score (sst in two other forms); several as "
            "sst+quora+sts",
    "encoder": "bert, attention (one layer, chapter 2) or bag (of embeddings, chapter 1)",
    "init": "pretrained, or random: the same shape and vocabulary with no learned weights",
    "weights": "minilm, a directory with config.json and model.safetensors, a hub name, or scratch",
    "data": "builtin, a directory in the course's format, or hub",
    "seed": "start of every random number",
    "epochs": "passes over the training sentences",
    "batch_size": "sentences a step",
    "steps_per_epoch": "stop each epoch after so many steps; 0: use all sentences",
    "max_length": "word pieces a sentence, the rest is cut",
    "bucket": "sort by length within so many batches; 1: batches at random",
    "optimizer": "adamw-torch (PyTorch's, the fastest), adamw (ours, equal to it), adamw-course (decay last, as in the course), "
                 "adamw-uncorrected (no bias correction, as in Google's BERT) or adam-l2 (decay in the gradient)",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "schedule": "of the learning rate, after the warm-up: linear (down to 0) or constant",
    "warmup": "share of the steps in which the learning rate rises",
    "clip": "largest norm of the gradient; 0: no clipping",
    "rates": "who learns at --lr: same (everybody), layerwise (the head; each layer down less) or tiers (the heads; pooler and "
             "encoder less)",
    "rate_decay": "what each step down multiplies the rate by, for --rates layerwise and tiers",
    "dropout": "inside the encoder",
    "head_dropout": "before the classifier",
    "freeze": "what keeps its values: none, embeddings, partial (these and the first --freeze-layers layers), full (the whole "
              "encoder), head, or all (nothing is left to train)",
    "freeze_layers": "layers frozen by --freeze partial",
    "precision": "auto (fp32 on a CPU, 16 bits on a GPU), fp32, bf16 or fp16",
    "attention": "plain, or fast: the fused kernel",
    "last_layer": "all tokens, or cls: the last layer for [CLS] only, which gives the same and is sooner done",
    "embedding_rows": "all, or occurring: train only the embedding rows that the training data use",
    "vocab_size": "word pieces to learn, for --model scratch",
    "layers": "number of layers, for --model scratch",
    "hidden_size": "size of the vectors, for --model scratch and for the encoders bag and attention",
    "heads": "attention heads, for --model scratch and for the encoder attention",
    "intermediate_size": "size of the feed-forward part, for --model scratch",
    "micro_batch": "sentences that go through the model at once, if a batch needs too much memory; 0: the whole batch",
    "mask_rate": "share of the word pieces hidden, for --task mlm",
    "pair_head": "how a pair is read and what is on top: joined, joined-deep, cosine-fixed, cosine-learned, cosine, vector, "
                 "additive, cross-printed, cross-standard or cross-both",
    "paraphrase": "the objective of quora: ce2 (two scores) or bce (one)",
    "similarity": "the objective of sts: classes (six), mse, huber, or cosine (with --pair-head cosine)",
    "pooling": "of a sentence that is read alone: pooler ([CLS]) or mean (over the tokens)",
    "projection": "size of a linear layer on that vector; 0: none",
    "quora_limit": "the most question pairs to train on; 0: all",
    "window_length": "word pieces of a window of question and passage, for squad",
    "question_length": "the most word pieces of a question, for squad",
    "window_step": "by how many word pieces one window follows another, for squad",
    "answer_length": "the most word pieces of an answer, for squad",
    "adapt": "none, or lora: the encoder is frozen and each task has its own low-rank adapters",
    "lora_r": "rank of the adapters",
    "lora_alpha": "the adapters' α",
    "lora_scaling": "alpha/r (as published first) or alpha (as in report S0)",
    "lora_feed_forward": "adapt the feed-forward matrices too",
    "sampling": "which task comes next: sequential, phases, round-robin, proportional, square-root or annealed",
    "stop": "a round robin ends with the shortest task or with the longest",
    "step_form": "a step is one batch (per_batch) or a batch of each task, losses added (summed)",
    "trained": "the tasks that are trained, such as sst+quora, the others are only scored; without it: all",
    "cosine_every": "record the cosines between the tasks' gradients every so many steps; 0: never",
    "freeze_task": "whose head --freeze head freezes, in a model of several tasks",
}

EXAMPLES = """\
first steps:
  minbert doctor                                   what is installed, what is missing
  minbert run first-finetune                       fine-tune MiniLM on the book's own film sentences (1 to 2 minutes)
  minbert predict "A film that I would gladly see twice."
  minbert recipes                                  every experiment of the book
  minbert report --chapter 5                       the recorded results, beside the published ones

'minbert COMMAND --help' explains a command and gives examples of it.
"""


class OneLineParser(argparse.ArgumentParser):
    """A parser that tells a wrong command line as every other error is told: in one line."""

    def error(self, message):
        self.exit(2, f"minbert: {message} ('{self.prog} --help' says what it takes)\n")


class UserError(Exception):
    """Something the reader can mend; the message is one line."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 an error, 2 a wrong command line, 130 interrupted."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        code = options.function(options) or 0
        sys.stdout.flush()                           # a full disk is told here, not by Python when it ends
        return code
    except BrokenPipeError:                          # `minbert recipes | head`
        sys.stderr.close()
        return 0
    except KeyboardInterrupt as stop:
        if options.debug:
            raise
        hint = ": what was saved last is kept, and the same command with --resume goes on from there"
        return complain(str(stop) or "interrupted" + (hint if options.command in ("run", "train") else ""), 130)
    except Exception as error:
        if options.debug:
            raise
        try:
            sys.stdout.flush()
        except OSError:                              # its disk is full: Python must not try again when it ends
            sys.stdout = None
        return complain(one_line(error, options), 1)


def complain(message: str, code: int) -> int:
    """Say what is wrong, on stderr.

    Of several processes (see parallel.py) all are interrupted, and the first says so.  Another one that fails waits: if the
    first has failed too, torchrun ends this one meanwhile, and the reader sees one line.
    """
    if os.environ.get("RANK", "0") != "0":
        if code == 130:
            return code
        time.sleep(5)
    print(f"minbert: {message}", file=sys.stderr)
    return code


def one_line(error: Exception, options) -> str:
    """What went wrong, in one line."""
    text = " ".join(str(error).split())
    if out_of_memory(error):
        if options.command not in ("run", "train"):
            return "out of memory: end other programs that use it, or give --device cpu"
        return ("out of memory: give --micro-batch, at most half the batch (the batch of a step stays as large as it is), or "
                "choose a smaller --model; with --resume the run goes on from its last checkpoint")
    if "RANK" in os.environ and ("gloo/" in text or type(error).__name__.startswith("Dist")):
        return "another process of this run has stopped, and this one can't go on alone: its message says why"
    if isinstance(error, ImportError):
        return f"a package is missing ({text}): 'minbert doctor' says what to install"
    if isinstance(error, OSError) and error.strerror:
        return (f"{error.filename or 'the output'}: can't be read or written ({error.strerror}): check its name, "
                "its permissions and the disk")
    if isinstance(error, (ValueError, UserError, OSError)) or type(error).__name__ == "TrainingStopped":
        return text
    return f"unexpected {type(error).__name__}: {text} (run it again with --debug for the whole story)"


def out_of_memory(error: Exception) -> bool:
    """True if the error says that the GPU or the computer has no memory left; each library says it in its own words."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError) or isinstance(error, RuntimeError) and any(word in str(error) for word in words)


# ---- commands ----------------------------------------------------------------------------------------------------

def command_run(options) -> int:
    """Run recipes, one run a seed, and record the results."""
    if bool(options.recipe) == options.all:
        options.usage("name recipes, or give --all")
    if options.all:
        return run_all(options)
    jobs = []                                        # everything is looked at before the first minute is spent
    for name in (one for given in options.recipe for one in recipes.GROUPS.get(given, (given,))):
        recipe = recipes.find(name)
        for seed in options.seeds or recipe.seeds:
            jobs.append(recipes.resolve(name, options.size, weights=options.model, data=options.data, seed=seed,
                                        precision=options.precision, micro_batch=options.micro_batch))
    if len({config.recipe for config in jobs}) > 1 and options.size == "small":      # hours: say so before they begin
        from minbert.run import loop

        guess = duration(sum(recipes.RECIPES[config.recipe].minutes for config in jobs))
        loop.say(jobs[0], f"queue    {len(jobs)} runs ({guess}, less what is done)")
    for config in jobs:
        run_one(with_precision(config, options), options, options.again, replace=options.again or options.resume)
    return 0


def with_precision(config, options):
    """The configuration with "auto" decided: the name of a run holds its precision.  Raises DeviceError."""
    from minbert.run import device

    return dataclasses.replace(config, precision=device.choose(options.device, config.precision).precision)


def directory_of(config, options) -> Path:
    """Where the files of a recipe's run are."""
    return Path(options.runs) / config.recipe / recipes.run_name(config)


def run_one(config, options, again, replace, needed=False) -> None:
    """One run, and its record.

    again: start over, whatever an earlier run left.  replace: the new record takes an old one's place.  needed: run it
    though it is recorded, because another run starts from its weights.
    """
    from minbert.run import loop, parallel, records

    out = directory_of(config, options)
    root = records.results_root(options.root)
    recorded = records.path_of(config, root)
    smoke = config.size == "smoke"

    if not again and (out / "record.json").is_file():
        record = records.read(out / "record.json")
        changed = recipes.differences(record["config"], recipes.public(config))
        if changed:
            raise UserError(f"{out}: holds a run with other settings ({'; '.join(changed)}). Start over by --again")
        if not smoke and parallel.is_first() and not records.existing(config, root):
            records.write(record, root)              # stopped between its last epoch and its record
        loop.say(config, f"{out}: finished already, nothing to do (--again starts over)")
        return
    old = None
    if not smoke:                                    # looked at now, and not after an hour of training
        records.check_place(root)
        old = None if again else records.existing(config, root)
    if options.resume and old and not needed:
        changed = recipes.differences(old["config"], recipes.public(config))
        if not changed:
            loop.say(config, f"{recorded}: recorded already, skipped (--again runs it anew)")
            return
        loop.say(config, f"{recorded}: recorded with other settings ({'; '.join(changed)}), running it again")

    result = train_alone(config, out, options, again)
    say_result(config, result)
    if smoke:
        return
    if old and not replace:
        loop.say(config, f"the book's record of this run says {loop.dev_line(old['best']['dev'])}; it stays as it is "
                         f"(--again replaces it), yours is {out / 'record.json'}")
    elif parallel.is_first():
        loop.say(config, f"recorded in {records.write(result.record, root)}")


def run_all(options) -> int:
    """Every recipe and seed that has no record with today's settings, one after the other, whatever becomes of one."""
    from minbert.run import loop

    every = [with_precision(config, options) for config in all_configs(options)]
    plan = [(config, *state_of(config, options)) for config in every]
    plan = [(config, *needed_after_all(config, state, why, plan, options)) for config, state, why in plan]
    to_do = [job for job in plan if job[1] != "done"]
    guess = duration(sum(recipes.RECIPES[config.recipe].minutes for config, _, _ in to_do)) \
        if options.size == "small" else f"no estimate for size {options.size}"
    loop.say(every[0], f"queue    {len(plan) - len(to_do)} of {len(plan)} runs are done, {len(to_do)} to do ({guess})")
    for config, _, why in to_do:
        loop.say(config, f"         {config.recipe}, seed {config.seed}: {why}")
    failed = []
    for number, (config, state, _) in enumerate(to_do, 1):
        name = f"{config.recipe}, seed {config.seed}"
        loop.say(config, f"\n-------- {number} of {len(to_do)}: {name}")
        try:
            run_one(config, options, again=options.again or state == "stale", replace=state != "needed",
                    needed=state == "needed")
        except Exception as error:                   # the others may do better; Ctrl-C is none of these
            if options.debug or "RANK" in os.environ:        # several processes: they may not all have failed
                raise
            complain(f"{name}: {one_line(error, options)}", 1)
            failed.append(name)
    if failed:
        return complain(f"{len(failed)} of {len(to_do)} runs failed ({'; '.join(failed)}); the messages are above, and the same "
                        "command with --resume tries these again", 1)
    loop.say(every[0], f"all {len(plan)} runs are done")
    return 0


def all_configs(options) -> list:
    """A configuration for each recipe and seed; a recipe comes after the one it needs.

    --data and --model stand in for the recipe's data sets and pre-trained weights.  Where a recipe is about the built-in
    sentences, about weights learned from nothing or taken from another run, these stay.
    """
    names = []
    for recipe in recipes.RECIPES.values():
        names += [name for name in (recipe.needs, recipe.name) if name and name not in names]
    configs = []
    for name in names:
        plain = recipes.resolve(name, options.size)
        model = options.model if plain.weights != "scratch" and not plain.weights.startswith("run:") else None
        own = options.size == "smoke" or recipes.RECIPES[name].settings.get("data") == "builtin"
        data = None if own else options.data
        for seed in options.seeds or recipes.RECIPES[name].seeds:
            configs.append(recipes.resolve(name, options.size, weights=model, data=data, seed=seed,
                                           precision=options.precision, micro_batch=options.micro_batch))
    data = {config.recipe: config.data for config in configs}
    for config in configs:
        needed = recipes.RECIPES[config.recipe].needs
        if needed and data[needed] != config.data:   # else the pre-training would be missed an hour later
            raise UserError(f"--all needs --data here: without it {needed} learns from {data[needed]}, and {config.recipe}, which "
                            f"starts from its weights, asks for {config.data}. Give --data and a directory with the course's "
                            "files, or --data builtin")
    return configs


def state_of(config, options) -> tuple[str, str]:
    """("done" | "missing" | "stale", why) of a run: by its record, or, where none is kept, by its directory."""
    from minbert.run import records

    if options.again:
        return "missing", "--again"
    out = directory_of(config, options)
    old = records.existing(config, records.results_root(options.root)) if config.size != "smoke" else None
    finished = records.read(out / "record.json") if (out / "record.json").is_file() else None
    for record in (old, finished):
        changed = recipes.differences(record["config"], recipes.public(config)) if record else []
        if changed:                                  # its directory is started over only if it holds the old run
            stale = finished is not None and recipes.differences(finished["config"], recipes.public(config))
            return ("stale" if stale else "missing"), f"done with other settings ({'; '.join(changed)})"
    if old or finished and config.size == "smoke":
        return "done", ""
    if finished:
        return "missing", "finished, to be recorded"
    return "missing", "begun, to be resumed" if (out / "last.safetensors").is_file() else "not run yet"


def needed_after_all(config, state, why, plan, options) -> tuple[str, str]:
    """A run that is recorded, but whose weights are not on this machine, is run again if another run starts from them."""
    from minbert.run import build

    for user, its_state, _ in plan:
        if state == "done" and its_state != "done" and recipes.RECIPES[user.recipe].needs == config.recipe:
            try:
                build.pretrained_run(config.recipe, user, options.runs)
            except ValueError:
                return "needed", f"recorded, but {user.recipe} needs its weights"
    return state, why


def duration(minutes: float) -> str:
    """Such as "about 2 h 5 min"."""
    hours, rest = divmod(round(minutes), 60)
    return "about " + (f"{hours} h " if hours else "") + f"{rest} min on a laptop"


def train_alone(config, out: Path, options, again: bool):
    """Train, while no other process trains in the same directory.  Returns the Result."""
    from minbert.run import lock, loop, parallel

    with contextlib.ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            if parallel.is_first():
                stack.enter_context(lock.hold(out / ".lock"))
        except lock.Busy:
            raise UserError(f"{out}: another process is training here: wait for it, or choose another --out (or --runs)"
                            ) from None
        except OSError:
            pass                                     # a place that can't be written: `train` says so
        return loop.train(config, out=out, resume=options.resume and not again, again=again, progress=not options.quiet,
                          device=options.device, timing=options.timing, runs=options.runs, save_every=options.save_every)


def say_result(config, result) -> None:
    """The last lines of a run: the score, and where things are."""
    from minbert.run import loop

    best, times = result.record["best"], result.record["time"]
    shared = "" if times["timing"] == "alone" else ", on a shared machine"
    loop.say(config, f"best epoch {best['epoch']}: {loop.dev_line(best['dev'])}  "
                     f"({times['train_seconds']:.0f} s of training, {times['examples_per_second']:.0f} examples/s{shared})")
    if "confusion" in best["dev"]:
        loop.say(config, confusion_text(best["dev"]["confusion"], result.task.label_names))
    if result.checkpoint:
        loop.say(config, f"checkpoint {result.checkpoint}")


def command_train(options) -> int:
    """Train with settings of one's own."""
    settings = {key: getattr(options, key) for key in HELP if getattr(options, key) is not None}
    if settings.get("encoder", "bert") != "bert" or settings.get("weights") == "scratch" or settings.get("task") == "mlm":
        settings.setdefault("init", "random")        # there is nothing pre-trained for these
        defaults = recipes.SMALL_BERT if settings.get("weights") == "scratch" else dict(hidden_size=128, heads=4)
        for key, value in defaults.items():
            settings.setdefault(key, value)
    config = recipes.make(recipe="train", size="small", **settings)

    from minbert.run import device, loop

    config = dataclasses.replace(config, precision=device.choose(options.device, config.precision).precision)
    out = Path(options.out) if options.out else Path(options.runs) / "train" / recipes.run_name(config)
    result = train_alone(config, out, options, options.again)
    say_result(config, result)
    return 0


def command_predict(options) -> int:
    """Label sentences."""
    sentences = read_sentences(options)

    from minbert.run import build, device
    from minbert.run.tasks import predict
    from minbert.tokens import encode

    directory = options.checkpoint or newest_checkpoint(options.runs)
    model, tokenizer, meta = build.load_classifier(directory)
    arithmetic = device.choose(options.device, options.precision)
    encoded = encode(tokenizer, sentences, meta["config"]["max_length"])
    print(f"model: {directory} ({meta['config']['recipe']}, {meta['config']['size']}, epoch {meta['epoch']})", file=sys.stderr)
    if meta["config"]["size"] == "smoke":
        print("plumbing only: this model has learned nothing, its labels mean nothing", file=sys.stderr)
    if encoded.truncated:
        print(f"{encoded.truncated} of {len(sentences)} sentences were longer than {meta['config']['max_length']} word "
              "pieces and were cut", file=sys.stderr)
    shares = predict(model.to(arithmetic.device), encoded.ids, arithmetic).softmax(dim=-1)      # (N, K)
    names = meta["label_names"]
    for sentence, row in zip(sentences, shares.tolist()):
        best = max(range(len(names)), key=row.__getitem__)
        if options.json:
            print(json.dumps({"sentence": sentence, "label": best, "name": names[best],
                              "probabilities": dict(zip(names, [round(p, 4) for p in row]))}, ensure_ascii=False))
        else:
            print(sentence)
            print(f"  {best} {names[best]}   " + "  ".join(f"{name} {p:.2f}" for name, p in zip(names, row)))
    return 0


def read_sentences(options) -> list[str]:
    """The sentences on the command line, in a file, or on standard input: one a line."""
    if options.sentence and options.file:
        raise UserError("give sentences or --file, not both")
    try:
        if options.sentence:
            lines = options.sentence
        elif options.file:
            lines = Path(options.file).read_text(encoding="utf-8-sig").splitlines()
        else:
            if sys.stdin.isatty():
                print("type sentences, one a line; Ctrl-D ends", file=sys.stderr)
            lines = sys.stdin.read().splitlines()
        "".join(lines).encode()                      # undecodable bytes of the command line are found only here
    except UnicodeError:
        where = options.file or ("the sentence" if options.sentence else "standard input")
        raise UserError(f"{where}: can't be read (not UTF-8): save it with the encoding UTF-8") from None
    except OSError as error:
        raise UserError(f"{options.file}: can't be read ({error.strerror}): name a text file with one sentence a line") from None
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise UserError('nothing to predict: give a sentence, such as minbert predict "What a film."')
    return sentences


def newest_checkpoint(runs) -> Path:
    """The run of first-finetune whose checkpoint is the newest."""
    found = [path for path in Path(runs).glob("first-finetune/*/best-*.safetensors")
             if not path.parent.name.startswith("smoke-")]
    if not found:
        raise UserError(f"no trained model under {Path(runs) / 'first-finetune'}: run 'minbert run first-finetune' first, "
                        "or name a run's directory by --checkpoint")
    return max(found, key=lambda path: path.stat().st_mtime).parent


def command_evaluate(options) -> int:
    """Score a checkpoint on labelled sentences, or answers to questions."""
    if ask.wants_squad(options):
        return ask.command_evaluate_squad(options)

    from minbert.metrics import majority_share
    from minbert.run import build, device
    from minbert.run.batching import tokenise
    from minbert.run.tasks import evaluate, read_split

    directory = options.checkpoint or newest_checkpoint(options.runs)
    model, tokenizer, meta = build.load_classifier(directory)
    dataset = read_split(Config(data=options.data), meta["task"], options.split)
    arithmetic = device.choose(options.device, options.precision)
    tokenised = tokenise(dataset, tokenizer, meta["config"]["max_length"])
    scores = evaluate(model.to(arithmetic.device), tokenised.ids, dataset.labels, dataset.classes, arithmetic)
    prefix = "plumbing only · " if meta["config"]["size"] == "smoke" else ""
    lines = [f"checkpoint  {directory} ({meta['config']['recipe']}, epoch {meta['epoch']})",
             f"data        {recipes.source_name(options.data)}, {options.split}: {len(dataset)} sentences",
             f"accuracy    {scores['accuracy']:.3f}   (always the most frequent class: {majority_share(dataset.labels):.3f})",
             f"macro-F1    {scores['macro_f1']:.3f}",
             f"loss        {scores['loss']:.3f}"]
    lines += [f"note        {note}" for note in (tokenised.note,) if note]
    lines += confusion_text(scores["confusion"], dataset.label_names).splitlines()
    print("\n".join(prefix + line for line in lines))
    if options.out:
        write_predictions(Path(options.out), dataset, scores["predictions"])
        print(f"{prefix}predictions written to {options.out}")
    return 0


def write_predictions(path: Path, dataset, predictions) -> None:
    """A table separated by tabs: id, label, prediction, sentence."""
    import csv
    import io

    from minbert.run.checkpoint import write_whole

    table = io.StringIO(newline="")
    writer = csv.writer(table, delimiter="\t", lineterminator="\n")
    writer.writerow(["id", "label", "prediction", "sentence"])
    writer.writerows(zip(dataset.ids, dataset.labels, predictions, dataset.texts))
    write_whole(path, table.getvalue().encode(), "Make room, or choose another --out")


def confusion_text(matrix, names) -> str:
    """A confusion matrix as text: a row a true class, a column a predicted class."""
    width = max(len(name) for name in names)
    head = " " * (width + 2) + "".join(f"{k:>6}" for k in range(len(names))) + "   (columns: predicted)"
    rows = [f"{name:>{width}} {k}" + "".join(f"{count:>6}" for count in row)
            for k, (name, row) in enumerate(zip(names, matrix))]
    return "\n".join([head, *rows])


def command_report(options) -> int:
    """Tables and curves from the recorded runs."""
    from minbert.run import report

    names = [one for given in options.recipe for one in recipes.GROUPS.get(given, (given,))]
    for name in names:
        recipes.find(name)
    if options.chapter is not None:
        names += [r.name for r in recipes.RECIPES.values() if r.chapter == options.chapter and r.name not in names]
        if not names:
            raise UserError(f"no recipe belongs to chapter {options.chapter}; 'minbert recipes' lists them")
    if "table1" in options.recipe:
        try:
            print(report.formatted(report.table1(options.root), options.format), end="\n\n")
        except RecipeError as error:                 # a recipe was run on several data sets: the tables below show them all
            complain(f"no table of report S0's rows: {error}", 1)
    print(report.table_text(names or None, options.root, options.format))
    if options.curves:
        print(report.save_curves(names or None, options.curves, options.root))
    return 0


def command_recipes(options) -> int:
    """List the recipes."""
    every = list(recipes.RECIPES.values())
    if options.json:
        print(json.dumps([dict(dataclasses.asdict(r), sizes=list(recipes.SIZES)) for r in every], indent=1))
        return 0
    width = max(len(r.name) for r in every)
    print(f"{'chapter':>7}  {'recipe':<{width}}  {'minutes':>7}  what it shows")
    for r in every:
        print(f"{r.chapter:>7}  {r.name:<{width}}  {r.minutes:>7g}  {r.summary}")
    print("\nminutes: for one seed at size small on a laptop, an estimate. Run one with: minbert run RECIPE")
    for name, members in recipes.GROUPS.items():
        print(f"{name}: all rows of report S0's table, {len(members)} recipes. Run them with: minbert run {name}")
    return 0


def command_exercises(options) -> int:
    """List the exercises."""
    from importlib.resources import files

    # The list is plain data, read where the checks read it; importing the checks would take PyTorch along.
    every = json.loads((files("minbert") / "checks" / "exercises.json").read_text(encoding="utf-8"))
    if options.json:
        print(json.dumps(every, indent=1, ensure_ascii=False))
        return 0
    print(f"{'':>5}  {'kind':<11}  {'level':>5}  {'minutes':>7}  exercise")
    for e in every:
        print(f"{e['number']:>5}  {e['kind']:<11}  {e['difficulty']!s:>5}  {e['minutes']:>7}  {e['title']} ({e['id']})")
    return 0


def command_data(options) -> int:
    """Describe the data that a source holds."""
    from minbert.run.data import data_summary, summary_table

    summary = data_summary(options.data)
    print(json.dumps(summary, indent=1, ensure_ascii=False) if options.json else summary_table(summary))
    return 0


def command_doctor(options) -> int:
    """Say what is installed and what is missing."""
    from minbert.run import doctor

    text, facts = doctor.report()
    print(json.dumps(facts, indent=1, ensure_ascii=False) if options.json else text)
    needed = [entry for entry in facts["missing"] if entry["needed"]]
    return 1 if needed or facts["problems"] else 0


# ---- options -----------------------------------------------------------------------------------------------------

def make_parser() -> OneLineParser:
    """The parser of all commands."""
    parser = OneLineParser(
        prog="minbert", description="minBERT, the book: train, look at and use a small BERT.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"minbert {__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def command(name, function, help, examples):
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".",
                                  epilog="examples:\n" + "\n".join(f"  {line}" for line in examples),
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
        sub.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        sub.set_defaults(function=function, command=name)
        return sub

    sub = command("run", command_run, "run an experiment of the book and record its result", [
        "minbert run first-finetune", "minbert run sst-full --data path/to/data --seeds 0 1 2",
        "minbert run --all --resume --data path/to/data", "minbert run sst-full --size full --device cuda",
        "minbert run first-finetune --size smoke     (does it run at all?)"])
    sub.add_argument("recipe", nargs="*", help="a name from 'minbert recipes', or table1: all rows of report S0's table")
    sub.add_argument("--all", action="store_true", help="every recipe and seed that is not recorded with today's settings")
    sub.set_defaults(usage=sub.error)
    sub.add_argument("--size", default="small", help="smoke (seconds, plumbing only), small (a laptop) or full (a GPU)")
    sub.add_argument("--model", help="other weights than the recipe's: minilm, a directory or a hub name")
    sub.add_argument("--data", help="other data than the recipe's: builtin, a directory or hub")
    sub.add_argument("--seeds", nargs="+", type=whole, metavar="N", help="one run a seed (default: the recipe's own)")
    sub.add_argument("--root", help="where results are recorded (default: book/results in the book's source, else results)")
    sub.add_argument("--micro-batch", type=whole, metavar="N", help=HELP["micro_batch"] + " (default: 0)")
    add_precision(sub, None)
    add_running(sub)

    sub = command("train", command_train, "train with settings of your own", [
        "minbert train --epochs 4 --lr 1e-4", "minbert train --data path/to/data --freeze partial --freeze-layers 4",
        "minbert train --encoder bag --lr 3e-3 --epochs 10", "minbert train --model scratch --layers 2 --lr 1e-3"])
    add_settings(sub)
    sub.add_argument("--out", help="the run's directory (default: RUNS/train/…, named after the settings)")
    add_running(sub)

    sub = command("evaluate", command_evaluate, "score a trained model on labelled sentences, or answers to questions", [
        "minbert evaluate", "minbert evaluate --checkpoint runs/sst-full/… --data path/to/data --out predictions.tsv",
        "minbert evaluate squad --data path/to/data",
        "minbert evaluate squad --predictions predictions.json --data path/to/data"])
    ask.add_evaluate_squad(sub)
    add_checkpoint(sub)
    sub.add_argument("--data", default="builtin", help=HELP["data"] + " (default: builtin)")
    sub.add_argument("--split", default="dev", help="train, dev or test (default: dev)")
    sub.add_argument("--out", help="write id, label, prediction and sentence here, separated by tabs")

    sub = command("predict", command_predict, "label sentences with a trained model", [
        'minbert predict "A film that I would gladly see twice."', "minbert predict --file sentences.txt --json",
        "echo What a bore. | minbert predict"])
    sub.add_argument("sentence", nargs="*", help="sentences; without any, one a line from --file or standard input")
    sub.add_argument("--file", help="a text file with one sentence a line")
    sub.add_argument("--json", action="store_true", help="one JSON object a line, for scripts")
    add_checkpoint(sub)

    ask.add_ask(command, add_checkpoint)
    vectors.add_vectors(command, add_precision)

    sub = command("report", command_report, "tables and curves from the recorded runs", [
        "minbert report", "minbert report --chapter 5 --format markdown", "minbert report sst-full --curves curves.svg"])
    sub.add_argument("recipe", nargs="*", help="recipes to show, or table1: report S0's table beside ours (default: all)")
    sub.add_argument("--chapter", type=int, help="the recipes of a chapter")
    sub.add_argument("--format", choices=("text", "markdown", "html"), default="text", help="default: text")
    sub.add_argument("--curves", metavar="FILE.svg", help="also draw the training curves into this file (svg or png)")
    sub.add_argument("--root", help="where the records are")

    for name, function, help in (("recipes", command_recipes, "list the experiments of the book"),
                                 ("exercises", command_exercises, "list the exercises"),
                                 ("doctor", command_doctor, "say what is installed and what is missing, for a bug report")):
        sub = command(name, function, help, [f"minbert {name}", f"minbert {name} --json"])
        sub.add_argument("--json", action="store_true", help="as JSON, for scripts")

    from minbert.run import plan                     # here: it takes its number types from this file

    plan.add_plan(command)

    sub = command("data", command_data, "describe the data: files, sentences, classes, hashes", [
        "minbert data", "minbert data path/to/data"])
    sub.add_argument("data", nargs="?", default="builtin", help="builtin or a directory in the course's format")
    sub.add_argument("--json", action="store_true", help="as JSON, for scripts")
    return parser


def add_settings(sub) -> None:
    """One option for each setting of a Config."""
    group = sub.add_argument_group("settings")
    defaults = Config()
    for setting in dataclasses.fields(Config):
        if setting.name not in HELP:
            continue                                 # the labels: recipe and size
        option = "--model" if setting.name == "weights" else "--" + setting.name.replace("_", "-")
        default = getattr(defaults, setting.name)
        shown = "" if setting.name in SHAPE else f" (default: {default})"
        if isinstance(default, bool):
            group.add_argument(option, dest=setting.name, action="store_true", default=None, help=HELP[setting.name])
            continue
        # `choices` stays out: a misspelt value then gets the message that suggests the nearest.
        group.add_argument(option, dest=setting.name, type={int: whole, float: decimal}.get(type(default), str),
                           metavar=setting.name.upper() if setting.name not in CHOICES else "NAME",
                           help=(HELP[setting.name] + shown).replace("%", "%%"))


SHAPE = ("vocab_size", "layers", "hidden_size", "heads", "intermediate_size")


def add_running(sub) -> None:
    """How a run is done: nothing here alters its result."""
    group = sub.add_argument_group("how it is run")
    state = group.add_mutually_exclusive_group()
    state.add_argument("--resume", action="store_true", help="go on from the last checkpoint; skip what is recorded")
    state.add_argument("--again", action="store_true", help="start over, and replace what an earlier run left")
    group.add_argument("--save-every", type=whole_or_part, default=10, metavar="MINUTES",
                       help="time between two checkpoints within an epoch; 0: only at the end of each epoch (default: 10)")
    group.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    group.add_argument("--runs", default="runs", help="where the runs' directories are (default: runs)")
    group.add_argument("--timing", choices=("shared", "alone"), default="shared",
                       help="alone: nothing else runs on this machine, so the times may be quoted")
    group.add_argument("--quiet", action="store_true", help="no bar and no line an epoch")


def add_checkpoint(sub) -> None:
    """Which trained model."""
    sub.add_argument("--checkpoint", help="a run's directory (default: the newest run of first-finetune)")
    sub.add_argument("--runs", default="runs", help="where to look for it (default: runs)")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    add_precision(sub, "auto")


def add_precision(sub, default) -> None:
    sub.add_argument("--precision", default=default, choices=CHOICES["precision"], help=HELP["precision"])


def whole(text: str) -> int:
    """A whole number that is not negative."""
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return value


def whole_or_part(text: str) -> float:
    """A number of minutes, not negative."""
    value = decimal(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from 0 up")
    return value


def decimal(text: str) -> float:
    """A number such as 3e-5."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number such as 0.1 or 3e-5") from None


if __name__ == "__main__":
    sys.exit(main())
