"""Does our fine-tuning, with dropout, reach the scores that Hugging Face's reaches? Five seeds each.

    python -m benchmarks.agreement --data DIRECTORY [--out FILE.json]

Without dropout the two are equal step by step (`benchmarks.equality`). With dropout they draw different random numbers,
so only the distributions of their scores can be compared. Ours are the recorded runs of one recipe. Theirs are trained
here: `transformers.BertForSequenceClassification`, PyTorch's own clipping, fused AdamW and learning-rate scheduler, on
the same batches in the same order, the best epoch on dev kept as in our runs.

The two agree when |mean - mean'| <= 2 * sqrt(s^2 / n + s'^2 / n'), two standard errors of the difference.
The result is written whatever it is. It is saved after each seed; the same command goes on where it was stopped.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import torch
from tqdm import tqdm

from minbert.pretrained import find_weights
from minbert.run import records, recipes
from minbert.run.batching import batches, collate, restore, tokenise
from minbert.run.checkpoint import write_whole
from minbert.run.data import load_task
from minbert.tokens import load_tokenizer


def hugging_face_run(config, seed, progress=True):
    """Fine-tune Hugging Face's classifier as `config` says. Returns the dev accuracy after each epoch."""
    import transformers

    torch.manual_seed(seed)
    train, dev = load_task(config.task, "train", config.data), load_task(config.task, "dev", config.data)
    path = find_weights(config.weights)
    tokenizer = load_tokenizer(path)
    train_ids, dev_ids = (tokenise(part, tokenizer, config.max_length).ids for part in (train, dev))
    model = transformers.BertForSequenceClassification.from_pretrained(
        path, num_labels=train.classes, hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout, classifier_dropout=config.head_dropout, attn_implementation="eager",
    )  # fmt: skip
    decayed = [p for p in model.parameters() if p.ndim > 1]
    level = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": level, "weight_decay": 0.0}],
        lr=config.lr, fused=True,
    )  # fmt: skip
    lengths = [len(ids) for ids in train_ids]
    steps = math.ceil(len(lengths) / config.batch_size)
    if config.steps_per_epoch:
        steps = min(steps, config.steps_per_epoch)
    total = steps * config.epochs
    scheduler = transformers.get_linear_schedule_with_warmup(optimizer, round(config.warmup * total), total)
    scores = []
    for epoch in range(config.epochs):
        model.train()
        order = batches(lengths, config.batch_size, seed, epoch, bucket=config.bucket)[:steps]
        for indices in tqdm(order, desc=f"Hugging Face, seed {seed}, epoch {epoch + 1}", leave=False,
                            disable=None if progress else True):  # fmt: skip
            batch = collate(indices, train_ids, train.labels)
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            scheduler.step()
        scores.append(accuracy(model, dev_ids, dev.labels))
    return scores


@torch.no_grad()
def accuracy(model, ids, labels):
    """The share of right answers on the dev set."""
    model.eval()
    order = batches([len(row) for row in ids], 64, shuffle=False)
    found = [answer for rows in order for answer in model(**collate(rows, ids)).logits.argmax(-1).tolist()]
    return sum(a == b for a, b in zip(restore(found, order), labels)) / len(labels)


def compare(ours, theirs):
    """Means, standard deviations, the difference of the means and its bound of two standard errors."""
    bound = 2 * math.sqrt(statistics.variance(ours) / len(ours) + statistics.variance(theirs) / len(theirs))
    difference = statistics.mean(ours) - statistics.mean(theirs)
    return {
        "ours": {"mean": statistics.mean(ours), "sd": statistics.stdev(ours), "values": ours},
        "hugging_face": {"mean": statistics.mean(theirs), "sd": statistics.stdev(theirs), "values": theirs},
        "difference": difference, "bound": bound, "agree": abs(difference) <= bound,
    }  # fmt: skip


def recorded(recipe, data, seeds):
    """Our recorded dev accuracies (best epoch) and their configuration. Raises SystemExit when a seed is missing."""
    values, config = [], None
    for seed in seeds:
        wanted = recipes.resolve(recipe, "small", data=data, seed=seed, precision="fp32")
        path = records.path_of(wanted, records.results_root())
        if not path.is_file():
            raise SystemExit(f"{path.name} is not recorded: minbert run {recipe} --size small --data {data} --seeds {seed}")
        record = json.loads(path.read_text(encoding="utf-8"))
        changed = recipes.differences(record["config"], recipes.public(wanted))
        if changed:
            raise SystemExit(f"{path.name} was recorded with other settings: {'; '.join(changed)}")
        values.append(record["best"]["dev"]["accuracy"])
        config = wanted
    return values, config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a directory in the course's format: the one the records were made with")
    parser.add_argument("--recipe", default="sst-batch-32")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("book/benchmarks/agreement.json"))
    parser.add_argument("--train-only", action="store_true", help="train Hugging Face's seeds, compare another time")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("a spread needs at least two seeds")
    config = recipes.resolve(options.recipe, "small", data=options.data, precision="fp32")
    if not options.train_only:
        recorded(options.recipe, options.data, options.seeds)          # said before hours are spent, not after
    result = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    settings = {key: value for key, value in recipes.public(config).items() if key not in ("seed", "size")}
    changed = recipes.differences(result["config"], settings) if result else []
    if changed:
        raise SystemExit(f"{options.out}: holds a comparison with other settings ({'; '.join(changed)}); "
                         "move it away, or name another --out")
    runs = result.get("hugging_face_runs", {})
    for seed in options.seeds:
        if str(seed) not in runs:
            runs[str(seed)] = hugging_face_run(config, seed)
            write(options.out, {"config": settings, "hugging_face_runs": runs})
        print(f"Hugging Face, seed {seed}: dev accuracy by epoch {', '.join(f'{score:.3f}' for score in runs[str(seed)])}")
    if options.train_only:
        return
    ours, _ = recorded(options.recipe, options.data, options.seeds)
    found = compare(ours, [max(runs[str(seed)]) for seed in options.seeds])
    write(options.out, {"config": settings, "seeds": options.seeds, **found, "hugging_face_runs": runs})
    for name in ("ours", "hugging_face"):
        print(f"{name:13} {found[name]['mean']:.4f} ± {found[name]['sd']:.4f} (n={len(options.seeds)})")
    print(f"difference    {found['difference']:+.4f}, bound ±{found['bound']:.4f}: "
          f"{'they agree' if found['agree'] else 'they do NOT agree'}")


def write(path, result):
    import transformers

    result |= {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
