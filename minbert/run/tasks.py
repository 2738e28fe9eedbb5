"""What is learned: the examples, the loss and the score of a task.

A task holds its model, its training examples and its development examples, and answers two questions:
`loss(batch)`: how wrong is the model on this batch?  `evaluate(arithmetic)`: how good is it on the dev set?
`order(epoch)` says which examples come together in each step of an epoch, and `batch(indices, step)` makes the batch; what is
random in either comes from the seed and these numbers alone, so that a resumed run sees the same.  The training loop
(loop.py) needs to know little else about it.

Here are tasks of single sentences and of pre-training; pairs are in pair_task.py, several tasks in many.py.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, mse_loss

from minbert.classify import freeze
from minbert.fast import use_cls_only, use_fast, use_fast_lora, use_occurring_rows
from minbert.lora import adapted, save_adapter, use_task
from minbert.metrics import accuracy, confusion_matrix, macro_f1, majority_share, pearson
from minbert.mlm import MaskedLanguageModel, mask_tokens
from minbert.multitask import freeze_head
from minbert.pretrained import save_pretrained
from minbert.run import build, checkpoint, parallel
from minbert.run.batching import batches, collate, filled_batches, restore, tokenise
from minbert.run.data import DataError, load_task, load_texts
from minbert.run.recipes import PAIRS, Config, source_name, tasks_of
from minbert.tokens import MASK, SPECIAL


@torch.no_grad()        # not inference_mode: there, autocast would turn the weights into 16 bits again in each batch
def predict(model, ids: list[list[int]], arithmetic, batch_size: int = 64) -> torch.Tensor:
    """The logits (N, K), float32, of a sentence classifier for N tokenised sentences, in the order given.

    Sentences of similar length go through together, which wastes the least on padding; see `filled_batches` in batching.py.
    The model is left in the mode (training or evaluation) in which it came.
    """
    was_training = model.training
    model.eval()
    batch_list = filled_batches([len(row) for row in ids], batch_size)
    rows = []
    with arithmetic.autocast():                      # around all batches: it keeps the weights' 16 bits
        for indices in batch_list:
            batch = arithmetic.move(collate(indices, ids))
            rows.extend(model(batch["input_ids"], batch["attention_mask"]).float().cpu())    # (B, K)
    model.train(was_training)
    return torch.stack(restore(rows, batch_list))                                            # (N, K)


def evaluate(model, ids, labels, classes: int, arithmetic, batch_size: int = 64) -> dict:
    """The scores of a classifier: loss, accuracy, macro_f1, confusion (rows true, columns predicted), predictions."""
    logits = predict(model, ids, arithmetic, batch_size)                                     # (N, K)
    predictions = logits.argmax(dim=-1).tolist()
    return {
        "loss": cross_entropy(logits, torch.tensor(labels)).item(),
        "accuracy": accuracy(predictions, labels),
        "macro_f1": macro_f1(predictions, labels, classes),
        "confusion": confusion_matrix(predictions, labels, classes).tolist(),
        "predictions": predictions,
    }


class BaseTask:
    """What is the same for most tasks."""

    name: str                      # one of recipes.TASKS
    score = "accuracy"             # which of the metrics chooses the best checkpoint: higher is better
    unit = "sentences"
    first_score = True             # the untrained model is scored too
    counts_right = True            # a training answer is right or wrong, so that there is a training accuracy

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each training example, by which batches are dealt."""
        return [len(ids) for ids in self.train_ids]

    def pieces(self) -> list[list[int]]:
        """The tokenised training texts."""
        return self.train_ids

    def steps(self, epoch: int) -> int:
        """The number of steps of an epoch, from 0: all batches, or as many as the configuration allows."""
        every = math.ceil(len(self.train_ids) / self.config.batch_size)
        return min(every, self.config.steps_per_epoch or every)

    def order(self, epoch: int) -> list:
        """The steps of an epoch, from 0, each as the list of the examples in it.  It depends on seed and epoch alone."""
        config = self.config
        return batches(self.lengths, config.batch_size, config.seed, epoch, bucket=config.bucket)[:self.steps(epoch)]

    def size(self, indices) -> int:
        """The number of examples in a step."""
        return len(indices)

    def examples(self, indices) -> list[str]:
        """The ids of the examples in a step."""
        return [str(self.example_ids[i]) for i in indices]

    def answers(self, batch: dict) -> int:
        """Over how many answers the loss of this batch is a mean."""
        return len(batch["labels"])

    def part(self, batch: dict, chosen: slice) -> dict | None:
        """Some examples of a batch, see `some_rows`."""
        return some_rows(batch, chosen)

    def parts(self, batch: dict, rows: int) -> list[dict]:
        """The batch in parts of at most `rows` examples, see `micro_batches`."""
        return micro_batches(batch, rows)

    def shares(self, parts: list[dict]) -> list[float]:
        """What the mean loss of each part counts: its share of the answers."""
        if len(parts) == 1:
            return [1.0]
        answers = [self.answers(part) for part in parts]
        return [count / sum(answers) for count in answers]

    def finish(self, directory) -> None:
        """What is kept beyond the checkpoint: the adapters, if there are any, each in a file of its own."""
        layers = adapted(self.model)
        for name in list(layers[0][1].A) if layers else []:
            path = Path(directory) / f"adapter-{name}.safetensors"
            with checkpoint.writing(path):
                save_adapter(self.model.encoder, name, path)


