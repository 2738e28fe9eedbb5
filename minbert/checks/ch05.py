"""Checks of chapter 5: the classifier, its loss, one training step, and what may be trained."""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import Check, CheckFailed, not_answered, random, same
from minbert.classify import SentenceClassifier
from minbert.embeddings import BagOfEmbeddings

__all__ = ["sentence_classifier", "freeze", "smoothed_loss", "one_step", "head_travel"]


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
    check.equal(check.run(answer, *tiny, 0.2), want, "the loss of a case worked by hand", wrong_losses(*tiny, 0.2))

    # PyTorch's own.
    for smoothing in (0.1, 0.3, 0.0):
        want = cross_entropy(logits, labels, label_smoothing=smoothing)
        check.equal(check.run(answer, logits, labels, smoothing), want, f"the loss with smoothing={smoothing}",
                    wrong_losses(logits, labels, smoothing))  # fmt: skip
    check.equal(check.run(answer, logits, labels), cross_entropy(logits, labels, label_smoothing=0.1), "the loss without the third argument")

    # Large scores. All of them far below 0: every exp is 0. One far above the others: the others' probabilities are 0.
    for large, mistake in (([-800.0, -802.0], "Every exp is 0, and its logarithm is minus infinity. `torch.logsumexp` takes the largest score out first."),
                           ([0.0, 900.0], "A probability is 0, and its logarithm is minus infinity. Work with log-probabilities from the start.")):  # fmt: skip
        large = torch.tensor([large], dtype=torch.float64)
        got = check.run(answer, large, torch.tensor([0]), 0.1)
        check.true(bool(torch.isfinite(got)), f"the loss of the scores {large[0].tolist()} is not finite.", mistake, "a finite number", got)
        check.equal(got, cross_entropy(large, torch.tensor([0]), label_smoothing=0.1), f"the loss of the scores {large[0].tolist()}")
    moving = logits.clone().requires_grad_()
    loss = check.run(answer, moving, labels, 0.1)
    check.true(loss.requires_grad, "no gradient flows back to the scores.", "The scores are detached somewhere.")
    want = torch.autograd.grad(cross_entropy(moving, labels, label_smoothing=0.1), moving)[0]
    check.equal(torch.autograd.grad(loss, moving)[0], want, "the gradient by the scores")
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
            rows.extend(encoder(batch["input_ids"], batch["attention_mask"])[1])
    features, labels = torch.stack(restore(rows, order)), torch.tensor(train.labels)

    moved = []
    for seed in range(3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Linear(features.shape[1], train.classes)
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
