"""How fast is our training on sentence pairs beside sentence-transformers'?

    python -m benchmarks.pairs --data DIRECTORY [--out FILE.json]
    python -m benchmarks.pairs --quick                 # does it run? its numbers mean nothing

Both train the same Siamese model: MiniLM, mean pooling, the cosine against label / 5 (their CosineSimilarityLoss), batches
of 16 pairs, the same learning rate, schedule, weight decay, clipping, dropout and fused AdamW. Theirs is
SentenceTransformerTrainer as it comes: batches at random, tokenised in each step. Ours: tokenised once, both sides in
one forward pass, pairs of similar length together. Since version 6 theirs also takes both sides in one forward pass.

Before any timing, two gates: the same sentence vectors, and the same ten losses with no dropout.

Whole runs over the same pairs, in the order A-B-...-B-A. A ratio is their time over ours. On a machine that others use,
the clock on the wall says little: the ratios here are of the processor's time, the median over runs with both quartiles,
and the wall's beside them.
"""

import argparse
import gc
import json
import os
import platform
import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.finetune import DECAY, LR, WARMUP, Meter, ratio, summary, timed
from minbert.fast import use_fast
from minbert.optim import linear_schedule, make_optimizer
from minbert.pairs import ApartPairs, CosineScore, pair_loss
from minbert.pretrained import find_weights, load_pretrained
from minbert.run import device, loop, records, recipes
from minbert.run.batching import batches, collate
from minbert.run.checkpoint import write_whole
from minbert.run.data_pairs import load_pairs
from minbert.tokens import encode

BATCH, MAX_LENGTH = 16, 128
# (name, their row, our row, at least)
TARGETS = [("float32", "sentence-transformers fp32", "ours fp32", 1.7),
           ("bfloat16", "sentence-transformers bf16", "ours bf16", 1.7)]


@dataclass
class Pairs:
    """The pairs that both sides train on."""

    weights: str
    first: list
    second: list
    labels: list                                        # 0 to 5
    dropout: float = 0.1
    ids: list = field(default_factory=list)             # of all first sentences, then of all second ones

    def __len__(self):
        return len(self.labels)


def prepare(data="builtin", weights="minilm"):
    """Read the pairs and tokenise them once."""
    read = load_pairs("sts", "train", data)
    _, tokenizer, _ = load_pretrained(weights)
    return Pairs(weights, read.first, read.second, read.labels,
                 ids=encode(tokenizer, [*read.first, *read.second], MAX_LENGTH).ids)


class OurPairs:
    """Our training step, on batches of pairs of similar length."""

    def __init__(self, pairs, precision, total):
        self.pairs, self.arithmetic = pairs, device.choose("cpu", precision)
        encoder, _, _ = load_pretrained(pairs.weights, dropout=pairs.dropout)
        self.model = use_fast(ApartPairs(encoder, CosineScore(), "mean", dropout=0.0)).train()
        self.restart(total)

    def restart(self, total):
        self.total, self.done = total, 0
        self.optimizer = make_optimizer(self.model, "adamw-torch", lr=LR, weight_decay=DECAY)

    def loss(self, batch):
        """What `training_step` asks a task for; nothing counts as a right answer here."""
        scores = self.model(batch["input_ids"], batch["attention_mask"])                     # (B, 1)
        return pair_loss("cosine", scores, batch["labels"]), 0, len(batch["labels"])

    def parts(self, batch, rows):
        """The whole batch at once …"""
        return [batch]

    def shares(self, parts):
        """… so that it counts in full."""
        return [1.0]

    def step(self, indices):
        batch = collate([*indices, *(i + len(self.pairs) for i in indices)], self.pairs.ids)       # (2B, T)
        batch["labels"] = torch.tensor([self.pairs.labels[i] for i in indices])
        loop.set_learning_rate(self.optimizer, linear_schedule(self.done, round(WARMUP * self.total), self.total))
        loss, _, _ = loop.training_step(self, batch, self.optimizer, self.arithmetic, clip=1.0)
        self.done += 1
        return loss

    def order(self, examples, seed):
        """The examples in batches of similar length; the longer side of a pair counts."""
        lengths = [max(len(self.pairs.ids[i]), len(self.pairs.ids[i + len(self.pairs)])) for i in examples]
        return [[examples[i] for i in batch] for batch in batches(lengths, BATCH, seed=seed)]

    def counts(self, order):
        """Examples (pairs), real tokens and positions of some batches."""
        sides = [[len(self.pairs.ids[i + side]) for i in batch for side in (0, len(self.pairs))] for batch in order]
        return {"examples": sum(map(len, order)), "tokens": sum(map(sum, sides)),
                "positions": sum(len(row) * max(row) for row in sides), "flop": 0}


