"""What is learned: the examples, the loss and the score of a task.

A task holds its model, its training examples and its development examples, and answers two questions:
`loss(batch)`: how wrong is the model on this batch?  `evaluate(arithmetic)`: how good is it on the dev set?
`batch(indices, step)` makes the batch, and draws what is random in it from the step's number alone, so that a resumed run
sees the same; `answers(batch)` says over how many answers its loss is a mean.  The training loop (loop.py) needs to know
little else about it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from minbert.classify import SentenceClassifier, freeze
from minbert.fast import use_cls_only, use_fast, use_occurring_rows
from minbert.metrics import accuracy, confusion_matrix, macro_f1, majority_share
from minbert.mlm import MaskedLanguageModel, mask_tokens
from minbert.pretrained import save_pretrained
from minbert.run import build
from minbert.run.batching import batches, collate, filled_batches, restore, tokenise
from minbert.run.data import DataError, load_task, load_texts
from minbert.run.recipes import Config, source_name
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


class SentenceTask:
    """A sentence in, one of K classes out; the score is accuracy on the dev set."""

    score = "accuracy"             # which of the metrics chooses the best checkpoint: higher is better
    unit = "sentences"

    def __init__(self, config: Config, runs="runs"):
        train = load_task(config.task, "train", config.data)
        dev = load_task(config.task, "dev", config.data)
        self.start = build.start(config, train.texts, runs)
        self.classes, self.label_names = train.classes, train.label_names
        self.model = SentenceClassifier(self.start.encoder, self.classes, config.head_dropout)
        self.tokenizer = self.start.tokenizer
        tokenised = tokenise(train, self.tokenizer, config.max_length)
        tokenised_dev = tokenise(dev, self.tokenizer, config.max_length)
        self.train_ids, self.train_labels = tokenised.ids, train.labels
        use_fast(self.model, config.attention == "fast")
        if config.last_layer == "cls":
            use_cls_only(self.model)
        if config.embedding_rows == "occurring":
            use_occurring_rows(self.model, self.train_ids)
        freeze(self.model, config.freeze, config.freeze_layers)
        self.dev_ids, self.dev_labels, self.example_ids = tokenised_dev.ids, dev.labels, train.ids
        self.notes = [note for note in (tokenised.note, tokenised_dev.note) if note]
        self.data = {"name": source_name(config.data), "train": _described(train), "dev": _described(dev),
                     "dev_majority": majority_share(dev.labels)}

    def batch(self, indices, step: int) -> dict:
        """input_ids (B, T), attention_mask (B, T) and labels (B,) of the training examples with these indices."""
        return collate(indices, self.train_ids, self.train_labels)

    def answers(self, batch: dict) -> int:
        """One for each sentence."""
        return len(batch["labels"])

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

    def finish(self, directory) -> None:
        """Nothing beyond the checkpoint is kept."""


class MaskedTask:
    """Word pieces are hidden, the model guesses them; the score is minus the loss on the dev set's hidden pieces."""

    score = "minus_loss"
    unit = "texts"

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
    """The task of a configuration, with its data read, its sentences tokenised and its model built."""
    return MaskedTask(config, runs) if config.task == "mlm" else SentenceTask(config, runs)


def _described(dataset) -> dict:
    return {"file": Path(dataset.path).name if dataset.source != "hub" else dataset.path,
            "examples": len(dataset), "sha256": dataset.sha256}
