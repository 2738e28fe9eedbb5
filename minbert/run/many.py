"""Several tasks, one model (chapter 9): the tasks' batches in the order of a plan, see `minbert.multitask`."""

from __future__ import annotations

import numpy as np
import torch

from minbert.lora import adapted, use_task
from minbert.metrics import averages
from minbert.multitask import Stream, gradient_cosines, make_plan, positions
from minbert.run import build
from minbert.run.batching import batches
from minbert.run.recipes import Config, trained_tasks
from minbert.run.tasks import BaseTask, prepare


class ManyTasks(BaseTask):
    """The tasks of a configuration on one encoder.  The best checkpoint is chosen by the average of their scores.

    A step is a list of (task, indices): one for each batch in it.  The score of each task is that which it has when it is
    trained alone: accuracy, Pearson's r, F1.
    """

    name = "many"
    score = "average"
    unit = "examples"
    counts_right = False

    def __init__(self, config: Config, start, every: dict):
        self.config, self.start, self.tokenizer = config, start, start.tokenizer
        self.every = every                                   # {name: task}
        self.trained = trained_tasks(config)
        self.counts = [len(every[name].train_ids) for name in self.trained]
        self.model, parts = build.join(start.encoder, config, {name: task.model for name, task in every.items()})
        for name, task in every.items():
            task.model = parts[name]
        prepare(config, self.model, list(every), [ids for task in every.values() for ids in task.pieces()])
        self.streams = {name: Stream(self.deal(name)) for name in self.trained}
        self.notes = [f"{name}: {note}" for name, task in every.items() for note in task.notes]
        first = next(iter(every.values()))
        self.data = {"name": first.data["name"], "tasks": {name: task.data for name, task in every.items()}}

    def deal(self, name: str):
        """The batches of the k-th pass over a task's examples, as a function of k."""
        lengths, config = self.every[name].lengths, self.config
        return lambda k: batches(lengths, config.batch_size, config.seed, k, bucket=config.bucket)

    def plan(self, epoch: int) -> list:
        """The tasks of each step of an epoch, from 0, as numbers."""
        config = self.config
        found = make_plan(config.sampling, self.counts, config.batch_size, epoch + 1, config.epochs, config.seed,
                          config.steps_per_epoch, config.stop, config.step_form)
        return found[:config.steps_per_epoch or None]

    def steps(self, epoch: int) -> int:
        """The number of steps of an epoch, from 0."""
        return len(self.plan(epoch))

    def order(self, epoch: int) -> list:
        """The steps of an epoch, from 0, each a list of (task, indices).  It depends on the seed and the epoch alone."""
        place = [0] * len(self.trained)
        for earlier in range(epoch):
            place = positions(self.plan(earlier), len(self.trained), place)
        steps = []
        for numbers in self.plan(epoch):
            step = []
            for number in numbers:
                step.append((self.trained[number], self.streams[self.trained[number]][place[number]]))
                place[number] += 1
            steps.append(step)
        return steps

    def size(self, item) -> int:
        """The number of examples in a step."""
        return sum(len(indices) for _, indices in item)

    def examples(self, item) -> list[str]:
        """The examples in a step, each with its task."""
        return [f"{name} {example}" for name, indices in item for example in self.every[name].examples(indices)]

    def batch(self, item, step: int) -> dict:
        """{task: its batch} of a step."""
        return {name: self.every[name].batch(indices, step) for name, indices in item}

    def answers(self, batch: dict) -> int:
        """Over how many answers the loss of a part, the batch of one task, is a mean."""
        (name, own), = batch.items()
        return self.every[name].answers(own)

    def part(self, batch: dict, chosen: slice) -> dict | None:
        """Some examples of a part."""
        (name, own), = batch.items()
        found = self.every[name].part(own, chosen)
        return None if found is None else {name: found}

    def parts(self, batch: dict, rows: int) -> list[dict]:
        """One part a task, each in parts of at most `rows` rows."""
        return [{name: part} for name, own in batch.items() for part in self.every[name].parts(own, rows)]

    def shares(self, parts: list[dict]) -> list[float]:
        """What each part's loss counts: the tasks' mean losses are added up, a task's parts count by their answers."""
        answers = [(name, self.every[name].answers(own)) for part in parts for name, own in part.items()]
        whole = {name: sum(count for other, count in answers if other == name) for name, _ in answers}
        return [count / whole[name] for name, count in answers]

    def loss(self, batch: dict):
        """(mean loss, 0, answers) of a part: the batch of one task."""
        (name, own), = batch.items()
        self.choose(name)
        loss, _, count = self.every[name].loss(own)
        return loss, 0, count

    def choose(self, name: str) -> None:
        """Use the adapter of a task, where there are adapters."""
        if adapted(self.model.encoder):
            use_task(self.model.encoder, name)

    @torch.no_grad()
    def evaluate(self, arithmetic) -> dict:
        """{"tasks": {task: its scores}, "average"}; with sst, quora and sts also both averages of the reports."""
        was_training = self.model.training
        self.model.eval()
        scores = {}
        for name, task in self.every.items():
            self.choose(name)
            scores[name] = {key: value for key, value in task.evaluate(arithmetic).items() if key != "predictions"}
        self.model.train(was_training)
        found = {"tasks": scores, "average": sum(scores[name][task.score] for name, task in self.every.items()) / len(scores)}
        if {"sst", "quora", "sts"} <= set(scores):
            sst, quora, sts = scores["sst"]["accuracy"], scores["quora"]["accuracy"], scores["sts"]["pearson"]
            found["average_plain"], found["average_shifted"] = averages(sst, quora, sts)
        return found

    def cosines(self, step: int) -> list[list[float]]:
        """The cosines between the trained tasks' gradients on the encoder, one batch of each: (tasks, tasks).

        Without dropout, on batches that depend on the seed and the step alone; nothing is changed by it.  None for a
        gradient of 0, which has no direction.
        """
        generator = np.random.default_rng([self.config.seed, step, 10])
        was_training, device = self.model.training, next(self.model.parameters()).device
        self.model.eval()
        rows = []
        for name, count in zip(self.trained, self.counts):
            indices = generator.choice(count, size=min(self.config.batch_size, count), replace=False).tolist()
            batch = {key: tensor.to(device) for key, tensor in self.every[name].batch(indices, step).items()}
            rows.append(self.loss({name: batch})[0])
        found = gradient_cosines(rows, self.model.encoder.parameters())                      # (tasks, tasks)
        self.model.train(was_training)
        return [[round(value, 4) if value == value else None for value in row] for row in found.tolist()]

    def drawn(self) -> dict:
        """For the record: the batches that each task had in each epoch."""
        per_epoch = [positions(self.plan(epoch), len(self.trained)) for epoch in range(self.config.epochs)]
        return {"names": self.trained, "counts": self.counts, "batches_by_epoch": per_epoch}

    def about(self) -> dict:
        """What a checkpoint must know to rebuild the model: what each task must know, and whose labels are which."""
        known = [task.about() for task in self.every.values()]
        names = {name: list(task.label_names) for name, task in self.every.items() if hasattr(task, "label_names")}
        spans = [own["spans"] for own in known if "spans" in own]
        return {"shape": self.start.shape, "label_names_of": names, **({"spans": spans[0]} if spans else {})}

    def finish(self, directory) -> None:
        """What each task keeps; and the adapters."""
        for name, task in self.every.items():
            if name == "squad":
                self.choose(name)
                self.model.eval()
                task.finish(directory)
        super().finish(directory)
