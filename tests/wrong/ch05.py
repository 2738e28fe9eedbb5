"""Chapter 5: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import functools

import torch
from torch import nn
from torch.nn import functional as F

from minbert import classify, metrics
from minbert.run.batching import batches, collate, restore
from minbert.tokens import pad

# -- sentence_classifier --------------------------------------------------------------------------------------------


def version(scores=None, forward=None):
    """A class with the stub's __init__. `scores(self, hidden, pooled, mask)` or the whole forward pass is given."""

    def usual(self, input_ids, attention_mask, token_type_ids=None):
        hidden, pooled = self.encoder(input_ids, attention_mask, token_type_ids)
        return scores(self, hidden, pooled, attention_mask)

    body = forward and (lambda self, input_ids, attention_mask, token_type_ids=None: forward(self, input_ids, attention_mask, token_type_ids))
    return type("SentenceClassifier", (classify.SentenceClassifier,), {"forward": body or usual})


def masked_mean(hidden, mask):
    return (hidden * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def without_gradient(self, ids, mask, types):
    with torch.no_grad():
        pooled = self.encoder(ids, mask, types)[1]
    return self.head(self.dropout(pooled))


def by_einsum(self, hidden, pooled, mask):
    return torch.einsum("bd,kd->bk", self.dropout(pooled), self.head.weight) + self.head.bias


def class_by_class(self, hidden, pooled, mask):
    vector = self.dropout(pooled)
    return torch.stack([vector @ w + b for w, b in zip(self.head.weight, self.head.bias)], dim=1)


def functional_dropout(self, hidden, pooled, mask):
    return F.linear(F.dropout(pooled, self.dropout.p, self.training), self.head.weight, self.head.bias)


# -- freeze ---------------------------------------------------------------------------------------------------------


def freezing(choose, modules=True, use_frozen_dropout=True, first="all", only=lambda p: True):
    """`freeze` with another choice of what is frozen, and switches for mistakes in the rest."""

    def freeze(model, mode, layers=0, frozen_dropout=False):
        if mode not in classify.FREEZE_MODES:
            raise ValueError(mode)
        frozen = choose(model.encoder, model, mode, layers)
        if first == "all":
            for parameter in model.parameters():
                parameter.requires_grad = True
        for module in frozen:
            for parameter in module.parameters():
                parameter.requires_grad = not only(parameter) and parameter.requires_grad
        keep = frozen_dropout and use_frozen_dropout
        model.frozen = [] if keep or not modules else frozen
        return model.train(model.training)

    return freeze


OTHERS = {
    "embeddings": lambda model: [model.encoder.embeddings],
    "head": lambda model: [model.head],
    "all": lambda model: [model.encoder, model.dropout, model.head],
}


def chosen(full=None, partial=None, nothing=lambda encoder, model: [], **others):
    """A choice: `full(encoder, model)`, `partial(encoder, layers)`, and of the others `name(model)`."""
    full = full or (lambda encoder, model: [encoder])
    partial = partial or (lambda encoder, n: [encoder.embeddings, *encoder.layers[:n]])

    def choose(encoder, model, mode, layers):
        if mode == "full":
            return list(full(encoder, model))
        if mode == "none":
            return list(nothing(encoder, model))
        if mode in OTHERS:
            return list((OTHERS | others)[mode](model))
        if not 0 <= layers <= len(encoder.layers):
            raise ValueError(layers)
        return list(partial(encoder, layers))

    return choose


def ask(encoder, model, mode, layers, low=True, high=True):
    if mode in OTHERS:
        return OTHERS[mode](model)
    if mode == "partial" and ((high and layers > len(encoder.layers)) or (low and layers < 0)):
        raise ValueError(layers)
    return [] if mode == "none" else [encoder] if mode == "full" else [encoder.embeddings, *encoder.layers[:layers]]


def by_name(model, mode, layers=0, frozen_dropout=False):
    """Asks each parameter for its name, as many programs do."""
    if mode not in classify.FREEZE_MODES:
        raise ValueError(mode)
    if mode == "partial" and layers not in range(len(model.encoder.layers) + 1):
        raise ValueError(layers)
    starts = {"none": (), "full": ("encoder.",), "embeddings": ("encoder.embeddings.",), "head": ("head.",),
              "all": ("encoder.", "dropout.", "head."),
              "partial": ("encoder.embeddings.", *(f"encoder.layers.{i}." for i in range(layers)))}[mode]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(starts))
    model.frozen = [] if frozen_dropout else [
        module for name, module in model.named_modules() if starts and f"{name}.".startswith(starts)]
    model.train(model.training)
    return model


