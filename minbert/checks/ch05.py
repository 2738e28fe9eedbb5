"""Checks of chapter 5: the classifier, its loss, one training step, and what may be trained."""

import math
from fractions import Fraction
from itertools import islice

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import Check, CheckFailed, not_answered, random, same
from minbert.classify import SentenceClassifier
from minbert.embeddings import BagOfEmbeddings

__all__ = ["sentence_classifier", "freeze", "smoothed_loss", "one_step", "head_travel", "macro_fbeta", "dev_accuracy",
           "batch_epochs"]


# -- 5.1 sentence_classifier ----------------------------------------------------------------------------------------


class GivenEncoder(nn.Module):
    """An encoder that answers every question with the same vectors, and remembers what it was asked."""

    def __init__(self, hidden, pooled):
        super().__init__()
        self.hidden, self.pooled = nn.Parameter(hidden), nn.Parameter(pooled)
        self.hidden_size = hidden.shape[-1]
        self.asked = {}

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        self.asked = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.hidden * 1, self.pooled * 1  # new tensors, so that torch.no_grad() shows


def sentence_classifier(answer):
    """Exercise: `answer` is the class `SentenceClassifier`."""
    check = Check("sentence_classifier", see='Chapter 5, "From a sentence vector to five scores"')
    ids, mask = torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])  # one row is padded
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]])

    def make(hidden, pooled, classes, dropout=0.0):
        encoder = GivenEncoder(hidden, pooled)
        model = check.run(answer, encoder, classes, dropout)
        for part, kind in (("encoder", nn.Module), ("dropout", nn.Dropout), ("head", nn.Linear)):
            check.true(isinstance(getattr(model, part, None), kind), f"the part `{part}` is gone from __init__.")
        generator = torch.Generator().manual_seed(7)
        model.double()
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return model, encoder

    model, encoder = make(random(2, 4, 6), random(2, 6, seed=1), 5)
    got = check.run(model, ids, mask, types)
    check.tensor(got, "the result", (2, 5), torch.float64, shape_mistakes={
        (2, 4, 5): "The head is applied to every token's vector. It is applied once a sentence, to `pooled`.",
        (2,): "Classes are returned. A loss can't be computed from a class: return the K scores.",
    })
    for name, given in (("attention_mask", mask), ("token_type_ids", types)):
        asked = encoder.asked.get(name)
        check.true(asked is not None and torch.equal(asked, given), f"the encoder was not given the {name}.",
                   mistake={"attention_mask": "Without the mask, the encoder attends to padding, and a sentence's scores depend on its batch.",
                            "token_type_ids": "`token_type_ids` are not handed on: pairs of sentences could not be told apart."}[name])  # fmt: skip

    # By hand. The pooled vector is (1, 2, 0); the two tokens' vectors are (4, 0, 1) and (0, 2, 1), then comes padding.
    # Class 0: weights (1, 2, 3), bias 1/2: 1 + 4 + 0 + 1/2 = 5.5. Class 1: weights (0, −1, 1), bias −1/2: −2 − 1/2 = −2.5.
    tiny, _ = make(torch.tensor([[[4.0, 0, 1], [0, 2, 1], [7, 7, 7]]]), torch.tensor([[1.0, 2, 0]]), 2)
    with torch.no_grad():
        tiny.head.weight.copy_(torch.tensor([[1, 2, 3], [0, -1, 1]]))
        tiny.head.bias.copy_(torch.tensor([0.5, -0.5]))
    one = torch.tensor([[2, 3, 0]]), torch.tensor([[1, 1, 0]])
    by_hand = check.run(tiny, *one)
    check.tensor(by_hand, "the result for a single sentence", (1, 2), shape_mistakes={
        (2,): "`squeeze` takes away the axis of the batch when the batch holds a single sentence.",
    })
    check.equal(by_hand, torch.tensor([[5.5, -2.5]]), "the result of a case worked by hand", wrong_scores(tiny, *one))

    # PyTorch's own linear layer.
    check.equal(got, linear(encoder.pooled, model.head.weight, model.head.bias), "the result", wrong_scores(model, ids, mask))
    got.sum().backward()
    check.true(encoder.pooled.grad is not None, "no gradient flows back to the encoder, so it would never be fine-tuned.",
               mistake="The encoder is called under `torch.no_grad()`, or its output is detached. Freezing is another function's work.")  # fmt: skip

    # Dropout with p = 1 leaves nothing of its input, so its place can be seen exactly.
    sure, encoder = make(random(2, 4, 6, seed=2), random(2, 6, seed=3), 5, dropout=1.0)
    right = linear(encoder.pooled, sure.head.weight, sure.head.bias)
    bias, zeros = sure.head.bias.expand(2, 5), torch.zeros(2, 5)
    check.equal(check.run(sure.eval(), ids, mask), right, "the result in evaluation mode, with dropout 1", {
        "Dropout is active in evaluation mode too. `F.dropout` is, unless it is told; the module `self.dropout` knows.": lambda: bias,
        "Dropout is active in evaluation mode too, and on the scores.": lambda: zeros,
    })
    check.equal(check.run(sure.train(), ids, mask), bias, "the result in training mode, with dropout 1: only the bias is left", {
        "Dropout is left out.": lambda: right,
        "Dropout is on the scores. It belongs on the sentence vector, before the head.": lambda: zeros,
    })
    check.passed("Equal to PyTorch's linear layer on the pooled vector.")