def micro_batches(batch: dict, rows: int) -> list[dict]:
    """The batch in parts of at most `rows` rows; columns that are padding in the whole part are cut off.  0: one part."""
    mask = batch["attention_mask"]                                                           # (B, T)
    if not rows or rows >= len(mask):
        return [batch]
    return [some_rows(batch, slice(first, first + rows)) for first in range(0, len(mask), rows)]


def some_rows(batch: dict, chosen: slice) -> dict | None:
    """Some rows of a batch; columns that are padding in all of them are cut off.  None if that is no row."""
    mask = batch["attention_mask"]                                                           # (B, T)
    if not len(mask[chosen]):
        return None
    longest = int(mask[chosen].sum(dim=1).max())
    return {key: tensor[chosen, :longest] if tensor.shape == mask.shape else tensor[chosen] for key, tensor in batch.items()}


def prepare(config: Config, model, names, ids, adapter=None):
    """Freeze, adapt and speed up a task's model, as the configuration says.

    names: the tasks that the model is trained on.  ids: all tokenised training sentences.  adapter: the task whose adapter
    is used; None leaves that for later.
    """
    use_fast(model, config.attention == "fast")
    if config.last_layer == "cls":
        use_cls_only(model)
    if config.embedding_rows == "occurring":
        use_occurring_rows(model, ids)
    if config.freeze_task:
        freeze_head(model, config.freeze_task)
    else:
        freeze(model, config.freeze, config.freeze_layers)
    if config.adapt == "lora":     # the encoder learns through its adapters, so it keeps its dropout
        build.adapt(model.encoder, config, names)
        if config.attention == "fast":
            use_fast_lora(model)
        if adapter:
            use_task(model.encoder, adapter)


class SentenceTask(BaseTask):
    """A sentence in, one of K classes out; the score is accuracy on the dev set."""

    first_score = False            # its records were made without

    def __init__(self, config: Config, name: str, start, train, dev):
        self.config, self.name, self.start = config, name, start
        self.classes, self.label_names = train.classes, train.label_names
        self.model = build.model_on(start.encoder, config, name, self.classes)
        self.tokenizer = start.tokenizer
        tokenised = tokenise(train, self.tokenizer, config.max_length)
        tokenised_dev = tokenise(dev, self.tokenizer, config.max_length)
        self.train_ids, self.train_labels = tokenised.ids, train.labels
        self.dev_ids, self.dev_labels, self.example_ids = tokenised_dev.ids, dev.labels, train.ids
        self.notes = [note for note in (tokenised.note, tokenised_dev.note) if note]
        self.data = {"name": source_name(config.data), "train": described(train), "dev": described(dev),
                     "dev_majority": majority_share(dev.labels)}

    def batch(self, indices, step: int) -> dict:
        """input_ids (B, T), attention_mask (B, T) and labels (B,) of the training examples with these indices."""
        return collate(indices, self.train_ids, self.train_labels)

    def loss(self, batch: dict):
        """(mean loss, right answers, answers) of the model on a batch that is on the model's device."""
        logits = self.model(batch["input_ids"], batch["attention_mask"])                     # (B, K)
        right = (logits.detach().argmax(dim=-1) == batch["labels"]).sum()
        return cross_entropy(logits.float(), batch["labels"]), right, len(batch["labels"])

    def evaluate(self, arithmetic) -> dict:
        """Scores on the dev set, see `evaluate`."""
        return evaluate(self.model, self.dev_ids, self.dev_labels, self.classes, arithmetic)

    def about(self) -> dict:
        """What a checkpoint must know to rebuild the model."""
        return {"shape": self.start.shape, "label_names": list(self.label_names)}


