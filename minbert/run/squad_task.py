"""Question answering as a task for the training loop: windows in, the answer's two ends out (chapter 11).

Like the tasks of tasks.py, `SquadTask` holds a model, the training windows and the development questions. Its encoder may
be shared with other tasks: `SquadTask(config, start)` puts a new head on `start.encoder`, and two tasks that are given the
same `start` train the same encoder.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import torch

from minbert import squad
from minbert.classify import freeze
from minbert.fast import use_fast, use_occurring_rows
from minbert.run import build, checkpoint
from minbert.run import device as devices
from minbert.run.batching import filled_batches, restore
from minbert.run.data_pairs import load_squad
from minbert.run.recipes import source_name
from minbert.run.tasks import BaseTask
from minbert.run.windows import WindowIds, Windows, WindowSettings, load_windows
from minbert.tokens import pad


def window_batch(indices, windows: Windows) -> dict:
    """input_ids, attention_mask and token_type_ids (B, T), starts and ends (B,) of the windows with these indices."""
    a = windows.arrays
    input_ids, attention_mask = pad([windows.ids(w) for w in indices])                       # (B, T), (B, T)
    first = torch.from_numpy(a["first"][indices].astype(np.int64)).unsqueeze(1)              # (B, 1)
    types = (torch.arange(input_ids.shape[1]) >= first).long() * attention_mask              # (B, T): padding has type 0
    starts, ends = (torch.from_numpy(a[name][indices].astype(np.int64)) for name in ("start", "end"))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": types,
            "starts": starts, "ends": ends}


@torch.no_grad()
def span_scores(model, windows: Windows, arithmetic, batch_size: int = 32, progress=None):
    """The start and end scores of every window: two lists of (T,) float32 arrays, in the order of the windows.

    Args:
        model: a SpanExtractor; it is left in the mode (training or evaluation) in which it came.
        windows: from `minbert.run.windows`.
        arithmetic: see `minbert.run.device`.
        batch_size: windows at once; more of short ones.
        progress: called with the number of windows done, batch by batch.
    """
    was_training = model.training
    model.eval()
    order = filled_batches(windows.lengths.tolist(), batch_size) if len(windows) else []
    starts, ends = [], []
    with arithmetic.autocast():
        for indices in order:
            batch = arithmetic.move(window_batch(indices, windows))
            pair = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])         # 2 × (B, T)
            for found, scores in zip((starts, ends), pair):
                scores = scores.float().cpu().numpy()
                found.extend(row[:length].copy() for row, length in zip(scores, windows.lengths[indices]))
            if progress:
                progress(len(indices))
    model.train(was_training)
    return restore(starts, order), restore(ends, order)


def span_metrics(questions, answers) -> dict:
    """The official scores, as shares from 0 to 1: of the answers as they are (τ = 0), and at the best threshold.

    Keys: em, f1; has_em, has_f1 of the questions that have an answer; none_em, none_f1 of those that have none; threshold:
    the τ with the best F1 on these very questions; and the six at it, as best_em, best_f1, best_has_em, …
    """
    scores = {}
    threshold = finite_threshold(squad.best_threshold(questions, answers)[0], answers)
    for prefix, tau in (("", 0.0), ("best_", threshold)):
        found = squad.squad_scores(questions, squad.predictions(questions, answers, tau))
        for part, theirs in (("", ""), ("has_", "HasAns_"), ("none_", "NoAns_")):
            for name, key in (("em", "exact"), ("f1", "f1")):
                if theirs + key in found:
                    scores[prefix + part + name] = found[theirs + key] / 100
    return {**scores, "threshold": threshold}


def finite_threshold(threshold, answers) -> float:
    """The same choice as a number that JSON knows: -inf (answer nothing) and inf (answer everything) have none."""
    odds = [a.odds for a in answers if np.isfinite(a.odds)]
    if np.isfinite(threshold) or not odds:
        return float(threshold) if np.isfinite(threshold) else 0.0
    return float(min(odds) - 1) if threshold < 0 else float(max(odds))


def piece_scores(tokenizer, questions, said) -> dict:
    """EM and F1 (0 to 1) as report S0 has them: both sides are first cut into word pieces and put together again.

    That forgives what the tokenizer loses (accents, rare letters) and splits words at hyphens, so that a part of "1820-30"
    counts. Compare with the official scores, which look at the characters.
    """
    def again(text):
        return tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids)

    changed = [dataclasses.replace(q, answers=tuple((again(text), 0) for text, _ in q.answers)) for q in questions]
    scores = squad.squad_scores(changed, {name: again(text) for name, text in said.items()})
    return {"pieces_em": scores["exact"] / 100, "pieces_f1": scores["f1"] / 100}


def write_answers(directory, questions, answers) -> None:
    """The files of the official script: predictions.json (τ = 0) and null_odds.json; and spans.json, with the best span of
    every question even where "no answer" scores higher: what a threshold is searched with."""
    odds = {name: float(np.clip(value, -1e9, 1e9)) for name, value in squad.null_odds(questions, answers).items()}
    files = {"predictions": squad.predictions(questions, answers), "null_odds": odds,
             "spans": {q.id: a.text for q, a in zip(questions, answers)}}
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        checkpoint.write_whole(Path(directory) / f"{name}.json", text.encode())


class SquadTask(BaseTask):
    """A question and a passage in, the answer's place in the passage out, or none; the score is F1 on the dev set.

    Args:
        config: a Config. Its window_length, question_length, window_step and answer_length are used where it has them.
        start: what `build.start` gave: encoder, shape, tokenizer.
        model: a SpanExtractor that is ready; None for a new one on `start.encoder`, made fast and frozen as `config` says.
        train, dev: `Questions`, if they are read already.
        cache: a directory for the windows of large files; None for the user's own.
        progress: show a bar while windows are made.

    Raises:
        ValueError: settings that can't work: windows longer than the model's positions, or a last layer for [CLS] only.
    """

    name = "squad"
    score = "f1"
    unit = "windows"

    def __init__(self, config, start, model=None, train=None, dev=None, cache=None, progress=True):
        self.config, self.start, self.tokenizer = config, start, start.tokenizer
        self.settings = WindowSettings.of(config)
        if config.last_layer == "cls":
            raise ValueError("the last layer for [CLS] only leaves no token to be an answer's end: give --last-layer all")
        most = start.shape.get("max_positions", self.settings.window_length)
        if self.settings.window_length > most:
            raise ValueError(f"windows of {self.settings.window_length} word pieces are longer than the model's {most} "
                             f"positions; give --window-length {most} or less")
        train, dev = train or load_squad("train", config.data), dev or load_squad("dev", config.data)
        self.questions, self.notes = dev.questions, []
        self.windows, self.dev_windows = (self._windows(part, cache, progress) for part in (train, dev))
        self.train_ids = WindowIds(self.windows)             # an epoch passes over windows, not over questions
        self.example_ids = _NamesOf(train.questions, self.windows)
        self.model = model
        if model is None:
            self.model = squad.SpanExtractor(start.encoder)
            use_fast(self.model, config.attention == "fast")
            if config.embedding_rows == "occurring":
                use_occurring_rows(self.model, self.pieces())
            freeze(self.model, config.freeze, config.freeze_layers)
        self.data = {"name": source_name(config.data), "train": _described(train, self.windows),
                     "dev": _described(dev, self.dev_windows),
                     "dev_nothing": 1 - np.mean([squad.answerable(q) for q in dev.questions]).item()}
        self.arithmetic = None     # of the last evaluation

    @classmethod
    def alone(cls, config, runs="runs", **choices):
        """The task by itself: reads the data, and makes the encoder that the configuration asks for."""
        train, dev = load_squad("train", config.data), load_squad("dev", config.data)
        return cls(config, build.start(config, squad_texts(train), runs), train=train, dev=dev, **choices)

    def _windows(self, part, cache, progress):
        windows, notes = load_windows(self.tokenizer, part.questions, part.sha256, self.settings, cache, progress)
        self.notes += notes
        return windows

    def pieces(self):
        """All word pieces of the training windows."""
        return [np.unique(self.windows.arrays["ids"]).tolist()]

    @property
    def lengths(self):
        """The number of word pieces of each training window."""
        return self.windows.lengths.tolist()

    def batch(self, indices, step: int) -> dict:
        """The tensors of the training windows with these indices, see `window_batch`."""
        return window_batch(indices, self.windows)

    def answers(self, batch: dict) -> int:
        """One for each window."""
        return len(batch["starts"])

    def loss(self, batch: dict):
        """(mean loss, windows with both ends right, windows) of a batch that is on the model's device."""
        start, end = self.model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])   # 2 × (B, T)
        right = (start.detach().argmax(-1) == batch["starts"]) & (end.detach().argmax(-1) == batch["ends"])
        return squad.span_loss(start, end, batch["starts"], batch["ends"]), right.sum(), len(batch["starts"])

    def answer(self, arithmetic):
        """(answers to the dev questions, metrics of the dev windows: loss, and accuracy: both ends are right)."""
        self.arithmetic = arithmetic
        starts, ends = span_scores(self.model, self.dev_windows, arithmetic)
        loss = right = 0.0
        for scores, gold in ((starts, self.dev_windows.arrays["start"]), (ends, self.dev_windows.arrays["end"])):
            loss += np.mean([np.logaddexp.reduce(row, dtype=float) - row[g] for row, g in zip(scores, gold)]) / 2
        for s, e, i, j in zip(starts, ends, self.dev_windows.arrays["start"], self.dev_windows.arrays["end"]):
            right += s.argmax() == i and e.argmax() == j
        found = squad.decode(self.questions, self.dev_windows, starts, ends, max_answer=self.settings.answer_length)
        return found, {"loss": float(loss), "accuracy": float(right / len(self.dev_windows))}

    def evaluate(self, arithmetic) -> dict:
        """Scores on the dev set: loss and accuracy of the windows, see `answer`; those of `span_metrics` and `piece_scores`;
        and the predictions, {question id: text}."""
        answers, metrics = self.answer(arithmetic)
        said = squad.predictions(self.questions, answers)
        return {**metrics, **span_metrics(self.questions, answers), **piece_scores(self.tokenizer, self.questions, said),
                "predictions": said}

    def about(self) -> dict:
        """What a checkpoint must know to rebuild the model and cut passages as in training."""
        return {"shape": self.start.shape, "spans": dataclasses.asdict(self.settings)}

    def finish(self, directory) -> None:
        """Answer the dev questions with the best weights, and keep the answers, see `write_answers`."""
        arithmetic = self.arithmetic or devices.choose(str(next(self.model.parameters()).device), self.config.precision)
        write_answers(directory, self.questions, self.answer(arithmetic)[0])
        super().finish(directory)


def squad_texts(data) -> list[str]:
    """The passages and questions of `Questions`, each once: what a vocabulary is learned from."""
    return list(dict.fromkeys([q.context for q in data.questions] + [q.question for q in data.questions]))


class _NamesOf:
    """`names[w]`: the id of the question that window w belongs to."""

    def __init__(self, questions, windows):
        self.questions, self.place = questions, windows.arrays["question"]

    def __len__(self):
        return len(self.place)

    def __getitem__(self, w):
        return self.questions[self.place[w]].id


def _described(part, windows) -> dict:
    return {"file": Path(part.path).name, "examples": len(windows), "questions": len(part.questions),
            "answerable": sum(map(squad.answerable, part.questions)), "sha256": part.sha256}
