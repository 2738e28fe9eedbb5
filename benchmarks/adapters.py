"""How fast is our LoRA beside peft's, and beside our own full fine-tuning?

    python -m benchmarks.adapters --data DIRECTORY [--out FILE.json]
    python -m benchmarks.adapters --quick              # does it run? its numbers mean nothing

LoRA of rank 16 on query, key, value and output of each attention, and the head, on the SST task: a plain loop around
Hugging Face's classifier with peft's adapters, and ours. Same weights, same first A, dropout, decay, schedule, clipping,
fused AdamW, float32.

Before any timing, two gates: the same scores with the same A and B, and the same ten losses with no dropout.

Batch by batch in turn, all contenders over the same sentences: peft and a full fine-tuning of Hugging Face's model with
batches at random and with our buckets; our full fine-tuning; ours with LoRA in the plain form of `minbert.lora` and in
the fast one of `minbert.fast`. A ratio is their time over ours, in the processor's time as in benchmarks/pairs.py.
"""

import itertools
import json
import os
from dataclasses import replace

import torch

from benchmarks.finetune import DECAY, FP32, LR, Meter, Ours, PlainLoop, counts_of, order_of, timed, window
from benchmarks.finetune import prepare as prepare_sst
from benchmarks.pairs import compare, parser_of, refuse, speed, surroundings
from minbert.fast import use_fast_lora
from minbert.lora import adapted, add_lora, use_task
from minbert.pretrained import hf_name
from minbert.run import recipes
from minbert.run.batching import batches, collate
from minbert.run.checkpoint import write_whole

RANK = 16
# contender → (bucket, which loop)
CONTENDERS = {
    "Hugging Face full, random": 1, "peft, random": 1, "peft, buckets": 50, "ours full": 50, "ours LoRA, plain form": 50,
    "ours LoRA": 50,
}
# (name, their row, our row, batch size → at least)
TARGETS = [
    ("LoRA, against peft with batches at random", "peft, random", "ours LoRA", {8: 1.6, 32: 2.1}),
    ("LoRA, against peft with our buckets", "peft, buckets", "ours LoRA", {8: 1.0, 32: 1.0}),
    ("LoRA, against our full fine-tuning", "ours full", "ours LoRA", {8: 1.0, 32: 1.0}),
]


class OurLoRA(Ours):
    """Our training step with adapters."""

    def __init__(self, setting, batch_size, total, fast=True):
        super().__init__(setting, batch_size, FP32, total)
        torch.manual_seed(1)                            # the same first A for every contender
        add_lora(self.task.model.encoder, ["sst"], RANK, alpha=RANK)
        use_task(self.task.model.encoder, "sst")
        if fast:
            use_fast_lora(self.task.model)
        self.restart(total)


class PeftLoop(PlainLoop):
    """The plain loop, around a model that peft has adapted."""

    def __init__(self, setting, total, first):
        import peft

        super().__init__(setting, total)
        config = peft.LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0.0, modules_to_save=["classifier"],
                                 target_modules=["query", "key", "value", "attention.output.dense"])
        self.model = peft.get_peft_model(self.model, config).train()
        copy_adapters(first, self.model)
        learning = [p for p in self.model.parameters() if p.requires_grad]
        groups = [{"params": [p for p in learning if (p.ndim > 1) == decayed], "weight_decay": decay}
                  for decayed, decay in ((True, DECAY), (False, 0.0))]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, fused=True)


def copy_adapters(ours, model):
    """Give peft's model the A and B of one of our contenders."""
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, layer in adapted(ours.task.model.encoder):
            place = "base_model.model.bert." + hf_name(name + ".weight").removesuffix(".weight")
            theirs[place + ".lora_A.default.weight"].copy_(layer.A["sst"])
            theirs[place + ".lora_B.default.weight"].copy_(layer.B["sst"])


def gates(setting, steps=10):
    """The proof that the contenders do the same work. Raises SystemExit when they don't."""
    still = replace(setting, dropout=0.0)
    ours = [OurLoRA(still, 8, steps, fast) for fast in (True, False)]
    theirs = PeftLoop(still, steps, ours[0])
    found = {"logits": 0.0, "losses": 0.0}
    order = batches([len(row) for row in setting.ids], 8, seed=1)
    for indices in itertools.islice(itertools.cycle(order), steps):
        want = theirs.step(indices)
        found["losses"] = max(found["losses"], *(abs(contender.step(indices) - want) for contender in ours))
    batch = collate(range(min(32, len(setting.dev_ids))), setting.dev_ids)
    with torch.no_grad():
        for contender in ours:                          # after training: B is no longer zero
            copy_adapters(contender, theirs.model)
            head = contender.task.model.head
            saved = theirs.model.base_model.model.classifier.modules_to_save["default"]
            saved.weight.copy_(head.weight)
            saved.bias.copy_(head.bias)
            difference = contender.task.model.eval()(batch["input_ids"], batch["attention_mask"]) \
                - theirs.model.eval()(**batch).logits
            found["logits"] = max(found["logits"], difference.abs().max().item())
    refuse(found, {"logits": 1e-6, "losses": 1e-5})
    return found