def by_counting(model, mode, layers=0, frozen_dropout=False):
    """The parts in their order, and how many of them are frozen."""
    encoder = model.encoder
    order = [encoder.embeddings, *encoder.layers, encoder.pooler]
    if mode not in classify.FREEZE_MODES or (mode == "partial" and not 0 <= layers <= len(encoder.layers)):
        raise ValueError((mode, layers))
    count = {"none": 0, "embeddings": 1, "partial": layers + 1, "full": len(order), "head": 0, "all": len(order)}[mode]
    for number, part in enumerate(order):
        part.requires_grad_(number >= count)
    last = {"head": [model.head], "all": [model.dropout, model.head]}.get(mode, [])
    model.head.requires_grad_(not last)
    model.frozen = [] if frozen_dropout else order[:count] + last
    return model.train(model.training)


def all_layers_refused(model, mode, layers=0, frozen_dropout=False):
    if mode == "partial" and layers >= len(model.encoder.layers):
        raise ValueError("too many layers")
    return classify.freeze(model, mode, layers, frozen_dropout)


def all_but_the_chosen(encoder, layers):
    return [*encoder.layers[layers:], encoder.pooler]


# -- smoothed_loss --------------------------------------------------------------------------------------------------


def one_hot(logits, labels):
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)


def smoothing_by(target, log_p=lambda logits: logits.log_softmax(-1), finish=lambda rows: rows.sum(1).mean()):
    """A loss from a target: `target(hot, ε, K, B)`."""

    def smoothed_loss(logits, labels, smoothing=0.1):
        hot = one_hot(logits, labels)
        return finish(-target(hot, smoothing, logits.shape[1], len(labels)) * log_p(logits))

    return smoothed_loss


def right_target(hot, e, k, b):
    return (1 - e) * hot + e / k


def two_terms(logits, labels, smoothing=0.1):
    log_p = logits - logits.logsumexp(-1, keepdim=True)
    return (1 - smoothing) * F.nll_loss(log_p, labels) - smoothing * log_p.mean()


def sentence_by_sentence(logits, labels, smoothing=0.1):
    losses = []
    for row, label in zip(logits, labels):
        top = row.max()
        log_p = row - (top + (row - top).exp().sum().log())
        target = [smoothing / len(row) + (1 - smoothing) * float(k == label) for k in range(len(row))]
        losses.append(-sum(t * p for t, p in zip(target, log_p)))
    return torch.stack(losses).mean()


# -- one_step -------------------------------------------------------------------------------------------------------