def wrong_scores(model, ids, mask):
    """What well-known mistakes would give."""
    hidden, pooled = model.encoder.hidden, model.encoder.pooled
    weight, bias = model.head.weight, model.head.bias
    right = linear(pooled, weight, bias)
    share = mask / mask.sum(1, keepdim=True)
    return {
        "The head reads the hidden state of [CLS]. It reads `pooled`, the second thing that the encoder returns.":
            lambda: linear(hidden[:, 0], weight, bias),
        "The head reads the last token. In a padded row that is padding, and BERT's sentence vector is `pooled`.":
            lambda: linear(hidden[:, -1], weight, bias),
        "The head reads the mean over all tokens, padding included. It reads `pooled`.":
            lambda: linear(hidden.mean(1), weight, bias),
        "The head reads the mean of the tokens' vectors. That is another model, and a good one; this one reads `pooled`.":
            lambda: linear((share.unsqueeze(-1) * hidden).sum(1), weight, bias),
        "The result went through softmax. Cross-entropy does that itself, so it would be done twice.":
            lambda: right.softmax(-1),
        "The result went through log-softmax. Cross-entropy does that itself; here the scores are asked for.":
            lambda: right.log_softmax(-1),
        "The result went through a sigmoid: the classes exclude each other, and cross-entropy takes plain scores.":
            lambda: right.sigmoid(),
        "`pooled` went through tanh once more. The encoder's pooler has done that.":
            lambda: linear(pooled.tanh(), weight, bias),
        "The bias of the head is missing.": lambda: linear(pooled, weight),
    }


# -- 5.2 freeze -----------------------------------------------------------------------------------------------------