def measure_steps(setting, batch_size, steps, say, warmup=2):
    """Batch by batch in turn, all over the same sentences. Returns {contender: Meter}, {contender: numbers trained}."""
    total = steps + warmup
    fast = OurLoRA(setting, batch_size, total)
    contenders = {
        "Hugging Face full, random": PlainLoop(setting, total),
        "peft, random": PeftLoop(setting, total, fast), "peft, buckets": PeftLoop(setting, total, fast),
        "ours full": Ours(setting, batch_size, FP32, total),
        "ours LoRA, plain form": OurLoRA(setting, batch_size, total, fast=False), "ours LoRA": fast,
    }  # fmt: skip
    examples = window(setting, 1, steps * batch_size)
    orders = {name: order_of(setting, examples, batch_size, bucket, 0) for name, bucket in CONTENDERS.items()}
    for name, contender in contenders.items():          # warm-up, apart
        for indices in orders[name][:warmup]:
            contender.step(indices)
    meters = {name: Meter() for name in CONTENDERS}
    for step in range(len(orders["ours LoRA"])):
        for name in list(contenders) if step % 2 == 0 else list(contenders)[::-1]:
            wall, cpu = timed(contenders[name].step, orders[name][step])
            meters[name].add(wall, cpu, counts_of(setting, setting.ids, [orders[name][step]]))
    say(f"batch {batch_size}: " + ", ".join(f"{name} {sum(meter.examples) / sum(meter.cpu):.0f}/s"
                                            for name, meter in meters.items()))
    models = {name: getattr(c, "model", None) or c.task.model for name, c in contenders.items()}
    return meters, {name: sum(p.numel() for p in model.parameters() if p.requires_grad) for name, model in models.items()}


def measure(data="builtin", weights="minilm", steps=(25, 15), batch_sizes=(8, 32), note="", say=print):
    """The whole benchmark as one dictionary: what `--out` writes."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    result = surroundings(data, weights, note, "transformers", "peft")
    setting = prepare_sst(data, weights)
    result |= {"command": f"python -m benchmarks.adapters --data {recipes.source_name(data)} --steps {steps[0]}",
               "steps": list(steps), "rank": RANK, "gates": gates(setting), "batch_sizes": {}}
    say(f"gates: logits {result['gates']['logits']:.0e}, losses {result['gates']['losses']:.0e}")
    pairs = [(a, "ours LoRA") for a in CONTENDERS if a != "ours LoRA"]
    pairs += [("Hugging Face full, random", b) for b in ("peft, random", "peft, buckets")]
    for size, count in zip(batch_sizes, steps, strict=True):
        meters, trained = measure_steps(setting, size, count, say)
        result["trained"] = trained
        result["batch_sizes"][str(size)] = {
            "speeds": {name: speed(meter) for name, meter in meters.items()},
            "ratios": [{"theirs": a, "ours": b, **compare(meters[a], meters[b], CONTENDERS[a] == CONTENDERS[b])}
                       for a, b in pairs]}
    result["load_after"] = os.getloadavg()
    result["targets"] = judge(result)
    return result


def judge(result):
    """Each target that the measured batch sizes have, beside the ratio that was measured."""
    rows = []
    for name, theirs, ours, wanted in TARGETS:
        for size, entry in result["batch_sizes"].items():
            if int(size) in wanted:
                [found] = [r for r in entry["ratios"] if (r["theirs"], r["ours"]) == (theirs, ours)]
                rows.append({"name": name, "batch_size": int(size), "target": wanted[int(size)], **found})
    return rows


def report(result):
    """The result as lines of text."""
    lines = [f"{result['device']['name']}, {result['threads']} thread(s), load {result['load_before'][0]:.1f} before and "
             f"{result['load_after'][0]:.1f} after; all in the processor's time"]
    for size, entry in result["batch_sizes"].items():
        lines.append(f"batch {size}")
        lines += [f"  {name:28}{s['examples_per_second']:7.1f} examples/s {s['padding']:6.1%} padding"
                  for name, s in entry["speeds"].items()]
        lines += [f"  {r['theirs'] + ' / ' + r['ours']:50}{r['median']:5.2f} "
                  + (f"[{r['low']:.2f}, {r['high']:.2f}]" if r["low"] else "(over the whole)") + f"   wall {r['wall']:.2f}"
                  for r in entry["ratios"]]
    return "\n".join(lines + [f"  {row['name']}, batch {row['batch_size']}: {row['median']:.2f}, at least {row['target']}: "
                              f"{'reached' if row['median'] >= row['target'] else 'missed'}" for row in result["targets"]])


def main():
    parser = parser_of("adapters", __doc__, 25, 0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    # A batch of 32 takes longer: fewer of them.
    steps, sizes = ((2,), (8,)) if options.quick else ((options.steps, max(2, options.steps * 3 // 5)), (8, 32))
    result = measure(options.data, options.weights, steps, sizes, note=options.note)
    print(report(result))
    if options.out:
        write_whole(options.out, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
