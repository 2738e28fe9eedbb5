"""Two sentences in: are they paraphrases (quora), how similar are they (sts)?  See `minbert.pairs` for what is learned."""

from __future__ import annotations

import torch

from minbert.metrics import accuracy, binary_f1, majority_share
from minbert.pairs import check_fit, joined_ids, nearest_class, pair_loss, pair_prediction
from minbert.run import build
from minbert.run.batching import filled_batches, restore
from minbert.run.recipes import Config, source_name
from minbert.run.tasks import BaseTask, correlation, described
from minbert.tokens import encode, pad


def check(config: Config, name: str) -> None:
    """Refuse a head and an objective that don't fit together.  Raises ValueError; the message says what would fit."""
    kind, objective = build.pair_objective(config, name)
    check_fit(kind, config.pair_head, objective)


class SentencePairTask(BaseTask):
    """The score is accuracy for paraphrases, Pearson's r for similarity."""

    unit = "pairs"

    def __init__(self, config: Config, name: str, start, train, dev):
        self.config, self.name, self.start, self.tokenizer = config, name, start, start.tokenizer
        self.kind, self.objective = build.pair_objective(config, name)
        self.model = build.model_on(start.encoder, config, name)
        self.score = "accuracy" if self.kind == "paraphrase" else "pearson"
        self.counts_right = self.objective in ("ce2", "bce", "classes")
        self.notes = [*train.notes]
        self.sides, self.train_labels = self.tokenise(train), train.labels
        self.dev_sides, self.dev_labels = self.tokenise(dev), dev.labels
        self.example_ids = train.ids
        self.data = {"name": source_name(config.data), "train": described(train), "dev": described(dev)}
        if self.kind == "paraphrase":
            self.data["dev_majority"] = majority_share(dev.labels)

    def tokenise(self, dataset) -> list[tuple[list[int], list[int]]]:
        """For each pair: (ids, token types) of a joined pair, or the ids of the one and of the other sentence."""
        sides, cut = [], 0
        for texts in (dataset.first, dataset.second):
            encoded = encode(self.tokenizer, texts, self.config.max_length)
            sides.append(encoded.ids)
            cut += encoded.truncated
        pairs = list(zip(*sides))
        if not self.model.apart:
            joined = [joined_ids(a, b, self.config.max_length) for a, b in pairs]
            cut = sum(was_cut for *_, was_cut in joined)
            pairs = [(ids, types) for ids, types, _ in joined]
        if cut:
            what = "sentences" if self.model.apart else "pairs"
            self.notes.append(f"{dataset.split}: {cut:,} {what} were longer than {self.config.max_length} tokens and were cut")
        return pairs

    @property
    def train_ids(self):
        """One list of ids a pair, as long as the pair's row in a batch."""
        return [max(pair, key=len) for pair in self.sides]

    def pieces(self):
        """All ids of the training pairs."""
        return [ids for pair in self.sides for ids in (pair if self.model.apart else pair[:1])]

    def rows(self, indices, sides) -> dict:
        """The model's inputs: input_ids and attention_mask, (B, T) with token_type_ids, or (2B, T): first sides, then second."""
        if self.model.apart:
            input_ids, mask = pad([sides[i][side] for side in (0, 1) for i in indices])      # (2B, T)
            return {"input_ids": input_ids, "attention_mask": mask}
        input_ids, mask = pad([sides[i][0] for i in indices])                                # (B, T)
        types, _ = pad([sides[i][1] for i in indices])                                       # (B, T)
        return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}

    def batch(self, indices, step: int) -> dict:
        """The model's inputs, see `rows`, and labels (B,) float32, of the training pairs with these indices."""
        return {**self.rows(indices, self.sides), "labels": torch.tensor([self.train_labels[i] for i in indices])}

    def part(self, batch: dict, chosen: slice) -> dict | None:
        """Some pairs of a batch, with both their sides."""
        if not self.model.apart:
            return super().part(batch, chosen)
        count = len(batch["labels"])
        first = torch.arange(count, device=batch["labels"].device)[chosen]
        if not len(first):
            return None
        both = torch.cat([first, first + count])
        mask = batch["attention_mask"][both]
        longest = int(mask.sum(dim=1).max())
        return {"input_ids": batch["input_ids"][both, :longest], "attention_mask": mask[:, :longest],
                "labels": batch["labels"][first]}

    def parts(self, batch: dict, rows: int) -> list[dict]:
        """The batch in parts of at most `rows` pairs."""
        if not self.model.apart:
            return super().parts(batch, rows)
        count = len(batch["labels"])
        if not rows or rows >= count:
            return [batch]
        return [self.part(batch, slice(first, first + rows)) for first in range(0, count, rows)]

    def outputs(self, batch: dict) -> torch.Tensor:
        """What the model says to a batch: (B, K)."""
        return self.model(*(batch[key] for key in ("input_ids", "attention_mask", "token_type_ids") if key in batch))

    def loss(self, batch: dict):
        """(mean loss, right answers, answers); for a regression no answer is right or wrong."""
        outputs, labels = self.outputs(batch), batch["labels"]
        right = 0
        if self.counts_right:
            wanted = nearest_class(labels) if self.objective == "classes" else labels
            right = (pair_prediction(self.objective, outputs.detach()) == wanted).sum()
        return pair_loss(self.objective, outputs, labels), right, len(labels)

    @torch.no_grad()
    def evaluate(self, arithmetic, batch_size: int = 64) -> dict:
        """Scores on the dev set: loss; accuracy and f1 of the paraphrases, or pearson and mse; predictions.

        With six classes also `pearson_expectation`: Pearson's r of the mean of the classes, Σ k·p_k.
        """
        was_training = self.model.training
        self.model.eval()
        batch_list = filled_batches([max(map(len, pair)) for pair in self.dev_sides], batch_size)
        rows = []
        with arithmetic.autocast():
            for indices in batch_list:
                rows.extend(self.outputs(arithmetic.move(self.rows(indices, self.dev_sides))).float().cpu())
        self.model.train(was_training)
        outputs, labels = torch.stack(restore(rows, batch_list)), torch.tensor(self.dev_labels)     # (N, K), (N,)
        said = pair_prediction(self.objective, outputs)                                      # (N,)
        scores = {"loss": pair_loss(self.objective, outputs, labels).item()}
        if self.kind == "paraphrase":
            wanted = labels.long().tolist()
            scores.update(accuracy=accuracy(said.tolist(), wanted), f1=binary_f1(said.tolist(), wanted))
        else:
            scores.update(correlation(said.tolist(), labels.tolist()), mse=((said - labels) ** 2).mean().item())
            if self.objective == "classes":
                mean = pair_prediction(self.objective, outputs, expectation=True)
                scores["pearson_expectation"] = correlation(mean.tolist(), labels.tolist())["pearson"]
        return {**scores, "predictions": said.tolist()}

    def about(self) -> dict:
        """What a checkpoint must know to rebuild the model."""
        return {"shape": self.start.shape}