def small_model(layers=3, dropout=0.5):
    """A classifier on a small BERT, with random weights that are the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(vocab_size=20, hidden_size=8, layers=layers, heads=2, intermediate_size=12, max_positions=8,
                            hidden_dropout=dropout, attention_dropout=dropout)  # fmt: skip
        return SentenceClassifier(BertModel(config), classes=3, dropout=dropout).double()


def parts(model):
    """{part: its parameters}: the embeddings, each layer, the pooler, the head."""
    found = {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("encoder.")
        part = ".".join(name.split(".")[:2]) if name.startswith("layers.") else name.split(".")[0]
        found.setdefault(part, []).append(parameter)
    return found


def frozen_parts(model):
    """The parts of which no parameter, or not every one, would be trained."""
    found = []
    for part, parameters in parts(model).items():
        frozen = sum(not parameter.requires_grad for parameter in parameters)
        if frozen:
            found.append(part if frozen == len(parameters) else f"{part} (only {frozen} of {len(parameters)} tensors)")
    return found


def freeze(answer):
    """Exercise: `answer(model, mode, layers=0, frozen_dropout=False)`."""
    check = Check("freeze", see='Chapter 5, "What may change"')
    layers = [f"layers.{i}" for i in range(3)]
    everything = ["embeddings", *layers, "pooler"]

    def expect(mode, count, want, mistakes, model=None):
        model = model or small_model()
        returned = check.run(answer, model, mode, count, mistakes={
            RecursionError: "The whole model is in `frozen`, so that model.train() calls itself without end. Only parts of it can be frozen.",
            ValueError: f"{count} of 3 layers can be frozen. Only a negative number, or one above 3, is refused.",
        })
        check.true(returned is model, "the model should be returned.")
        known = {text: (lambda value=value: value) for text, value in mistakes.items()}
        known["Only the matrices are frozen. Biases and layer normalisations belong to a part too."] = \
            lambda: frozen_parts(only_matrices(want))
        check.equal(frozen_parts(model), want, f"what is frozen by freeze(model, {mode!r}, layers={count})", known)
        return model

    expect("none", 0, [], {"With \"none\" something is frozen all the same.": everything})
    expect("full", 0, everything, {
        "The pooler is left to train. It is part of the encoder, and \"full\" freezes the whole encoder.": everything[:-1],
        "The embeddings are left to train. They are part of the encoder.": [*layers, "pooler"],
        "The head is frozen too, so nothing would learn.": [*everything, "head"],
        "With \"full\", nothing is frozen.": [],
    })
    expect("partial", 2, ["embeddings", *layers[:2]], {
        "The embeddings are left to train while the layers above them are frozen. They come first.": layers[:2],
        "The last layers are frozen. \"partial\" freezes the first ones; those near the head are to learn.": ["embeddings", *layers[1:]],
        "One layer too many is frozen.": ["embeddings", *layers],
        "One layer too few is frozen: the embeddings are not counted as a layer.": ["embeddings", layers[0]],
        "A single layer is frozen, not all up to it.": ["embeddings", layers[1]],
        "The pooler is frozen too. It is above the layers, and learns.": ["embeddings", *layers[:2], "pooler"],
        "What should learn is frozen, and what should be frozen learns.": [layers[2], "pooler"],
    })
    expect("partial", 3, ["embeddings", *layers], {"With all layers, the pooler is frozen too. \"partial\" leaves it to learn.": everything})
    expect("partial", 0, ["embeddings"], {
        "With layers=0 nothing is frozen. \"partial\" freezes the embeddings in any case.": [],
    })

    expect("embeddings", 0, ["embeddings"], {
        "With \"embeddings\", nothing is frozen.": [],
        "With \"embeddings\", the layers are frozen too.": ["embeddings", *layers],
        "With \"embeddings\", everything else is frozen and they alone learn.": [*layers, "pooler", "head"],
    })
    expect("head", 0, ["head"], {
        "With \"head\", nothing is frozen.": [],
        "With \"head\", the encoder is frozen and the head learns. That is \"full\".": everything,
    })
    expect("all", 0, [*everything, "head"], {
        "With \"all\", nothing is frozen.": [],
        "With \"all\", the head is left to train.": everything,
        "With \"all\", the pooler is left to train.": [*everything[:-1], "head"],
    })

    for count, mistake in ((4, "A slice such as `layers[:4]` is silent when there are only 3: ask first how many there are."),
                           (-1, "A negative number means something to a slice, all but the last, and nothing here.")):
        refuses(check, answer, count, mistake)

    # What an earlier call froze must not stay.
    expect("none", 0, [], {
        "An earlier call's freezing stays. Make every parameter trainable first.": everything,
    }, model=check.run(answer, small_model(), "full"))

    # Frozen means evaluation mode too: no dropout there while the rest trains.
    model = check.run(answer, small_model(), "partial", 1)
    model.train()
    modes = {"embeddings": model.encoder.embeddings.training, "layers.0": model.encoder.layers[0].dropout.training,
             "layers.1": model.encoder.layers[1].dropout.training, "head": model.dropout.training}  # fmt: skip
    want = {"embeddings": False, "layers.0": False, "layers.1": True, "head": True}
    check.equal(modes, want, "which parts have dropout after model.train()", {
        "Dropout stays on in the frozen parts: `model.frozen` does not hold them.": lambda: dict.fromkeys(want, True),
        "Dropout is off everywhere.": lambda: dict.fromkeys(want, False),
    })
    model = check.run(answer, small_model(), "all").train()
    check.true(not (model.encoder.layers[0].dropout.training or model.dropout.training), "with \"all\", no dropout should be left after model.train().",
               mistake="The dropout before the head stays on: a model that learns nothing should give the same scores twice.")  # fmt: skip
    kept = check.run(answer, small_model(), "full", frozen_dropout=True).train()
    check.true(kept.encoder.layers[0].dropout.training, "with frozen_dropout=True, dropout should stay on in the frozen parts.",
               mistake="`frozen_dropout` is not used.")  # fmt: skip

    # Three steps of PyTorch's AdamW with strong weight decay, over whatever may be trained: the rest keeps its bits.
    model = check.run(answer, small_model(), "partial", 2).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.5)
    for _ in range(3):
        loss = cross_entropy(model(torch.tensor([[2, 5, 3], [2, 9, 3]]), torch.ones(2, 3, dtype=torch.long)), torch.tensor([0, 2]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, before[name])
        frozen = name.startswith(("encoder.embeddings", "encoder.layers.0.", "encoder.layers.1."))
        check.true(same == frozen, f"{name} {'changed' if frozen else 'did not change'} in three training steps.")
    check.passed("What is frozen kept its bits through three steps of AdamW with weight decay.")


def only_matrices(frozen):
    """The small model with only the matrices of some parts frozen."""
    model = small_model()
    for part, parameters in parts(model).items():
        for parameter in parameters:
            parameter.requires_grad = not (part in frozen and parameter.ndim > 1)
    return model


def refuses(check, answer, count, mistake):
    """A number of layers that the model has not must give a ValueError."""
    what = f"freeze(model, 'partial', layers={count}) on a model with 3 layers should raise a ValueError."
    try:
        answer(small_model(), "partial", count)
    except ValueError:
        return
    except Exception as error:
        check.fail(what, "ValueError", type(error).__name__)
    check.fail(what, "ValueError", "no error", mistake)


# -- 5.3 smoothed_loss ----------------------------------------------------------------------------------------------


def smoothed_loss(answer):
    """Exercise: `answer(logits, labels, smoothing=0.1)` returns the mean cross-entropy against smoothed labels."""
    tolerance = 1e-6  # the target may well be a float32 tensor, as `one_hot(labels).float()` is
    check = Check("smoothed_loss", see='Chapter 5, "From scores to a loss"')
    logits, labels = random(3, 5, std=1.5), torch.tensor([4, 0, 2])  # B is not K
    got = check.run(answer, logits, labels, 0.1)
    check.true(not isinstance(got, float), "the loss is a plain number, so no gradient can flow back from it.",
               "`.item()` is for printing. Training needs the tensor.", "a tensor with one value", "float")  # fmt: skip
    check.tensor(got, "the loss", (), torch.float64, shape_mistakes={
        (3,): "One loss for each sentence is returned. The mean over the batch is asked for.",
        (3, 5): "One number for each class is returned. Add up over the classes, then take the mean over the batch.",
    })

    # By hand: the scores 0 and log 3 give the probabilities 1/4 and 3/4. The label is 1 and ε is 0.2, so the target is
    # (0.1, 0.9): 0.1·log 4 + 0.9·log(4/3) = log 4 − 0.9·log 3. The second row is the same the other way round, and the
    # third has two equal scores: log 2, whatever the target.
    tiny = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0], [1.0, 1.0]], dtype=torch.float64), torch.tensor([1, 0, 0])
    want = torch.tensor((2 * (math.log(4) - 0.9 * math.log(3)) + math.log(2)) / 3, dtype=torch.float64)
    check.equal(check.run(answer, *tiny, 0.2), want, "the loss of a case worked by hand", wrong_losses(*tiny, 0.2), tolerance)

    # PyTorch's own.
    for smoothing in (0.1, 0.3, 0.0):
        want = cross_entropy(logits, labels, label_smoothing=smoothing)
        check.equal(check.run(answer, logits, labels, smoothing), want, f"the loss with smoothing={smoothing}",
                    wrong_losses(logits, labels, smoothing), tolerance)  # fmt: skip
    check.equal(check.run(answer, logits, labels), cross_entropy(logits, labels, label_smoothing=0.1), "the loss without the third argument",
                tolerance=tolerance)  # fmt: skip

    # Large scores. All of them far below 0: every exp is 0. One far above the others: the others' probabilities are 0.
    for large, mistake in (([-800.0, -802.0], "Every exp is 0, and its logarithm is minus infinity. `torch.logsumexp` takes the largest score out first."),
                           ([0.0, 900.0], "A probability is 0, and its logarithm is minus infinity. Work with log-probabilities from the start.")):  # fmt: skip
        large = torch.tensor([large], dtype=torch.float64)
        got = check.run(answer, large, torch.tensor([0]), 0.1)
        check.true(bool(torch.isfinite(got)), f"the loss of the scores {large[0].tolist()} is not finite.", mistake, "a finite number", got)
        check.equal(got, cross_entropy(large, torch.tensor([0]), label_smoothing=0.1), f"the loss of the scores {large[0].tolist()}",
                    tolerance=tolerance)  # fmt: skip
    moving = logits.clone().requires_grad_()
    loss = check.run(answer, moving, labels, 0.1)
    check.true(loss.requires_grad, "no gradient flows back to the scores.", "The scores are detached somewhere.")
    want = torch.autograd.grad(cross_entropy(moving, labels, label_smoothing=0.1), moving)[0]
    check.equal(torch.autograd.grad(loss, moving)[0], want, "the gradient by the scores", tolerance=tolerance)
    check.passed("Equal to PyTorch's cross_entropy with label_smoothing, gradient included.")


def wrong_losses(logits, labels, smoothing):
    """What well-known mistakes would give."""
    classes, count = logits.shape[1], len(labels)
    log_p = log_softmax(logits, -1)
    hot = nn.functional.one_hot(labels, classes).to(logits.dtype)

    def against(target, log_p=log_p):
        return -(target * log_p).sum(1).mean()

    smooth = (1 - smoothing) * hot + smoothing / classes
    return {
        "The labels are not smoothed: this is plain cross-entropy.": lambda: against(hot),
        "ε is shared by the K − 1 other classes. Here it is shared by all K, the true class included.":
            lambda: against((1 - smoothing) * hot + smoothing / (classes - 1) * (1 - hot)),
        "The true class gets 1 − ε and the others ε/K: the targets don't add up to 1. The true class gets its share of ε too.":
            lambda: against((1 - smoothing) * hot + smoothing / classes * (1 - hot)),
        "ε is added to the others and not taken away from the true class.": lambda: against(hot + smoothing / classes),
        "ε and 1 − ε are exchanged.": lambda: against(smoothing * hot + (1 - smoothing) / classes),
        "Every class gets ε, not ε/K.": lambda: against((1 - smoothing) * hot + smoothing),
        "The losses are added up. The mean over the batch is asked for.": lambda: against(smooth) * count,
        "The mean is taken over the classes too: add up over the classes, then take the mean over the batch.":
            lambda: -(smooth * log_p).mean(),
        "The loss is divided by the batch size twice.": lambda: against(smooth) / count,
        "ε is divided by the batch size, not by the number of classes.":
            lambda: against((1 - smoothing) * hot + smoothing / count),
        "Softmax is done twice: cross-entropy and log-softmax take scores, not probabilities.":
            lambda: against(smooth, log_softmax(logits.softmax(-1), -1)),
        "The probabilities are taken for log-probabilities: the logarithm is missing.":
            lambda: against(smooth, logits.softmax(-1)),
        "The sign is missing: a log-probability is negative, a loss is positive.": lambda: -against(smooth),
    }


# -- 5.4 one_step ---------------------------------------------------------------------------------------------------


def one_step(answer):
    """Exercise: `answer(model, batch, optimizer, limit=1.0)` does one training step and returns the loss."""
    check = Check("one_step", see='Chapter 5, "One step of training"')
    model, optimizer = step_model()
    first = check.run(answer, model, STEPS[0], optimizer, LIMIT)
    check.true(isinstance(first, float), "the loss should be a plain number.", expected="float", got=type(first).__name__,
               mistake="The tensor of the loss is returned. Kept in a list, it keeps the whole graph of its step in memory: return `loss.item()`.")  # fmt: skip

    # Three steps of plain gradient descent, against gradients taken by torch.autograd.grad.
    got, want = three_steps(check, answer), simulate(None)
    for number, ((loss, weights), (right_loss, right_weights)) in enumerate(zip(got, want), 1):
        # A mistake shows in some step; which one it is, all three steps tell together.
        if not same(loss, right_loss, 1e-5):
            check.fail(f"the loss of step {number} is not right.", right_loss, loss, fault_of(got))
        if not same(weights, right_weights, 1e-5):
            check.fail(f"the loss of step {number} is right, but the weights after it are not.", mistake=fault_of(got))

    # The model comes from scoring, in evaluation mode. With dropout 1, a training step sees only the head's bias.
    model, optimizer = step_model(dropout=1.0)
    model.eval()
    only_bias = cross_entropy(model.head.bias.detach().expand(3, -1), STEPS[0]["labels"]).item()
    in_evaluation = cross_entropy(model(STEPS[0]["input_ids"], STEPS[0]["attention_mask"]), STEPS[0]["labels"]).item()
    check.equal(check.run(answer, model, STEPS[0], optimizer, LIMIT), only_bias, "the loss of a model that was in evaluation mode", {
        "The model stays in evaluation mode after it was scored, so dropout is off in the rest of the training.": lambda: in_evaluation,
    }, tolerance=1e-6)
    check.passed("Three steps equal gradient descent worked out with torch.autograd.grad.")


LIMIT = 0.8  # the first gradient is shorter, the others are longer
STEPS = [
    {"input_ids": torch.tensor([[2, 5, 3, 0], [2, 6, 7, 3], [2, 3, 0, 0]]), "labels": torch.tensor([0, 2, 1])},
    {"input_ids": torch.tensor([[2, 8, 3], [2, 3, 0]]), "labels": torch.tensor([3, 0])},
    {"input_ids": torch.tensor([[2, 5, 8, 3], [2, 9, 3, 0]]), "labels": torch.tensor([1, 1])},
]
for step in STEPS:
    step["attention_mask"] = (step["input_ids"] != 0).long()

FAULTS = {
    "keep": "The gradients of earlier steps are still there: `backward` adds to them. `optimizer.zero_grad()` is missing.",
    "softmax": "Softmax comes before cross-entropy, which does it itself: done twice, it flattens the gradient.",
    "sum": "The losses of the batch are added up. Their mean is asked for, so that a step does not grow with the batch.",
    "divided": "The loss is divided by the batch size once more. `cross_entropy` has taken the mean.",
    "no clip": "The gradient is not clipped, or not at the right moment: after `backward`, before `step`.",
    "clip each": "Each tensor's gradient is clipped for itself, which turns the direction of the step. The norm of all together is limited.",
    "clip values": "The gradient's values are clipped, which turns its direction. Its norm is limited.",
    "always": "The gradient is scaled to the limit even where it is below it.",
    "no step": "The weights don't change: `optimizer.step()` is missing or comes before `backward`, or the gradients are set to zero between the two.",
    "mask": "The attention mask is not handed to the model: padding counts.",
    "twice": "`optimizer.step()` is called twice.",
    "first only": "Only the first sentence's loss is used.",
}


def step_model(dropout=0.0):
    """A small classifier with a big enough gradient, and plain gradient descent: (model, optimizer)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SentenceClassifier(BagOfEmbeddings(10, 6, dropout=0.0), 4, dropout).double()
        model.encoder.word = nn.Embedding(10, 6).double()  # row 0 is random: padding that is not masked shows
        nn.init.normal_(model.head.weight)
        nn.init.normal_(model.head.bias)
    return model, torch.optim.SGD(model.parameters(), lr=2.0)