def one_step(model, batch, optimizer, limit=1.0, *, zero="before", soft=False, reduction="mean", divide=False, clip="norm",
             steps=1, mask=True, train=True, item=True, first=False):  # fmt: skip
    """A training step with a switch for each mistake."""
    if train:
        model.train()
    logits = model(batch["input_ids"], batch["attention_mask"] if mask else torch.ones_like(batch["attention_mask"]))
    logits = logits.softmax(-1) if soft else logits
    logits, labels = (logits[:1], batch["labels"][:1]) if first else (logits, batch["labels"])
    loss = F.cross_entropy(logits, labels, reduction=reduction)
    loss = loss / len(labels) if divide else loss
    if zero == "before":
        optimizer.zero_grad()
    if clip == "early":
        nn.utils.clip_grad_norm_(model.parameters(), limit)
    loss.backward()
    if zero == "late":
        optimizer.zero_grad()
    parameters = [p for p in model.parameters() if p.grad is not None]
    if clip == "norm":
        nn.utils.clip_grad_norm_(parameters, limit)
    elif clip == "each":
        for parameter in parameters:
            nn.utils.clip_grad_norm_([parameter], limit)
    elif clip == "values":
        nn.utils.clip_grad_value_(parameters, limit)
    elif clip == "always":
        norm = torch.cat([p.grad.flatten() for p in parameters]).norm()
        for parameter in parameters:
            parameter.grad *= limit / norm
    for _ in range(steps):
        optimizer.step()
    if zero == "end":
        optimizer.zero_grad()
    return loss.item() if item else loss


def stepping(**switches):
    return lambda model, batch, optimizer, limit=1.0: one_step(model, batch, optimizer, limit, **switches)


def by_autograd(model, batch, optimizer, limit=1.0):
    model.train()
    loss = F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient * min(1.0, limit / norm)
    optimizer.step()
    return float(loss.detach())


def by_log_softmax(model, batch, optimizer, limit=1.0):
    model.train(True)
    for parameter in model.parameters():
        parameter.grad = None
    log_p = model(batch["input_ids"], attention_mask=batch["attention_mask"]).log_softmax(-1)
    loss = -log_p[torch.arange(len(batch["labels"])), batch["labels"]].mean()
    loss.backward()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    if norm > limit:
        for parameter in model.parameters():
            parameter.grad.mul_(limit / norm)
    optimizer.step()
    return loss.item()


# -- macro_fbeta ----------------------------------------------------------------------------------------------------


def counted(predictions, labels, classes):
    """(hits, alarms, missed) of each class."""
    rows = []
    for k in range(classes):
        said, true = {i for i, p in enumerate(predictions) if p == k}, {i for i, y in enumerate(labels) if y == k}
        rows.append((len(said & true), len(said - true), len(true - said)))
    return rows


def f_score(hits, alarms, missed, square):
    below = (1 + square) * hits + square * missed + alarms
    return (1 + square) * hits / below if below else 0.0


def fbeta_by(average=lambda rows, score: [score(*row) for row in rows if sum(row)], square=lambda beta: beta**2,
             finish=lambda scores: sum(scores) / len(scores), swap=False, times=1):
    """`macro_fbeta` with switches: which classes enter, how β enters, how the mean is taken."""

    def macro_fbeta(predictions, labels, classes, beta=1.0):
        rows = counted(predictions, labels, classes)
        rows = [(h, m, a) for h, a, m in rows] if swap else rows
        return times * finish(average(rows, lambda h, a, m: f_score(h, a, m, square(beta))))

    return macro_fbeta


def only_if(condition):
    return lambda rows, score: [score(*row) for row in rows if sum(row) and condition(*row)]


def mean_first(which):
    """Averages precision and recall over the classes, then combines them."""

    def macro_fbeta(predictions, labels, classes, beta=1.0):
        rows = [row for row in counted(predictions, labels, classes) if sum(row)]
        p = sum(h / (h + a) if h + a else 0 for h, a, _ in rows) / len(rows)
        r = sum(h / (h + m) if h + m else 0 for h, _, m in rows) / len(rows)
        return {"both": (1 + beta**2) * p * r / (beta**2 * p + r), "recall": r, "precision": p}[which]

    return macro_fbeta


def micro(predictions, labels, classes, beta=1.0):
    return f_score(*(sum(column) for column in zip(*counted(predictions, labels, classes))), beta**2)


def weighted(predictions, labels, classes, beta=1.0):
    return sum((h + m) * f_score(h, a, m, beta**2) for h, a, m in counted(predictions, labels, classes)) / len(labels)