class ScoreTask(SentenceTask):
    """A sentence in, a number out: its sentiment from 0 to 1, by mean squared error (report S3's second head)."""

    score = "pearson"
    first_score = True
    counts_right = False

    def batch(self, indices, step: int) -> dict:
        """input_ids (B, T), attention_mask (B, T) and labels (B,), from 0 to 1."""
        batch = super().batch(indices, step)
        return {**batch, "labels": batch["labels"] / (self.classes - 1)}

    def loss(self, batch: dict):
        """(mean squared error, 0, numbers): no answer is right or wrong."""
        outputs = self.model(batch["input_ids"], batch["attention_mask"])                    # (B, 1)
        return mse_loss(outputs[:, 0].float(), batch["labels"]), 0, len(batch["labels"])

    def evaluate(self, arithmetic) -> dict:
        """Pearson's r and the mean squared error on the dev set."""
        said = predict(self.model, self.dev_ids, arithmetic)[:, 0]                           # (N,)
        labels = torch.tensor(self.dev_labels) / (self.classes - 1)
        return {"loss": mse_loss(said, labels).item(), **correlation(said.tolist(), labels.tolist()),
                "predictions": said.tolist()}


def correlation(said, labels) -> dict:
    """Pearson's r for a record.  Where there is none, because every prediction is the same, it counts as 0, and is said."""
    r = pearson(said, labels)
    return {"pearson": 0.0, "constant": True} if math.isnan(r) else {"pearson": r}


class MaskedTask(BaseTask):
    """Word pieces are hidden, the model guesses them; the score is minus the loss on the dev set's hidden pieces."""

    name = "mlm"
    score = "minus_loss"
    unit = "texts"
    first_score = False

    def __init__(self, config: Config, runs="runs"):
        train, dev = load_texts(config.data, "train"), load_texts(config.data, "dev")
        held_out = set(dev.texts)
        train.texts = [text for text in train.texts if text not in held_out]
        if not train.texts:
            raise DataError(source_name(config.data), "no text is left to train on without those of the dev split",
                            "name a directory with more text")
        self.config = config
        self.start = build.start(config, train.texts, runs)
        self.tokenizer = self.start.tokenizer
        self.model = MaskedLanguageModel(self.start.encoder)
        use_fast(self.model, config.attention == "fast")
        self.vocab_size = self.start.shape["vocab_size"]
        self.special = [self.tokenizer.token_to_id(token) for token in SPECIAL]
        self.mask_id = self.tokenizer.token_to_id(MASK)
        tokenised = tokenise(train, self.tokenizer, config.max_length)
        tokenised_dev = tokenise(dev, self.tokenizer, config.max_length)
        self.train_ids, dev_ids = self._with_pieces(tokenised.ids), self._with_pieces(tokenised_dev.ids)
        self.example_ids = [str(i) for i in range(len(self.train_ids))]
        # The same dev pieces are hidden in every epoch and for every seed: scores can be compared.
        dev_order = batches([len(row) for row in dev_ids], 64, shuffle=False)
        self.dev_batches = [self._masked(collate(rows, dev_ids), number) for number, rows in enumerate(dev_order)]
        self.notes = [note for note in (tokenised.note, tokenised_dev.note) if note]
        self.data = {"name": source_name(config.data), "train": {"texts": len(train.texts), "files": train.files},
                     "dev": {"texts": len(dev.texts), "files": dev.files}, "unigram_baseline": self.baseline()}

    def _with_pieces(self, ids):
        """The texts that have something to hide: a piece that is not special.  [UNK] counts as special."""
        special = set(self.special)
        kept = [row for row in ids if not special.issuperset(row)]
        if not kept:
            raise DataError(source_name(self.config.data), "its texts have no known word piece",
                            "use a vocabulary of this language, or other data")
        return kept

    def _masked(self, batch: dict, number: int) -> dict:
        """The batch with some pieces hidden; which, depends on `number` alone, so that a resumed run hides the same."""
        generator = torch.Generator().manual_seed(number)
        labels = torch.full_like(batch["input_ids"], -100)
        while not (labels != -100).any():            # a very short batch can come out with nothing hidden: draw again
            masked, labels = mask_tokens(batch["input_ids"], self.special, self.mask_id, self.vocab_size, generator,
                                         self.config.mask_rate)
        return {"input_ids": masked, "attention_mask": batch["attention_mask"], "labels": labels}

    def batch(self, indices, step: int) -> dict:
        """input_ids (B, T) with pieces hidden, attention_mask (B, T), and labels (B, T): -100 where nothing is hidden."""
        return self._masked(collate(indices, self.train_ids), (self.config.seed + 1) * 10**9 + step)

    def answers(self, batch: dict) -> int:
        """One for each hidden piece."""
        return int((batch["labels"] != -100).sum())

    def loss(self, masked: dict):
        """(mean loss, right guesses, guesses) on the hidden pieces of a batch."""
        chosen = masked["labels"] != -100                                                    # (B, T)
        hidden, _ = self.model.bert(masked["input_ids"], masked["attention_mask"])           # (B, T, D)
        logits = self.model.score(hidden[chosen])                                            # (chosen, V)
        labels = masked["labels"][chosen]                                                    # (chosen,)
        right = (logits.detach().argmax(dim=-1) == labels).sum()
        return cross_entropy(logits.float(), labels), right, len(labels)

    @torch.inference_mode()
    def evaluate(self, arithmetic) -> dict:
        """Loss and accuracy on the hidden pieces of the dev texts."""
        self.model.eval()
        total = right = count = 0
        for batch in self.dev_batches:
            with arithmetic.autocast():
                loss, hits, guesses = self.loss(arithmetic.move(batch))
            total, right, count = total + loss.item() * guesses, right + hits.item(), count + guesses
        self.model.train()
        return {"loss": total / count, "minus_loss": -total / count, "accuracy": right / count, "guesses": count}

    def baseline(self) -> dict:
        """What guessing by frequency alone gives on the same hidden pieces: the model has to beat this."""
        counts = np.bincount(np.concatenate(self.train_ids), minlength=self.vocab_size).astype(float)
        counts[self.special] = 0
        share = (counts + 1) / (counts + 1).sum()    # + 1: a piece that was never seen is not impossible
        labels = np.concatenate([batch["labels"][batch["labels"] != -100].numpy() for batch in self.dev_batches])
        return {"loss": float(-np.log(share[labels]).mean()), "accuracy": float((labels == counts.argmax()).mean())}

    def about(self) -> dict:
        """What a checkpoint must know to rebuild the model."""
        return {"shape": self.start.shape}

    def finish(self, directory) -> None:
        """Keep the encoder as a directory of its own, which every --model option understands."""
        save_pretrained(self.model.bert, self.tokenizer, Path(directory) / "encoder")