def three_steps(check, answer):
    """[(loss, weights), …] of the reader's step."""
    model, optimizer = step_model()
    result = []
    for batch in STEPS:
        loss = check.run(answer, model, batch, optimizer, LIMIT)
        result.append((loss, torch.cat([p.detach().flatten() for p in model.parameters()])))
    return result


def fault_of(got):
    """The known mistake that gives these three steps, or None."""
    return next((text for fault, text in FAULTS.items() if same(got, simulate(fault), 1e-5)), None)


def simulate(fault):
    """The same with gradients from torch.autograd.grad, and one known mistake."""
    model, _ = step_model()
    parameters, carried, result = list(model.parameters()), None, []
    for batch in STEPS:
        mask = torch.ones_like(batch["attention_mask"]) if fault == "mask" else batch["attention_mask"]
        logits, labels = model(batch["input_ids"], mask), batch["labels"]
        logits = logits.softmax(-1) if fault == "softmax" else logits
        if fault == "first only":
            logits, labels = logits[:1], labels[:1]
        loss = cross_entropy(logits, labels, reduction="sum" if fault == "sum" else "mean")
        loss = loss / len(labels) if fault == "divided" else loss
        gradients = list(torch.autograd.grad(loss, parameters))
        if fault == "keep" and carried:
            gradients = [new + old for new, old in zip(gradients, carried)]
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        if fault == "clip each":
            gradients = [g * min(1.0, LIMIT / g.norm().item()) for g in gradients]
        elif fault == "clip values":
            gradients = [g.clamp(-LIMIT, LIMIT) for g in gradients]
        elif fault != "no clip" and (norm > LIMIT or fault == "always"):
            gradients = [g * LIMIT / norm for g in gradients]
        carried = gradients
        times = {"no step": 0, "twice": 2}.get(fault, 1)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients):
                parameter -= times * 2.0 * gradient
        result.append((loss.item(), torch.cat([p.detach().flatten() for p in parameters])))
    return result