def without_factor(predictions, labels, classes, beta=1.0):
    return fbeta_by()(predictions, labels, classes, beta) / (1 + beta**2)


def first_form(predictions, labels, classes, beta=1.0):
    """By precision and recall, with nothing against 0/0."""
    scores = []
    for h, a, m in counted(predictions, labels, classes):
        p, r = h / (h + a), h / (h + m)
        scores.append((1 + beta**2) * p * r / (beta**2 * p + r))
    return sum(scores) / len(scores)


def by_confusion_matrix(predictions, labels, classes, beta=1.0, dtype=torch.float64):
    matrix = torch.zeros(classes, classes, dtype=dtype)
    for y, p in zip(labels, predictions):
        matrix[y, p] += 1
    hits, weight = matrix.diagonal(), beta**2
    below = weight * matrix.sum(1) + matrix.sum(0)
    return ((1 + weight) * hits[below > 0] / below[below > 0]).mean()


def by_harmonic_mean(predictions, labels, classes, beta=1.0):
    """The weighted harmonic mean of precision and recall."""
    scores = []
    for k in sorted(set(predictions) | set(labels)):
        hits = sum(p == y == k for p, y in zip(predictions, labels))
        if not hits:
            scores.append(0.0)
            continue
        precision, recall = hits / list(predictions).count(k), hits / list(labels).count(k)
        scores.append((1 + beta**2) / (1 / precision + beta**2 / recall))
    return sum(scores) / len(scores)


# -- dev_accuracy ---------------------------------------------------------------------------------------------------


def scoring(order="kept", average="all", mask=True, grad=False, mode="eval", after="restored", pick=torch.argmax,
            right=lambda guess, label: guess == label, times=1.0, skip_last=False, first=False):  # fmt: skip
    """`dev_accuracy` with a switch for each mistake."""

    def dev_accuracy(model, ids, labels, batch_size=4):
        was = model.training
        if mode == "eval":
            model.eval()
        places = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        hits = []  # one list a batch
        for start in range(0, len(places), batch_size):
            rows = places[start : start + batch_size]
            if (skip_last and len(rows) < batch_size) or (first and start):
                break
            input_ids, attention_mask = pad([ids[i] for i in rows])
            with torch.set_grad_enabled(grad):
                scores = model(input_ids, attention_mask if mask else torch.ones_like(attention_mask))
            truth = [labels[i] for i in rows] if order == "kept" else labels[start : start + len(rows)]
            hits.append([bool(right(guess, label)) for guess, label in zip(pick(scores, -1).tolist(), truth)])
        if after != "as it is":
            model.train(was if after == "restored" else after == "train")
        flat = [hit for batch in hits for hit in batch]
        return times * {
            "all": lambda: sum(flat) / len(labels),
            "seen": lambda: sum(flat) / len(flat),
            "batches": lambda: sum(sum(batch) / len(batch) for batch in hits) / len(hits),
            "count": lambda: sum(flat),
            "by batches": lambda: sum(flat) / len(hits),
        }[average]()

    return dev_accuracy


@torch.no_grad()
def one_by_one(model, ids, labels, batch_size=4):
    was = model.training
    model.eval()
    right = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0].argmax() == y for row, y in zip(ids, labels)]
    model.train(was)
    return torch.stack(right).double().mean()


def by_restore(model, ids, labels, batch_size=4):
    order = batches([len(row) for row in ids], batch_size, shuffle=False)
    was, guesses = model.training, []
    model.train(False)
    with torch.inference_mode():
        for indices in order:
            batch = collate(indices, ids)
            guesses.extend(model(**batch).argmax(dim=1).tolist())
    model.train(was)
    return metrics.accuracy(restore(guesses, order), labels)


def batches_as_they_come(model, ids, labels, batch_size=4):
    """Unsorted, with a running count."""
    was, right = model.training, 0
    model.eval()
    with torch.no_grad():
        for start in range(0, len(ids), batch_size):
            input_ids, attention_mask = pad(ids[start : start + batch_size])
            truth = torch.tensor(labels[start : start + batch_size])
            right += (model(input_ids, attention_mask).argmax(-1) == truth).sum().item()
    model.train(was)
    return right / len(labels)