def make(config: Config, runs="runs"):
    """The task of a configuration, with its data read, its sentences tokenised and its model built.

    Raises ValueError when a pair's head and objective don't fit together; DataError, WeightsError: see there.
    """
    from minbert.run import many, pair_task

    names = tasks_of(config)
    if names == ["mlm"]:
        return MaskedTask(config, runs)
    for name in names:             # before anything is read
        if name in PAIRS:
            pair_task.check(config, name)
    kinds = {"quora": pair_task.SentencePairTask, "sts": pair_task.SentencePairTask, "score": ScoreTask,
             "squad": squad_task_of}
    splits = {name: [read_split(config, name, split) for split in ("train", "dev")] for name in names}
    texts = [text for train, _ in splits.values() for text in texts_of(train)]
    start = build.start(config, texts, runs)
    every = {name: kinds.get(name, SentenceTask)(config, name, start, *splits[name]) for name in names}
    if len(names) > 1:
        return many.ManyTasks(config, start, every)
    task = every[names[0]]
    prepare(config, task.model, names, task.pieces(), adapter=names[0])
    return task


def squad_task_of(config: Config, name: str, start, train, dev):
    """SQuAD's task, with a new head on the encoder; freezing and the like is left to `prepare`."""
    from minbert.run.squad_task import SquadTask

    return SquadTask(config, start, build.model_on(start.encoder, config, name), train, dev, progress=parallel.is_first())


def read_split(config: Config, name: str, split: str):
    """One split of a task's data."""
    from minbert.run.data_pairs import load_pairs, load_squad

    if name in PAIRS:
        return load_pairs(name, split, config.data, config.quora_limit if (name, split) == ("quora", "train") else 0)
    if name == "squad":
        return load_squad(split, config.data)
    dataset = load_task("sst" if name in ("sign", "score") else name, split, config.data)
    return dataset if name != "sign" else signs(dataset)


def signs(dataset):
    """SST's five classes as two, without the neutral sentences (report S3's first head)."""
    kept = [i for i, label in enumerate(dataset.labels) if label != 2]
    return dataclasses.replace(
        dataset, classes=2, label_names=("negative", "positive"), texts=[dataset.texts[i] for i in kept],
        ids=[dataset.ids[i] for i in kept], labels=[int(dataset.labels[i] > 2) for i in kept])


def texts_of(data) -> list[str]:
    """All texts of a split, from which a vocabulary can be learned."""
    if hasattr(data, "questions"):
        from minbert.run.squad_task import squad_texts

        return squad_texts(data)
    return data.first + data.second if hasattr(data, "first") else data.texts


def described(dataset) -> dict:
    """What a record says of a split."""
    return {"file": Path(dataset.path).name if dataset.source != "hub" else dataset.path,
            "examples": len(dataset), "sha256": dataset.sha256}