# -- 5.5 head_travel ------------------------------------------------------------------------------------------------


def head_travel(answer):
    """Exercise: how far the head's weights get at a learning rate of 1e-5, as a multiple of their first spread."""
    check = Check("head_travel", see='Chapter 5, "An experiment in seconds"')
    if answer is None:
        raise CheckFailed(not_answered("head_travel"))
    check.number(answer, 0.0, math.inf, "The distance")  # a number at all?
    features, labels = frozen_features(check, "pooled")

    moved = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Linear(features.shape[1], 5)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            start = head.weight.detach().clone()
            optimizer = torch.optim.AdamW(head.parameters(), lr=1e-5, weight_decay=0.01)
            for _ in range(10):
                for chosen in torch.randperm(len(labels)).split(8):
                    optimizer.zero_grad()
                    cross_entropy(head(features[chosen]), labels[chosen]).backward()
                    optimizer.step()
        moved.append((head.weight.detach() - start).abs())
    furthest = sum(move.max().item() for move in moved) / 3 / 0.02
    mean = sum(move.mean().item() for move in moved) / 3 / 0.02
    value = float(answer)
    known = {
        "This is the distance itself. Divide it by the spread of the first values, 0.02.": furthest * 0.02,
        "This is the mean over the weights. The one that moved furthest is asked for.": mean,
        "This is ten times too far: was the learning rate 1e-4?": furthest * 10,
        "This is the distance after one epoch. Ten are asked for.": furthest / 10,
    }
    tolerance = 0.02
    likely = [text for text, wrong in known.items() if abs(value - wrong) < min(tolerance, 0.15 * wrong)]
    check.true(abs(value - furthest) <= tolerance, f"The distance is not right (to {tolerance}).", likely[0] if likely else None,
               "the furthest move of any weight, divided by 0.02", answer)  # fmt: skip
    check.passed(f"There were {10 * math.ceil(len(labels) / 8)} steps, and a step moves a weight by about the learning rate at most.")