WRONG = {
    "sentence_classifier": {
        "every token": version(lambda self, hidden, pooled, mask: self.head(self.dropout(hidden))),
        "classes": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled)).argmax(-1)),
        "no mask": version(forward=lambda self, ids, mask, types: self.head(self.dropout(
            self.encoder(ids, torch.ones_like(mask), types)[1]))),
        "no token types": version(forward=lambda self, ids, mask, types: self.head(self.dropout(self.encoder(ids, mask)[1]))),
        "squeeze": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled)).squeeze()),
        "hidden state of [CLS]": version(lambda self, hidden, pooled, mask: self.head(self.dropout(hidden[:, 0]))),
        "last token": version(lambda self, hidden, pooled, mask: self.head(self.dropout(hidden[:, -1]))),
        "mean with padding": version(lambda self, hidden, pooled, mask: self.head(self.dropout(hidden.mean(1)))),
        "mean pooling": version(lambda self, hidden, pooled, mask: self.head(self.dropout(masked_mean(hidden, mask)))),
        "softmax": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled)).softmax(-1)),
        "log-softmax": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled)).log_softmax(-1)),
        "sigmoid": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled)).sigmoid()),
        "tanh again": version(lambda self, hidden, pooled, mask: self.head(self.dropout(pooled.tanh()))),
        "no bias": version(lambda self, hidden, pooled, mask: self.dropout(pooled) @ self.head.weight.T),
        "no gradient to the encoder": version(forward=without_gradient),
        "dropout always": version(lambda self, hidden, pooled, mask: self.head(F.dropout(pooled, self.dropout.p))),
        "dropout always, on the scores": version(lambda self, hidden, pooled, mask: F.dropout(self.head(pooled), self.dropout.p)),
        "no dropout": version(lambda self, hidden, pooled, mask: self.head(pooled)),
        "dropout on the scores": version(lambda self, hidden, pooled, mask: self.dropout(self.head(pooled))),
    },
    "freeze": {
        "\"none\" freezes": freezing(chosen(nothing=lambda encoder, model: [encoder])),
        "pooler left": freezing(chosen(full=lambda encoder, model: [encoder.embeddings, *encoder.layers])),
        "embeddings left": freezing(chosen(full=lambda encoder, model: [*encoder.layers, encoder.pooler])),
        "head too": freezing(chosen(full=lambda encoder, model: [encoder, model.head])),
        "the whole model": freezing(chosen(full=lambda encoder, model: [model])),
        "\"full\" freezes nothing": freezing(chosen(full=lambda encoder, model: [])),
        "layers only": freezing(chosen(partial=lambda encoder, n: encoder.layers[:n])),
        "the last layers": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[len(encoder.layers) - n:]])),
        "one too many": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[: n + 1]])),
        "embeddings counted": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[: max(n - 1, 0)]])),
        "a single layer": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[n - 1 : n]])),
        "pooler too": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[:n], encoder.pooler])),
        "the others": freezing(chosen(partial=all_but_the_chosen)),
        "all layers are the encoder": freezing(chosen(partial=lambda encoder, n: [encoder] if n == len(encoder.layers)
                                                      else [encoder.embeddings, *encoder.layers[:n]])),
        "0 layers are nothing": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, *encoder.layers[:n]] if n else [])),
        "a silent slice": freezing(lambda *given: ask(*given, high=False)),
        "a negative number": freezing(lambda *given: ask(*given, low=False)),
        "all layers refused": all_layers_refused,
        "\"embeddings\" freezes nothing": freezing(chosen(embeddings=lambda model: [])),
        "\"embeddings\" and layers": freezing(chosen(embeddings=lambda model: [model.encoder.embeddings, *model.encoder.layers])),
        "only the embeddings learn": freezing(chosen(embeddings=lambda model: [*model.encoder.layers, model.encoder.pooler, model.head])),
        "\"head\" freezes nothing": freezing(chosen(head=lambda model: [])),
        "\"head\" is \"full\"": freezing(chosen(head=lambda model: [model.encoder])),
        "\"all\" freezes nothing": freezing(chosen(all=lambda model: [])),
        "\"all\" but the head": freezing(chosen(all=lambda model: [model.encoder])),
        "\"all\" but the pooler": freezing(chosen(all=lambda model: [model.encoder.embeddings, *model.encoder.layers, model.head])),
        "\"all\" but dropout": freezing(chosen(all=lambda model: [model.encoder, model.head])),
        "what was frozen stays": freezing(ask, first="nothing"),
        "only matrices": freezing(ask, only=lambda p: p.ndim > 1),
        "dropout stays on": freezing(ask, modules=False),
        "frozen_dropout not used": freezing(ask, use_frozen_dropout=False),
    },
    "smoothed_loss": {
        "plain": lambda logits, labels, smoothing=0.1: F.cross_entropy(logits, labels),
        "shared by K - 1": smoothing_by(lambda hot, e, k, b: (1 - e) * hot + e / (k - 1) * (1 - hot)),
        "targets below 1": smoothing_by(lambda hot, e, k, b: (1 - e) * hot + e / k * (1 - hot)),
        "targets above 1": smoothing_by(lambda hot, e, k, b: hot + e / k),
        "exchanged": smoothing_by(lambda hot, e, k, b: e * hot + (1 - e) / k),
        "ε each": smoothing_by(lambda hot, e, k, b: (1 - e) * hot + e),
        "sum": smoothing_by(right_target, finish=lambda rows: rows.sum()),
        "mean over classes": smoothing_by(right_target, finish=lambda rows: rows.mean()),
        "divided twice": smoothing_by(right_target, finish=lambda rows: rows.sum(1).mean() / len(rows)),
        "divided by B": smoothing_by(lambda hot, e, k, b: (1 - e) * hot + e / b),
        "softmax twice": smoothing_by(right_target, log_p=lambda logits: logits.softmax(-1).log_softmax(-1)),
        "no logarithm": smoothing_by(right_target, log_p=lambda logits: logits.softmax(-1)),
        "no sign": smoothing_by(right_target, finish=lambda rows: -rows.sum(1).mean()),
        "a loss each": smoothing_by(right_target, finish=lambda rows: rows.sum(1)),
        "a matrix": smoothing_by(right_target, finish=lambda rows: rows),
        "a plain number": lambda logits, labels, smoothing=0.1: F.cross_entropy(logits, labels, label_smoothing=smoothing).item(),
        "log of the sum of exp": smoothing_by(right_target, log_p=lambda logits: logits - logits.exp().sum(-1, keepdim=True).log()),
        "log of softmax": smoothing_by(right_target, log_p=lambda logits: logits.softmax(-1).log()),
        "detached": lambda logits, labels, smoothing=0.1: F.cross_entropy(logits.detach(), labels, label_smoothing=smoothing),
    },
    "one_step": {
        "the tensor is returned": stepping(item=False),
        "no zero_grad": stepping(zero=None),
        "zero_grad after backward": stepping(zero="late"),
        "softmax": stepping(soft=True),
        "sum": stepping(reduction="sum"),
        "divided again": stepping(divide=True),
        "clipped before backward": stepping(zero="end", clip="early"),
        "each clipped": stepping(clip="each"),
        "values clipped": stepping(clip="values"),
        "always scaled": stepping(clip="always"),
        "no mask": stepping(mask=False),
        "two steps": stepping(steps=2),
        "only the first sentence": stepping(first=True),
        "evaluation mode": stepping(train=False),
    },
    "macro_fbeta": {
        "β not squared": fbeta_by(square=lambda beta: beta),
        "F1": fbeta_by(square=lambda beta: 1),
        "exchanged": fbeta_by(swap=True),
        "absent is 0": fbeta_by(lambda rows, score: [score(*row) for row in rows]),
        "absent is 1": fbeta_by(lambda rows, score: [score(*row) if sum(row) else 1.0 for row in rows]),
        "only the labels' classes": fbeta_by(only_if(lambda h, a, m: h + m)),
        "only the predictions' classes": fbeta_by(only_if(lambda h, a, m: h + a)),
        "only classes with hits": fbeta_by(only_if(lambda h, a, m: h)),
        "micro": micro,
        "weighted": weighted,
        "mean first": mean_first("both"),
        "recall": mean_first("recall"),
        "precision": mean_first("precision"),
        "factor missing": without_factor,
        "per cent": fbeta_by(times=100),
        "sum": fbeta_by(finish=sum),
        "0/0": first_form,
    },
    "dev_accuracy": {
        "order lost": scoring(order="lost"),
        "mean of the batches": scoring(average="batches"),
        "last batch left out, counted": scoring(skip_last=True),
        "last batch left out": scoring(skip_last=True, average="seen"),
        "first batch": scoring(first=True, average="seen"),
        "count": scoring(average="count"),
        "per cent": scoring(times=100.0),
        "no mask": scoring(mask=False),
        "argmin": scoring(pick=torch.argmin),
        "errors": scoring(right=lambda guess, label: guess != label),
        "one off": scoring(right=lambda guess, label: abs(guess - label) <= 1),
        "by batches": scoring(average="by batches"),
        "gradients on": scoring(grad=True),
        "training mode": scoring(mode="as it is", after="as it is"),
        "left in evaluation mode": scoring(after="as it is"),
        "left in training mode": scoring(after="train"),
    },
}