def their_model(pairs):
    """sentence-transformers' model with the same weights, mean pooling, and the dropout of `pairs`."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    rates = {"hidden_dropout_prob": pairs.dropout, "attention_probs_dropout_prob": pairs.dropout}
    transformer = Transformer(str(find_weights(pairs.weights)), max_seq_length=MAX_LENGTH, config_kwargs=rates)
    return SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension(), "mean")], device="cpu")


def their_run(pairs, examples, bf16):
    """One run of their trainer over these pairs: (seconds, processor's seconds, counts of what it went through)."""
    import datasets
    import transformers
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    marks, seen = [], []

    @dataclass
    class Counting(SentenceTransformerDataCollator):
        def __call__(self, features):
            batch = super().__call__(features)
            seen.append([batch[f"{side}_attention_mask"] for side in ("sentence1", "sentence2")])
            return batch

    class Clock(transformers.TrainerCallback):
        def on_epoch_begin(self, *args, **kwargs):
            marks.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *args, **kwargs):
            marks.append((time.perf_counter(), time.process_time()))

    data = datasets.Dataset.from_dict({"sentence1": [pairs.first[i] for i in examples],
                                       "sentence2": [pairs.second[i] for i in examples],
                                       "label": [pairs.labels[i] / 5 for i in examples]})
    model = their_model(pairs)
    with tempfile.TemporaryDirectory() as out:
        arguments = SentenceTransformerTrainingArguments(
            output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=LR, weight_decay=DECAY,
            warmup_steps=WARMUP, use_cpu=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
            seed=0, bf16=bf16, max_grad_norm=1.0,
        )  # fmt: skip
        trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, callbacks=[Clock()],
                                             loss=CosineSimilarityLoss(model), data_collator=Counting(model.preprocess))
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
    (began, cpu_began), (ended, cpu_ended) = marks[0], marks[-1]
    seen = seen[:-(-len(examples) // BATCH)]
    counts = {"examples": len(examples), "tokens": sum(int(mask.sum()) for masks in seen for mask in masks), "flop": 0,
              "positions": sum(2 * len(masks[0]) * max(mask.shape[1] for mask in masks) for masks in seen)}
    return ended - began, cpu_ended - cpu_began, counts


def gates(pairs, steps=10):
    """The proof that both do the same work. Raises SystemExit when they don't."""
    from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss

    from minbert.run.vectors import load_embedder, embed_sentences

    still = replace(pairs, dropout=0.0)
    theirs = their_model(still)
    sentences = (pairs.first + pairs.second)[:48]
    ours, _ = embed_sentences(load_embedder(str(find_weights(pairs.weights))), sentences, max_length=MAX_LENGTH)
    want = theirs.encode(sentences, normalize_embeddings=True)
    found = {"vectors": float(abs(ours - want).max()), "losses": 0.0}

    mine, loss_of = OurPairs(still, "fp32", steps), CosineSimilarityLoss(theirs.train())
    decayed = [p for p in theirs.parameters() if p.ndim > 1]
    level = [p for p in theirs.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": level, "weight_decay": 0.0}],
                                  lr=LR, fused=True)
    order = mine.order(list(range(len(pairs))), seed=1)
    for step in range(steps):
        indices = order[step % len(order)][:8]
        for group in optimizer.param_groups:
            group["lr"] = LR * linear_schedule(step, round(WARMUP * steps), steps)
        sides = [theirs.preprocess([side[i] for i in indices]) for side in (pairs.first, pairs.second)]
        loss = loss_of(sides, torch.tensor([pairs.labels[i] / 5 for i in indices]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        found["losses"] = max(found["losses"], abs(loss.item() - mine.step(indices)))
    refuse(found, {"vectors": 1e-6, "losses": 1e-5})
    return found


def refuse(found, most):
    """Raise SystemExit for differences above the given ones: what does not do the same work is not timed."""
    wrong = [f"{what} differ by {found[what]:.1e}, more than {limit:.0e}" for what, limit in most.items()
             if not found[what] <= limit]
    if wrong:
        raise SystemExit("nothing is timed, because the contenders don't do the same work: " + "; ".join(wrong))


def compare(theirs, ours, same_batches=True):
    """`ratio` in the processor's time: the clock on the wall, which others' work disturbs, stands beside it as "wall"."""
    swapped = [replace(meter, wall=meter.cpu, cpu=meter.wall) for meter in (theirs, ours)]
    found = ratio(*swapped, same_batches=same_batches)
    found["wall"] = found.pop("cpu")
    return found


def speed(meter):
    """One contender's line, with speeds in the processor's time."""
    found = summary(replace(meter, wall=meter.cpu, cpu=meter.wall), peak=1.0)
    return {"wall_seconds": found.pop("cpu_seconds")} | {key: value for key, value in found.items() if key != "utilisation"}


def surroundings(data, weights, note, *packages):
    """Where and with what something was measured."""
    return {"note": note, "data": recipes.source_name(data), "weights": recipes.source_name(weights),
            "threads": torch.get_num_threads(), "cores": os.cpu_count(), "device": device.describe(torch.device("cpu")),
            "system": platform.system(), "load_before": os.getloadavg(), "clock": "processor's time",
            "versions": records.versions() | {name: metadata.version(name) for name in packages}}  # fmt: skip


def judged(targets, result):
    """Each target beside the ratio that was measured."""
    rows = []
    for name, theirs, ours, wanted in targets:
        [found] = [r for r in result["ratios"] if (r["theirs"], r["ours"]) == (theirs, ours)]
        rows.append({"name": name, "target": wanted, **found})
    return rows


def measure(data="builtin", weights="minilm", steps=12, runs=4, note="", say=print):
    """The whole benchmark as one dictionary: what `--out` writes. `steps`: of a run."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result = surroundings(data, weights, note, "transformers", "sentence-transformers", "accelerate")
    pairs = prepare(data, weights)
    result |= {"command": f"python -m benchmarks.pairs --data {recipes.source_name(data)} --steps {steps} --runs {runs}",
               "batch_size": BATCH, "steps": steps, "runs": runs, "gates": gates(pairs)}
    say(f"gates: vectors {result['gates']['vectors']:.0e}, losses {result['gates']['losses']:.0e}")
    ours = {f"ours {precision}": OurPairs(pairs, precision, steps) for precision in ("fp32", "bf16")}
    theirs = {"sentence-transformers fp32": False, "sentence-transformers bf16": True}
    meters = {name: Meter() for name in (*theirs, *ours)}
    shuffled = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(7)).tolist()
    size = min(steps * BATCH, len(shuffled))
    for bf16 in theirs.values():                        # warm-up, apart
        their_run(pairs, shuffled[:2 * BATCH], bf16)
    for contender in ours.values():
        for indices in contender.order(shuffled[:2 * BATCH], 0):
            contender.step(indices)
    for run in range(runs):
        start = (run + 1) * size % max(1, len(shuffled) - size + 1)
        examples = shuffled[start:start + size]
        for name in list(meters) if run % 2 == 0 else list(meters)[::-1]:
            gc.collect()
            if name in theirs:
                meters[name].add(*their_run(pairs, examples, theirs[name]))
            else:
                contender = ours[name]
                contender.restart(steps)
                order = contender.order(examples, run)
                wall, cpu = timed(lambda: [contender.step(indices) for indices in order])
                meters[name].add(wall, cpu, contender.counts(order))
        say(f"run {run + 1} of {runs}: " + ", ".join(f"{name} {meter.examples[-1] / meter.cpu[-1]:.0f} pairs/s"
                                                      for name, meter in meters.items()))
    result["speeds"] = {name: speed(meter) for name, meter in meters.items()}
    result["ratios"] = [{"theirs": a, "ours": b, **compare(meters[a], meters[b])} for a in theirs for b in ours]
    result["load_after"] = os.getloadavg()
    result["targets"] = judged(TARGETS, result)
    return result


def report(result):
    """The result as lines of text."""
    lines = [f"{result['device']['name']}, {result['threads']} thread(s), load {result['load_before'][0]:.1f} before and "
             f"{result['load_after'][0]:.1f} after; all in the processor's time"]
    lines += [f"  {name:36}{s['examples_per_second']:7.1f} examples/s {s['tokens_per_second']:8.0f} tokens/s "
              f"{s['padding']:6.1%} padding" for name, s in result["speeds"].items()]
    lines += [f"  {r['theirs'] + ' / ' + r['ours']:58}{r['median']:5.2f} "
              + (f"[{r['low']:.2f}, {r['high']:.2f}]" if r["low"] else "(over the whole)") + f"   wall {r['wall']:.2f}"
              for r in result["ratios"]]
    return "\n".join(lines + [f"  {row['name']}: {row['median']:.2f}, at least {row['target']}: "
                              f"{'reached' if row['median'] >= row['target'] else 'missed'}" for row in result["targets"]])


def parser_of(name, text, steps, runs):
    """The options that this benchmark and that of LoRA share."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=text,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="builtin", help="builtin, or a directory in the course's format")
    parser.add_argument("--weights", default="minilm")
    parser.add_argument("--steps", type=int, default=steps, help=f"timed steps of a run ({steps})")
    parser.add_argument("--note", default="", help="what the reader must know of the machine; goes into the file")
    parser.add_argument("--quick", action="store_true", help="a few steps: the numbers mean nothing")
    parser.add_argument("--out", type=Path, help="write the result here as JSON")
    if runs:
        parser.add_argument("--runs", type=int, default=runs, help=f"runs of each contender ({runs})")
    return parser


def main():
    options = parser_of("pairs", __doc__, 12, 4).parse_args()
    torch.set_num_threads(1)
    result = measure(options.data, options.weights, *((2, 2) if options.quick else (options.steps, options.runs)),
                     note=options.note)
    print(report(result))
    if options.out:
        write_whole(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