def frozen_features(check, which):
    """(features (N, D), labels (N,)) of the built-in train sentences: MiniLM's `pooled`, or the mean over the tokens."""
    from minbert.embeddings import mean_pool
    from minbert.pretrained import WeightsError, load_pretrained
    from minbert.run.batching import batches, collate, restore, tokenise
    from minbert.run.data import load_task

    try:
        encoder, tokenizer, _ = load_pretrained("minilm")
    except WeightsError as error:
        check.fail(f"it needs the real weights, and there is a gap: {error}.")
    train = load_task("sst", "train")
    ids = tokenise(train, tokenizer).ids
    order = batches([len(row) for row in ids], 64, shuffle=False)
    rows = []
    with torch.no_grad():
        for indices in order:
            batch = collate(indices, ids)
            hidden, pooled = encoder(batch["input_ids"], batch["attention_mask"])  # (B, T, D), (B, D)
            rows.extend(pooled if which == "pooled" else mean_pool(hidden, batch["attention_mask"]))
    return torch.stack(restore(rows, order)), torch.tensor(train.labels)


# -- 5.6 macro_fbeta ------------------------------------------------------------------------------------------------


def macro_fbeta(answer):
    """Exercise: `answer(predictions, labels, classes, beta=1.0)` returns the mean Fβ score of the classes."""
    check = Check("macro_fbeta", see='Chapter 5, "What a score hides"')
    zero = {ZeroDivisionError: "A class has no hits, or does not occur at all, and something is divided by 0. The second form of the "
                               "formula is 0 there, and a class that occurs nowhere is left out."}  # fmt: skip

    # By hand, β = 2: true 0, 0, 1, 2 and predicted 0, 1, 1, 1. Class 0 has TP 1, FN 1: 5/(5 + 4). Class 1 has TP 1, FP 2:
    # 5/(5 + 2). Class 2 has FN 1: 0. The mean is (5/9 + 5/7 + 0)/3 = 80/189.
    # The others against fractions. Class 3 occurs nowhere, 4 only among the predictions, 2 only among the labels.
    predictions, labels = [0, 0, 0, 1, 1, 4, 0, 1, 0, 1, 4, 0], [0, 0, 1, 1, 1, 0, 2, 1, 0, 0, 2, 1]
    cases = [([0, 1, 1, 1], [0, 0, 1, 2], 3, 2), *((predictions, labels, 5, beta) for beta in (2, 0.5, 1))]
    want = [80 / 189, *(by_precision_and_recall(*case) for case in cases[1:])]
    got = []
    for case in cases:
        value = check.run(answer, *case, mistakes=zero)
        if not isinstance(value, (int, float)) and getattr(value, "ndim", None) != 0:
            check.fail("the score should be one number.", "a number", type(value).__name__)
        got.append(float(value))
    # A mistake is told by all four cases together: in a single one, two mistakes can give the same number.
    wrong = [wrong_scores_of(*case) for case in cases]
    known = (text for text in wrong[0] if same(got, [scores[text]() for scores in wrong], 1e-6))
    names = ["a case worked by hand", *(f"beta={case[3]}" for case in cases[1:])]
    for name, value, right in zip(names, got, want):
        if not same(value, right, 1e-6):
            check.fail(f"the score is not right for {name}.", right, value, next(known, None))
    check.equal(float(check.run(answer, predictions, labels, 5, mistakes=zero)), want[-1], "the score without the fourth argument",
                tolerance=1e-6)  # fmt: skip
    check.passed("Equal to the definition by precision and recall, in fractions.")


def by_precision_and_recall(predictions, labels, classes, beta):
    """The mean Fβ score as the textbooks define it, in exact fractions."""
    beta, scores = Fraction(beta) ** 2, []
    for k in range(classes):
        hits = sum(p == y == k for p, y in zip(predictions, labels))
        said, true = predictions.count(k), labels.count(k)
        if said == true == 0:
            continue
        precision, recall = Fraction(hits, said or 1), Fraction(hits, true or 1)
        scores.append((1 + beta) * precision * recall / (beta * precision + recall) if hits else Fraction(0))
    return float(sum(scores) / len(scores))