RIGHT = {
    "sentence_classifier": {
        "the package's": classify.SentenceClassifier,
        "einsum": version(by_einsum),
        "class by class": version(class_by_class),
        "functions instead of modules": version(functional_dropout),
    },
    "freeze": {
        "the package's": classify.freeze,
        "with switches, none on": freezing(ask),
        "by name": by_name,
        "by counting the parts": by_counting,
    },
    "smoothed_loss": {
        "PyTorch's": lambda logits, labels, smoothing=0.1: F.cross_entropy(logits, labels, label_smoothing=smoothing),
        "against a target": smoothing_by(right_target),
        "two terms": two_terms,
        "sentence by sentence": sentence_by_sentence,
        "a target in float32": smoothing_by(lambda hot, e, k, b: (1 - e) * hot.float() + e / k),
    },
    "one_step": {
        "with switches, none on": one_step,
        "zero_grad at the end": stepping(zero="end"),
        "torch.autograd.grad": by_autograd,
        "log-softmax and indices": by_log_softmax,
    },
    "macro_fbeta": {
        "with switches, none on": fbeta_by(),
        "confusion matrix": by_confusion_matrix,
        "confusion matrix in float32": functools.partial(by_confusion_matrix, dtype=torch.float32),
        "harmonic mean": by_harmonic_mean,
    },
    "dev_accuracy": {
        "with switches, none on": scoring(),
        "one by one": one_by_one,
        "restore": by_restore,
        "unsorted": batches_as_they_come,
    },
}

UNLISTED = {
    "sentence_classifier": version(lambda self, hidden, pooled, mask: 2 * self.head(self.dropout(pooled))),
    "freeze": freezing(chosen(partial=lambda encoder, n: [encoder.embeddings, encoder.pooler])),
    "smoothed_loss": lambda logits, labels, smoothing=0.1: F.cross_entropy(logits, labels, label_smoothing=smoothing / 2),
    "one_step": stepping(steps=3),
    "macro_fbeta": fbeta_by(square=lambda beta: beta**3),
    "dev_accuracy": scoring(right=lambda guess, label: guess >= label),
}