def wrong_scores_of(predictions, labels, classes, beta):
    """What well-known mistakes would give."""
    counts = []  # (TP, FP, FN) of each class
    for k in range(classes):
        hits = sum(p == y == k for p, y in zip(predictions, labels))
        counts.append((hits, predictions.count(k) - hits, labels.count(k) - hits))
    square = beta**2

    def score(hits, alarms, missed, square=square):
        below = (1 + square) * hits + square * missed + alarms
        return (1 + square) * hits / below if below else 0.0

    def mean(values):
        values = list(values)
        return sum(values) / len(values) if values else math.nan

    present = [c for c in counts if sum(c)]
    precisions = [h / (h + a) if h + a else 0.0 for h, a, _ in present]
    recalls = [h / (h + m) if h + m else 0.0 for h, _, m in present]
    p, r = mean(precisions), mean(recalls)
    return {
        "β is not squared.": lambda: mean(score(*c, square=beta) for c in present),
        "β is ignored: this is F1.": lambda: mean(score(*c, square=1) for c in present),
        "Misses and false alarms are exchanged: β weighs the misses (FN).": lambda: mean(score(h, m, a) for h, a, m in present),
        "The mean is divided by the number of all classes. A class that occurs nowhere is left out.":
            lambda: sum(score(*c) for c in counts) / classes,
        "A class that occurs nowhere counts as a perfect score of 1. It is left out.":
            lambda: mean(score(*c) if sum(c) else 1.0 for c in counts),
        "A class that occurs among the predictions only is left out. It has a score of 0: those were false alarms.":
            lambda: mean(score(*c) for c in counts if c[0] + c[2]),
        "A class that is never predicted is left out. It has a score of 0: all of it was missed.":
            lambda: mean(score(*c) for c in counts if c[0] + c[1]),
        "A class without a hit is left out. It has a score of 0.": lambda: mean(score(*c) for c in counts if c[0]),
        "The counts of all classes are added up first. That is the micro average, in which frequent classes count more.":
            lambda: score(*(sum(column) for column in zip(*counts))),
        "The classes are weighted by how frequent they are. The plain mean is asked for.":
            lambda: sum((c[0] + c[2]) * score(*c) for c in counts) / len(labels),
        "Precision and recall are averaged over the classes first. Take the score of each class, then the mean.":
            lambda: (1 + square) * p * r / (square * p + r),
        "This is the mean recall. Precision is missing.": lambda: r,
        "This is the mean precision. Recall is missing.": lambda: p,
        "The factor 1 + β² is missing above.": lambda: mean(score(*c) / (1 + square) for c in present),
        "These are per cent. A share between 0 and 1 is asked for.": lambda: 100 * mean(score(*c) for c in present),
        "The scores are added up. Their mean is asked for.": lambda: sum(score(*c) for c in present),
    }


# -- 5.7 dev_accuracy -----------------------------------------------------------------------------------------------


def dev_accuracy(answer):
    """Exercise: `answer(model, ids, labels, batch_size=4)` returns the share of sentences whose class is right."""
    check = Check("dev_accuracy", see='Chapter 5, "Batches of similar length"')
    ids, labellings = scored_sentences()
    got = []
    for labels in labellings:
        model = Watched().eval()
        value = check.run(answer, model, [list(row) for row in ids], list(labels), mistakes={
            IndexError: "An index lies outside of the list: the last batch has fewer sentences than the others.",
        })
        check.true(isinstance(value, (float, int)) or (torch.is_tensor(value) and value.ndim == 0), "the accuracy should be one number.",
                   expected="a number", got=type(value).__name__)  # fmt: skip
        got.append(round(float(value), 6))
    known = {text: (lambda fault=fault: accuracy_with(fault)) for fault, text in SCORING_FAULTS.items()}
    check.equal(got, accuracy_with(None), "the accuracy", known)
    check.true(not model.graphs, "the answer is right, but the model was called with gradients switched on.",
               "`torch.no_grad()` is missing: every batch builds a graph for a backward pass that never comes.")  # fmt: skip
    check.true(not model.training, "the model came in evaluation mode and was left in training mode.",
               "`model.train()` is called at the end whatever the mode was before.")  # fmt: skip

    # In training mode, the dropout of this model leaves only the head's bias: the same class for every sentence.
    model = Watched(dropout=1.0).train()
    value = round(float(check.run(answer, model, [list(row) for row in ids], list(labellings[0]))), 6)
    check.equal(value, accuracy_with(None)[0], "the accuracy of a model that came in training mode", {
        "The model is scored in training mode, with dropout. `model.eval()` is missing.": lambda: accuracy_with("training mode")[0],
    })
    check.true(model.training, "the model came in training mode and was left in evaluation mode.",
               "The mode is not put back, so that the rest of the training runs without dropout.")  # fmt: skip
    check.passed("Every sentence was compared with its own label.")


class Watched(nn.Module):
    """A small classifier that remembers whether it was called with gradients on."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.inner, _ = step_model(dropout)
        with torch.no_grad():
            self.inner.encoder.word.weight[0] *= 8  # padding that is not masked shows
        self.graphs = False

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        self.graphs = self.graphs or torch.is_grad_enabled()
        return self.inner(input_ids, attention_mask)


def scored_sentences():
    """23 sentences of mixed lengths, and three lists of labels for them, of which the model gets some right."""
    generator = torch.Generator().manual_seed(5)
    length = torch.randint(1, 20, (23,), generator=generator).tolist()
    ids = [[2, *torch.randint(4, 10, (n,), generator=generator).tolist(), 3] for n in length]
    answers = own_answers(ids)
    labellings = []
    for share in (0.6, 0.5, 0.4):
        keep = torch.rand(23, generator=generator) < share
        other = torch.randint(0, 4, (23,), generator=generator).tolist()
        labellings.append([a if k else o for a, k, o in zip(answers, keep.tolist(), other)])
    return ids, labellings


def own_answers(ids, mode="eval", lowest=False):
    """The model's class for each sentence on its own, so that there is neither padding nor an order."""
    model = Watched(dropout=1.0 if mode == "train" else 0.0)
    model.train(mode == "train")
    pick = torch.argmin if lowest else torch.argmax
    with torch.no_grad():
        return [pick(model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))[0]).item() for row in ids]


SCORING_FAULTS = {
    "order": "The guesses are in the order of the batches, and the labels in that of the file: each guess is compared with another sentence's label.",
    "mean of means": "The batches' accuracies are averaged. The last batch is smaller, so that its sentences count for more.",
    "last batch": "The last, smaller batch is left out, and its sentences count as wrong.",
    "last batch, not counted": "The last, smaller batch is left out altogether.",
    "first batch": "Only the first batch is scored.",
    "count": "The number of right answers is returned. Divide it by the number of sentences.",
    "per cent": "These are per cent. A share between 0 and 1 is asked for.",
    "no mask": "The attention mask is not handed to the model: padding counts, and a sentence's class depends on its batch.",
    "argmin": "The lowest score is taken for the answer.",
    "errors": "This is the share of wrong answers.",
    "near": "An answer one class off counts as right.",
    "batches": "The number of right answers is divided by the number of batches.",
}  # fmt: skip


def accuracy_with(fault):
    """[the accuracy under each of the three lists of labels], with one known mistake."""
    ids, labellings = scored_sentences()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    guesses = own_answers(ids, "train" if fault == "training mode" else "eval", fault == "argmin")
    if fault == "no mask":
        model = Watched().eval()
        for start in range(0, len(order), 4):
            rows = order[start : start + 4]
            longest = max(len(ids[i]) for i in rows)
            padded = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in rows])
            with torch.no_grad():
                for i, guess in zip(rows, model(padded, torch.ones_like(padded)).argmax(-1).tolist()):
                    guesses[i] = guess
    result = []
    for labels in labellings:
        right = [guesses[i] == labels[i] for i in order]
        parts = [right[start : start + 4] for start in range(0, len(right), 4)]
        if fault == "order":
            right = [guesses[i] == label for i, label in zip(order, labels)]
        if fault == "near":
            right = [abs(guesses[i] - labels[i]) <= 1 for i in order]
        value = {
            "mean of means": lambda: sum(sum(part) / len(part) for part in parts) / len(parts),
            "last batch": lambda: sum(sum(part) for part in parts[:-1]) / len(right),
            "last batch, not counted": lambda: sum(sum(part) for part in parts[:-1]) / sum(len(part) for part in parts[:-1]),
            "first batch": lambda: sum(parts[0]) / len(parts[0]),
            "count": lambda: sum(right),
            "per cent": lambda: 100 * sum(right) / len(right),
            "errors": lambda: 1 - sum(right) / len(right),
            "batches": lambda: sum(right) / len(parts),
        }.get(fault, lambda: sum(right) / len(right))
        result.append(round(float(value()), 6))
    return result


# -- 5.8 batch_epochs -----------------------------------------------------------------------------------------------


def batch_epochs(answer):
    """Exercise: after how many epochs batches of 32 reach the loss that batches of 8 have after ten, at one rate."""
    check = Check("batch_epochs", see='Chapter 5, "What a batch size changes"')
    if answer is None:
        raise CheckFailed(not_answered("batch_epochs"))
    check.number(answer, 0.0, math.inf, "The number of epochs")  # a number at all?
    features, labels = frozen_features(check, "mean")

    def epoch_by_epoch(batch_size, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Linear(features.shape[1], 5)
            nn.init.normal_(head.weight, std=0.02)
            nn.init.zeros_(head.bias)
            optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
            for _ in range(60):
                for chosen in torch.randperm(len(labels)).split(batch_size):
                    optimizer.zero_grad()
                    cross_entropy(head(features[chosen]), labels[chosen]).backward()
                    optimizer.step()
                with torch.no_grad():
                    yield cross_entropy(head(features), labels).item()

    needed = []
    for seed in range(3):
        goal = list(islice(epoch_by_epoch(8, seed), 10))[-1]
        needed.append(next(number for number, loss in enumerate(epoch_by_epoch(32, seed), 1) if loss <= goal))
    right, value = sum(needed) / 3, float(answer)
    steps = math.ceil(len(labels) / 32)
    known = {
        "That many epochs would cover the same distance. But a step of the larger batch has less noise in it, and gets further in the "
        "direction that counts: measure it.": (40, 4),
        "This is the number of *steps*. Epochs are asked for.": (right * steps, 3 * steps),
        "This is the number of epochs that batches of 8 were given. How many do batches of 32 need?": (10, 1),
        "This is how many times as many epochs are needed. How many epochs is that?": (right / 10, 0.5),
    }
    tolerance = 3
    likely = [text for text, (wrong, near) in known.items() if abs(value - wrong) <= near]
    check.true(abs(value - right) <= tolerance, f"The number of epochs is not right (to {tolerance}).", likely[0] if likely else None,
               "the first epoch after which the loss is as low as that of batches of 8 after ten", answer)  # fmt: skip
    check.passed(f"That is {right * steps / (10 * math.ceil(len(labels) / 8)):.1f} times the steps of the smaller batch.")
