"""Checks of chapter 7: pairs of sentences, joined and apart, and what can go wrong in scoring them."""

import math
from numbers import Integral

import torch
from torch import nn
from torch.nn import functional as F

from minbert.checks.engine import Check, CheckFailed, not_answered, random, randomise

__all__ = ["joined_ids", "apart_pairs", "cross_attention", "soft_class_loss", "closest_pairs", "similarity_loss",
           "dev_correlation", "common_direction"]


# -- 7.1 joined_ids -------------------------------------------------------------------------------------------------

JOIN_CASES = [  # first, second, max_length; [CLS] is 2, [SEP] is 3
    ([2, 11, 12, 13, 3], [2, 21, 22, 3], 20),
    ([2, 11, 3], [2, 21, 22, 23, 3], 7),                    # exactly full
    ([2, 11, 12, 13, 14, 3], [2, 21, 3], 7),                # the first is longer
    ([2, 11, 3], [2, 21, 22, 23, 24, 25, 3], 7),            # the second is
    ([2, 11, 12, 13, 14, 3], [2, 21, 22, 23, 24, 3], 9),    # equally long
    ([2, 11, 12, 13, 14, 15, 3], [2, 21, 22, 23, 3], 7),    # first the longer, then both
    ([2, 11, 12, 3], [2, 21, 22, 3], 5),                    # as short as it can be
]
JOIN_FAULTS = {
    "second cls": "The second [CLS] is still there. A pair has one.",
    "no first sep": "The [SEP] between the two sentences is missing.",
    "no last sep": "The [SEP] at the end is missing.",
    "exchanged": "The second sentence comes first.",
    "zeros": "All token types are 0, so that the model can't tell the two sentences apart by them.",
    "sep is second": "The [SEP] between the sentences has type 1. It belongs to the first sentence.",
    "last sep is first": "The last [SEP] has type 0. It belongs to the second sentence.",
    "types exchanged": "The types are exchanged: 0 is the first sentence.",
    "one and two": "The types are 1 and 2. BERT has two, 0 and 1.",
    "uncut types": "The types are counted before cutting, so that there are more of them than ids, or they change in the wrong place.",
    "slice": "The end is cut off with a slice: the last [SEP] goes, and the second sentence alone pays.",
    "second only": "Only the second sentence is cut. Pieces are taken from the longer of the two.",
    "first only": "Only the first sentence is cut. Pieces are taken from the longer of the two.",
    "shorter": "Pieces are taken from the shorter of the two sentences.",
    "turns": "The sentences take turns from the start. The longer one is cut first, until both are equally long.",
    "front": "Pieces are taken from the front of a sentence. Take the last ones.",
    "uncut": "Nothing is cut, and the sequence is longer than `max_length`.",
    "one less": "One piece more than needed is cut: a sequence of exactly `max_length` fits.",
    "never": "The third value says that nothing was cut although it was.",
    "flag exchanged": "The third value is True where nothing was cut. It asks: was the pair cut?",
    "flag when full": "A pair that just fits counts as cut.",
}


def joined_with(fault, first, second, most):
    """(ids, types, cut) with one known mistake."""
    if fault == "exchanged":
        first, second = second, first
    a, b, cls, sep = first[1:-1], second[1:-1], first[:1], first[-1:]
    over = len(a) + len(b) + 3 - most
    was, turn = (len(a), len(b)), 0
    for _ in range(max(0, over + (fault == "one less"))):
        from_first = {"second only": False, "first only": True, "shorter": len(a) < len(b), "turns": turn % 2 == 0}.get(fault, len(a) > len(b))
        turn += 1
        if fault in ("slice", "uncut"):
            break
        side = slice(1, None) if fault == "front" else slice(0, -1)
        if from_first:
            a = a[side]
        else:
            b = b[side]
    ids = cls + a + sep + b + sep
    types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
    cut = over > 0
    if fault == "second cls":
        ids, types = cls + a + sep + cls + b + sep, types + [1]
    elif fault == "no first sep":
        ids, types = cls + a + b + sep, types[1:]
    elif fault == "no last sep":
        ids, types = ids[:-1], types[:-1]
    elif fault == "zeros":
        types = [0] * len(ids)
    elif fault == "sep is second":
        types = [0] * (len(a) + 1) + [1] * (len(b) + 2)
    elif fault == "last sep is first":
        types = types[:-1] + [0]
    elif fault == "types exchanged":
        types = [1 - t for t in types]
    elif fault == "one and two":
        types = [t + 1 for t in types]
    elif fault == "uncut types":
        types = [0] * (was[0] + 2) + [1] * (was[1] + 1)
    elif fault == "slice":
        ids, types = ids[:most], types[:most]
    cut = {"never": False, "flag exchanged": not cut, "flag when full": over >= 0}.get(fault, cut)
    return ids, types, cut


def joined_ids(answer):
    """Exercise: `answer(first, second, max_length=128)` returns the ids, the token types and whether the pair was cut."""
    check = Check("joined_ids", see='Chapter 7, "Joined or apart"')
    got, no_room = [], "A `max_length` of 5 has room for a piece of each sentence. Only below 5 there is none."
    for first, second, most in JOIN_CASES:
        one, two = list(first), list(second)
        result = check.run(answer, one, two, most, mistakes={ValueError: no_room} if most == 5 else None)
        check.true(one == first and two == second, "an input was changed in place; the caller still needs it as it was.")
        check.true(isinstance(result, (tuple, list)) and len(result) == 3, "three things should be returned: ids, token types, and whether the pair was cut.",
                   expected="(ids, types, cut)", got=type(result).__name__)  # fmt: skip
        ids, types, cut = result
        for value, name in ((ids, "the ids"), (types, "the token types")):
            check.true(isinstance(value, (tuple, list)), f"{name} should be a list of numbers.", expected="a list", got=type(value).__name__)
        got.append((list(ids), list(types), bool(cut)))
    want = [joined_with(None, *case) for case in JOIN_CASES]
    if got != want:
        likely = next((text for fault, text in JOIN_FAULTS.items() if got == [joined_with(fault, *case) for case in JOIN_CASES]), None)
        case, right, wrong = next(row for row in zip(JOIN_CASES, want, got) if row[1] != row[2])
        names = ("the ids are", "the token types are", "whether the pair was cut is")
        place = next(i for i in range(3) if right[i] != wrong[i])
        check.fail(f"{names[place]} not right for {case[0]} and {case[1]} with max_length={case[2]}.", right[place], wrong[place], likely)
    what = "a max_length of 4 should raise a ValueError: there is no room for a piece of each sentence."
    try:
        answer([2, 11, 3], [2, 21, 3], 4)
    except ValueError:
        pass
    except Exception as error:  # whatever else it raises becomes a message
        check.fail(what, "ValueError", type(error).__name__)
    else:
        check.fail(what, "ValueError", "no error", "`max_length` is not looked at before cutting: a sentence, or a [SEP], would vanish without a word.")
    check.equal(tuple(check.run(answer, [2, 11, 3], [2, 21, 3])), ([2, 11, 3, 21, 3], [0, 0, 0, 1, 1], False), "the result without the third argument")
    check.passed("Joined, typed and cut as BERT's own pairs are.")


# -- 7.2 apart_pairs ------------------------------------------------------------------------------------------------


class Reading(nn.Module):
    """A small encoder: its answers depend on the whole sentence, the mask and the token types. It remembers what it was asked."""

    def __init__(self, words=12, size=4):
        super().__init__()
        self.hidden_size = size
        self.word = nn.Parameter(random(words, size, seed=5, std=1.0))
        self.asked = []

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        self.asked.append((len(input_ids), token_type_ids))
        tokens = self.word[input_ids]  # (N, T, D)
        if token_type_ids is not None:
            tokens = tokens + token_type_ids.unsqueeze(-1) / 3
        real = attention_mask.unsqueeze(-1).to(tokens.dtype)
        whole = (tokens * real).sum(1) / real.sum(1)  # (N, D)
        hidden = tokens + whole.unsqueeze(1).sin()
        return hidden, torch.tanh(hidden[:, 0] * 2)


class Meeting(nn.Module):
    """A head for which it matters which vector is u and which is v; it remembers the shapes of what it was given."""

    def __init__(self, expected, outputs=2):
        super().__init__()
        self.expected = expected
        self.weight, self.bias = nn.Parameter(random(outputs, 3 * expected[1], seed=6)), nn.Parameter(random(outputs, seed=7))
        self.met = None

    def forward(self, u, v):
        self.met = tuple(u.shape), tuple(v.shape)
        if self.met != (self.expected, self.expected):
            return u.new_zeros(len(u), len(self.bias))
        return torch.cat([u, 2 * v, (u - v).abs()], dim=-1) @ self.weight.T + self.bias


EMBED_FAULTS = {
    "no mask": "The encoder is given a mask of ones, so that padding is read as words. Hand on `attention_mask`.",
    "padding": "The mean is taken over the padding too. `mean_pool` counts real tokens only.",
    "a neighbour's mask": "The mean is taken with another sentence's mask. Each of the 2B rows has its own.",
    "no pooling": "This is `pooled` with pooling=\"mean\". Look at `self.pooling`.",
    "always the mean": "This is the mean over the tokens with pooling=\"pooler\". Look at `self.pooling`.",
    "first token": "This is the first token's vector in `hidden`. The pooler's result is the second thing that the encoder returns.",
    "no projection": "The projection is missing.",
    "unit": "The vectors are divided by their lengths. A head gets them as they are.",
}
COMPARE_FAULTS = {
    "in turns": "The rows are dealt out in turn, as if the two sentences of a pair were neighbours. The first B rows are first sentences.",
    "exchanged": "u and v are exchanged: the first sentences come first.",
    "u twice": "The head is given the first sentences twice.",
    "difference": "The head is given u − v for v.",
    "projection of one side": "Only the first sentences go through the projection.",
}


def vectors_with(fault, model, ids, mask):
    """The sentence vectors (N, D) with one known mistake; without one, each sentence is read on its own, without padding."""
    encoder, pooling = model.encoder, {"no pooling": "pooler", "always the mean": "mean"}.get(fault, model.pooling)
    if fault == "no mask":
        mask = torch.ones_like(mask)
    if fault in ("padding", "a neighbour's mask", "no mask"):
        hidden, pooled = encoder(ids, mask)
        counted = {"padding": torch.ones_like(mask), "a neighbour's mask": mask.roll(len(mask) // 2, 0)}.get(fault, mask)
        mean = torch.stack([row[real == 1].mean(0) for row, real in zip(hidden, counted)])
    else:
        alone = [encoder(row[real == 1].unsqueeze(0), real[real == 1].unsqueeze(0)) for row, real in zip(ids, mask)]
        mean, pooled = torch.cat([hidden.mean(1) for hidden, _ in alone]), torch.cat([pooled for _, pooled in alone])
        if fault == "first token":
            pooled = torch.cat([hidden[:, 0] for hidden, _ in alone])
    vectors = mean if pooling == "mean" else pooled
    vectors = vectors if fault == "no projection" else model.projection(vectors)
    return F.normalize(vectors, dim=-1) if fault == "unit" else vectors


def compared_with(fault, model, ids, mask):
    """The outputs (B, 2) with one known mistake."""
    vectors = vectors_with(fault, model, ids, mask)
    half = len(ids) // 2
    u, v = (vectors[::2], vectors[1::2]) if fault == "in turns" else (vectors[:half], vectors[half:])
    if fault == "projection of one side":
        v = vectors_with("no projection", model, ids, mask)[half:]
    u, v = {"exchanged": (v, u), "u twice": (u, u), "difference": (u, u - v)}.get(fault, (u, v))
    return model.head(u, v)


def apart_pairs(answer):
    """Exercise: `answer` is the class `ApartPairs`."""
    check = Check("apart_pairs", see='Chapter 7, "Joined or apart"')
    # Three pairs: three first sentences, then their three second ones, no two neighbours equally long. 0 is padding.
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0], [2, 9, 10, 3, 0], [2, 6, 3, 0, 0], [2, 10, 11, 5, 3], [2, 3, 0, 0, 0]])
    mask = (ids > 0).long()
    unnamed = {TypeError: lambda words: "The encoder needs the attention mask too." if "attention_mask" in words
               else "The head takes two things, u and v." if "'v'" in words else None}  # fmt: skip

    def make(pooling="pooler", projection=0, dropout=0.0):
        model = check.run(answer, Reading(), Meeting((3, 4)), pooling, projection, dropout)
        for part, kind in (("encoder", Reading), ("head", Meeting), ("dropout", nn.Dropout), ("projection", nn.Module)):
            check.true(isinstance(getattr(model, part, None), kind), f"the part `{part}` is gone from __init__.")
        randomise(model.projection, seed=8)
        return model.double().eval()

    # `embed` on an odd number of sentences: it knows nothing of pairs.
    for pooling, projection in (("pooler", 0), ("mean", 0), ("mean", 4), ("pooler", 4)):
        model = make(pooling, projection)
        where = f'the result of embed with pooling="{pooling}"' + (" and a projection" if projection else "")
        got = check.run(model.embed, ids[1:4], mask[1:4], mistakes=unnamed)
        check.tensor(got, where, (3, 4), torch.float64, shape_mistakes={
            (3, 5, 4): "A vector for every token is returned. Pool them: one vector a sentence.",
            (1, 4): "`embed` gives a vector for every row. It knows nothing of pairs.",
        })
        known = {text: (lambda fault=fault: vectors_with(fault, model, ids[1:4], mask[1:4])) for fault, text in EMBED_FAULTS.items()}
        check.equal(got, vectors_with(None, model, ids[1:4], mask[1:4]), where, known)
        model.encoder.asked.clear()
        got = check.run(model, ids, mask, mistakes=unnamed)
        calls, met = list(model.encoder.asked), model.head.met
        check.true(met is not None, "the head was not asked.", "`self.head(u, v)` compares the two vectors.")
        check.true(met == ((3, 4), (3, 4)), "what the head is given has the wrong shapes.", {
            ((6, 2), (6, 2)): "The vectors are cut in half, not the batch: `chunk` along the rows.",
            ((6, 4), (6, 4)): "The head is given the whole batch on both sides. Cut the 2B rows in half.",
            ((2, 4), (2, 4)): "The batch is cut in three. There are two sides.",
        }.get(met), "u (3, 4) and v (3, 4)", f"u {met[0]} and v {met[1]}")  # fmt: skip
        check.tensor(got, "the result", (3, 2), torch.float64)
        types = [given for _, given in calls if given is not None]
        check.true(not any(bool(given.any()) for given in types), "the encoder was given token types that are not all 0.",
                   "The second sentences have type 1. That is for joined pairs: here each sentence stands alone.", "0 everywhere", types[:1])  # fmt: skip
        check.true(len(calls) == 1, "the encoder is asked once, for all 2B rows.",
                   "The two sides go through the encoder one after the other. Rows of a batch don't see each other: read them together."
                   if [rows for rows, _ in calls] == [3, 3] else "The encoder is asked again for what it has answered already."
                   if [rows for rows, _ in calls] == [6, 6] else None, "1 call", f"{len(calls)} calls")  # fmt: skip
        known = {text: (lambda fault=fault: compared_with(fault, model, ids, mask))
                 for fault, text in {**COMPARE_FAULTS, **EMBED_FAULTS}.items()}  # fmt: skip
        check.equal(got, compared_with(None, model, ids, mask), where.replace("embed", "forward"), known)

    # With dropout 1 nothing is left of u and v.
    model = make("mean", 4, dropout=1.0)
    u, v = vectors_with(None, model, ids, mask).chunk(2)
    right, nothing, outputs = model.head(u, v), model.head(0 * u, 0 * v), torch.zeros(3, 2)
    check.equal(check.run(model.eval(), ids, mask), right, "the result in evaluation mode, with dropout 1", {
        "Dropout is active in evaluation mode too. `self.dropout` knows the mode.": lambda: nothing,
    })
    check.equal(check.run(model.train(), ids, mask), nothing, "the result in training mode, with dropout 1: u and v are 0", {
        "Dropout is left out.": lambda: right,
        "Dropout is on the head's outputs. It belongs on the vectors.": lambda: outputs,
        "Dropout is on u alone.": lambda: model.head(torch.zeros_like(u), v),
        "Dropout is on v alone.": lambda: model.head(u, torch.zeros_like(v)),
        "Dropout comes before the projection, whose bias is left. It belongs on the vectors that the head gets.":
            lambda: model.head(*model.projection(torch.zeros(6, 4, dtype=u.dtype)).chunk(2)),
    })
    model = make("mean", 4)
    loss = check.run(model, ids, mask).sum()
    check.true(loss.requires_grad and torch.autograd.grad(loss, model.encoder.word, allow_unused=True)[0] is not None,
               "no gradient flows back to the encoder.", "The vectors are detached, or computed under `torch.no_grad()`.")  # fmt: skip
    check.passed("Every sentence is read as if it stood alone, and all of them in one pass.")


# -- 7.3 cross_attention --------------------------------------------------------------------------------------------

CROSS_FAULTS = {
    "printed": "The keys come from sentence 1. In the standard form they come from sentence 2, as the values do.",
    "standard": "The keys come from sentence 2 in the printed form too. There they come from sentence 1: that is what is odd about it.",
    "self": "The values come from sentence 1: nothing of sentence 2 gets into the result.",
    "backwards": "The queries come from sentence 2. Sentence 1 asks.",
    "no mask": "The mask is not used: the padding of sentence 2 is attended to.",
    "inverted": "The mask is inverted: padding is attended to and words are not.",
    "0 and 1": "The mask is added to the scores as 0 and 1. `mask_bias` makes numbers of it that can be added.",
    "unscaled": "The scores are not divided by √Dh.",
    "by √D": "The scores are divided by √D. Each head has vectors of length Dh.",
    "queries' axis": "The softmax goes over the queries. Each query's weights must sum to 1.",
    "one head": "There is only one head. Cut the vectors with `split_heads`.",
    "view": "The heads are put together without swapping the axes back, so numbers of different tokens are mixed. Use `merge_heads`.",
    "no output": "The output layer is missing.",
    "residual": "Sentence 1 is added to the result. The residual connection is `CrossPairs`' part.",
    "key and query": "The layers `query` and `key` are exchanged.",
    "key for value": "The values are made with the layer `key`.",
}


def cross_with(fault, module, first, second, mask):
    """The result of the form that `module.form` names, with one known mistake; written without the package's attention."""
    printed = (module.form == "printed" or fault == "printed") and fault != "standard"
    keys = first if printed else second
    values, asking = (first if fault == "self" else second), (second if fault == "backwards" else first)
    query, key = (module.key, module.query) if fault == "key and query" else (module.query, module.key)
    heads = 1 if fault == "one head" else module.heads
    batch, _, size = first.shape

    def cut(x):
        return x.view(batch, x.shape[1], heads, size // heads).transpose(1, 2)

    q, k, v = cut(query(asking)), cut(key(keys)), cut((module.key if fault == "key for value" else module.value)(values))
    scores = q @ k.transpose(2, 3) / {"unscaled": 1.0, "by √D": math.sqrt(size)}.get(fault, math.sqrt(size // heads))
    hidden = (mask == 1 if fault == "inverted" else mask == 0)[:, None, None, :]
    if fault == "0 and 1":
        scores = scores + mask[:, None, None, :]
    elif fault != "no mask":
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    context = scores.softmax(dim=2 if fault == "queries' axis" else 3) @ v
    if fault != "view":
        context = context.transpose(1, 2)
    context = context.reshape(batch, -1, size)
    result = context if fault == "no output" else module.output(context)
    return first + result if fault == "residual" else result


def cross_attention(answer):
    """Exercise: `answer` is the class `CrossAttention`."""
    check = Check("cross_attention", see='Chapter 7, "Attention between two sentences"')
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])

    def make(form, dropout=0.0):
        module = check.run(answer, 8, 2, dropout, form)
        for part in ("query", "key", "value", "output"):
            check.true(isinstance(getattr(module, part, None), nn.Linear), f"the part `{part}` is gone from __init__.")
        return randomise(module, seed=4).eval()

    for form, length in (("standard", 5), ("printed", 5), ("standard", 4)):
        module, first, second = make(form), random(2, length, 8, seed=1, std=0.8), random(2, 5, 8, seed=2, std=0.8)
        got = check.run(module, first, second, mask, mistakes={
            ValueError: "The lengths of the two sentences may differ in the standard form. Only the printed form needs them equal.",
            RuntimeError: lambda words: "Keys and values must have one length: in the standard form both come from sentence 2."
            if length == 4 else None,
        })
        if isinstance(got, tuple):
            check.fail("one tensor should be returned.", "a tensor", "a tuple", "`attention` returns two things, the context and the probabilities. The first is used.")
        check.tensor(got, "the result", (2, length, 8), torch.float64, shape_mistakes={
            (2, 2, length, 4): "The heads are not put together again: `merge_heads`.",
            (2, 5, 8): "The result has sentence 2's length: sentence 2 asks. Queries come from sentence 1.",
        })
        oracle = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            oracle.in_proj_weight.copy_(torch.cat([module.query.weight, module.key.weight, module.value.weight]))
            oracle.in_proj_bias.copy_(torch.cat([module.query.bias, module.key.bias, module.value.bias]))
            oracle.out_proj.weight.copy_(module.output.weight)
            oracle.out_proj.bias.copy_(module.output.bias)
        want, _ = oracle(first, second if form == "standard" else first, second, key_padding_mask=mask == 0)
        known = {text: (lambda fault=fault: cross_with(fault, module, first, second, mask)) for fault, text in CROSS_FAULTS.items()
                 if length == 5 or fault not in ("printed", "self", "backwards")}  # fmt: skip
        check.equal(got, want, f"the result of the {form} form" + (" with sentences of different lengths" if length == 4 else ""), known)

    what = "the printed form with sentences of different lengths should raise a ValueError that says so."
    try:
        make("printed")(random(2, 4, 8), random(2, 5, 8), mask)
    except ValueError:
        pass
    except Exception as error:  # whatever else it raises becomes a message
        check.fail(what, "ValueError", type(error).__name__, "The lengths are not compared, and PyTorch stops somewhere inside. A reader needs the reason.")
    else:
        check.fail(what, "ValueError", "no error", "The longer sentence is cut, or the shorter one stretched, without a word.")

    check.tensor(check.run(make("standard").bfloat16(), *(random(2, 5, 8).bfloat16() for _ in range(2)), mask, mistakes={
        RuntimeError: lambda words: "The bias has another dtype than the vectors: `mask_bias(second_mask, first.dtype)`." if "type" in words else None,
    }), "the result in bfloat16", dtype=torch.bfloat16)  # fmt: skip

    # With dropout 1 nothing is left but the output layer's bias.
    module, first, second = make("standard", dropout=1.0), random(2, 5, 8, seed=1), random(2, 5, 8, seed=2)
    right, bias = cross_with(None, module, first, second, mask), module.output.bias.expand(2, 5, 8)
    zeros = torch.zeros(2, 5, 8)
    check.equal(check.run(module.eval(), first, second, mask), right, "the result in evaluation mode, with dropout 1", {
        "Dropout is active in evaluation mode too: ask `self.training`.": lambda: bias,
        "Dropout is active in evaluation mode too, and on the result.": lambda: zeros,
    })
    check.equal(check.run(module.train(), first, second, mask), bias, "the result in training mode, with dropout 1: only the bias is left", {
        "Dropout is left out.": lambda: right,
        "Dropout is on the result. It belongs on the probabilities.": lambda: zeros,
    })
    check.passed("Equal to torch.nn.MultiheadAttention in both forms.")


# -- 7.4 soft_class_loss --------------------------------------------------------------------------------------------


def soft_class_loss(answer):
    """Exercise: `answer(logits, labels)` returns the mean cross-entropy against labels between two classes."""
    check = Check("soft_class_loss", see='Chapter 7, "Six classes or one number"')
    logits = random(4, 6, std=1.5)
    labels = torch.tensor([3.8, 0.0, 5.0, 1.4], dtype=torch.float64)
    got = check.run(answer, logits, labels, mistakes={
        IndexError: "A label of 5 lies on the last class, and there is none above it.",
        RuntimeError: lambda words: "A label of 5 lies on the last class, and there is none above it." if "index" in words else None,
    })
    check.true(torch.is_tensor(got), "the loss is no tensor, so no gradient can flow back from it.", expected="a tensor with one value",
               got=type(got).__name__, mistake="`.item()` is for printing. Training needs the tensor.")  # fmt: skip
    check.tensor(got, "the loss", (), torch.float64, shape_mistakes={
        (4,): "One loss for each pair is returned. The mean over the batch is asked for.",
        (4, 6): "One number for each class is returned. Add up over the classes, then take the mean over the batch.",
    })

    # By hand: the scores are 0, but log 2 for class 3 and log 5 for class 4, so p is 2/11, 5/11, and 1/11 elsewhere. The label
    # 3.2 is 4/5 of class 3 and 1/5 of class 4; 3.7 is 3/10 and 7/10. The mean: log 11 - 11/20·log 2 - 9/20·log 5.
    tiny = torch.zeros(2, 6, dtype=torch.float64)
    tiny[:, 3], tiny[:, 4] = math.log(2), math.log(5)
    label = torch.tensor([3.2, 3.7], dtype=torch.float64)
    want = torch.tensor(math.log(11) - 0.55 * math.log(2) - 0.45 * math.log(5), dtype=torch.float64)
    tolerance = 1e-6  # the target may well be a float32 tensor
    check.equal(check.run(answer, tiny, label), want, "the loss of a case worked by hand", soft_mistakes(tiny, label), tolerance)

    # PyTorch's cross-entropy, which takes a distribution as the target too.
    check.equal(got, F.cross_entropy(logits, soft_target(labels)), "the loss", soft_mistakes(logits, labels), tolerance)
    whole = torch.tensor([0.0, 2.0, 5.0, 3.0], dtype=torch.float64)
    check.equal(check.run(answer, logits, whole), F.cross_entropy(logits, whole.long()), "the loss of labels that are whole numbers",
                tolerance=tolerance)  # fmt: skip
    far = torch.tensor([[-800.0, 900.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    check.true(bool(check.run(answer, far, label[:1]).isfinite()), "the loss of scores that are far apart is not finite.",
               "A probability is 0, and its logarithm is minus infinity. Use `log_softmax`, which works with logarithms from the start.",
               "a finite number")  # fmt: skip
    moving = logits.clone().requires_grad_()
    loss = check.run(answer, moving, labels)
    check.true(loss.requires_grad, "no gradient flows back to the scores.", "The scores are detached somewhere.")
    want = torch.autograd.grad(F.cross_entropy(moving, soft_target(labels)), moving)[0]
    check.equal(torch.autograd.grad(loss, moving)[0], want, "the gradient by the scores", tolerance=tolerance)
    check.passed("Equal to PyTorch's cross-entropy against the distribution, gradient included.")


def soft_target(labels, classes=6):
    """(B, K): the share of each class, by two indices and not by the exercise's formula."""
    low = labels.floor().long().clamp(max=classes - 2)
    high_share = (labels - low).unsqueeze(1)
    low = low.unsqueeze(1)
    target = torch.zeros(len(labels), classes, dtype=labels.dtype)
    return target.scatter(1, low, 1 - high_share).scatter(1, low + 1, high_share)


def soft_mistakes(logits, labels):
    """What well-known mistakes would give."""
    log_p, target = logits.log_softmax(-1), soft_target(labels)
    number = torch.arange(6, dtype=logits.dtype)
    distance = (number - labels.unsqueeze(1)).abs()
    # The two shares exchanged: what belongs to the class below goes to the one above.
    low = labels.floor().long().clamp(max=4).unsqueeze(1)
    high_share = (labels.unsqueeze(1) - low)
    exchanged = torch.zeros_like(target).scatter(1, low, high_share).scatter(1, low + 1, 1 - high_share)
    per_pair = -(target * log_p).sum(1)
    return {
        "The two shares are exchanged: the nearer class gets the larger one.": lambda: -(exchanged * log_p).sum(1).mean(),
        "The label is rounded to the nearest class, as S0 does.": lambda: F.cross_entropy(logits, (labels + 0.5).floor().long()),
        "The label is cut off to an integer, so that 3.8 becomes 3.": lambda: F.cross_entropy(logits, labels.long()),
        "The label is rounded up.": lambda: F.cross_entropy(logits, labels.ceil().long()),
        "The maximum with 0 is missing: far classes have negative shares.": lambda: -((1 - distance) * log_p).sum(1).mean(),
        "The losses are added up. The mean over the batch is asked for.": lambda: per_pair.sum(),
        "The mean is taken over the classes too: add up over the classes, then take the mean over the batch.":
            lambda: -(target * log_p).mean(),
        "The scores are multiplied as they are: log-softmax is missing.": lambda: -(target * logits).sum(1).mean(),
        "The logarithm is missing: these are probabilities.": lambda: -(target * log_p.exp()).sum(1).mean(),
        "Softmax is done twice.": lambda: -(target * logits.softmax(-1).log_softmax(-1)).sum(1).mean(),
        "The sign is missing: a log-probability is negative, a loss is positive.": lambda: -per_pair.mean(),
        "This is the squared error of the expected class. Cross-entropy against the two classes is asked for.":
            lambda: ((log_p.exp() @ number - labels) ** 2).mean(),
        "The distance is squared before it is taken from 1.": lambda: -((1 - distance**2).clamp(min=0) * log_p).sum(1).mean(),
    }


# -- 7.5 closest_pairs ----------------------------------------------------------------------------------------------


def closest_pairs(answer):
    """Exercise: `answer(vectors, k)` returns the k pairs with the largest cosine, as (i, j, cosine)."""
    check = Check("closest_pairs", see='Chapter 7, "What N sentences cost"')
    # By hand, in the plane: directions at 0°, 60° and 90°, of different lengths, and one far off. The largest cosines are those of
    # 30°, 60° and 90°: √3/2, 1/2 and 0.
    plane = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(3) / 2], [0.0, 3.0], [-4.0, -3.0]], dtype=torch.float64)
    hand = [(1, 2, math.sqrt(3) / 2), (0, 1, 0.5), (0, 2, 0.0)]
    # Lengths differ much, some cosines are strongly negative.
    vectors = random(7, 3, seed=11) * torch.tensor([1.0, 8.0, 0.3, 2.0, 5.0, 0.1, 1.0], dtype=torch.float64).unsqueeze(1)
    vectors[6] = -3 * vectors[0] + 0.01
    for given, k, want in ((plane, 3, hand), (vectors, 6, pairs_with(None, vectors, 6))):
        got = check.run(answer, given, k)
        check.true(isinstance(got, list) and all(isinstance(row, (tuple, list)) and len(row) == 3 for row in got),
                   "a list of (i, j, cosine) should be returned.", expected="[(i, j, cosine), …]", got=str(got)[:80])  # fmt: skip
        rows = [(int(i), int(j), float(value)) for i, j, value in got]
        check.true(all(isinstance(place, Integral) for row in got for place in row[:2]), "i and j should be integers.",
                   "They are tensors or floats, which can't be used as places of a list everywhere: `.tolist()`.", "int",
               ", ".join(sorted({type(place).__name__ for row in got for place in row[:2]})))  # fmt: skip
        known = {text: (lambda fault=fault: pairs_with(fault, given, k)) for fault, text in PAIR_FAULTS.items()}
        check.equal(rows, want, f"the list of the {k} closest pairs" + (" in a case worked by hand" if given is plane else ""), known)
    too_many = "`topk` can't give more than there are: ask for min(k, number of pairs)."
    got = check.run(answer, plane, 100, mistakes={RuntimeError: too_many, IndexError: too_many})
    check.equal(len(got), 6, "the number of pairs of four sentences, with k = 100")
    check.equal(len(check.run(answer, plane[:1], 3, mistakes={RuntimeError: too_many, IndexError: too_many})), 0, "the number of pairs of one sentence")
    check.passed("Each pair once, the closest first.")


PAIR_FAULTS = {
    "dot": "These are dot products, so that long vectors win. Divide each vector by its length.",
    "one side": "Only one of the two vectors is divided by its length.",
    "itself": "Sentences are paired with themselves: every sentence has a cosine of 1 with itself.",
    "twice": "Each pair is there twice, as (i, j) and as (j, i).",
    "last": "The pairs with the smallest cosines are returned.",
    "rising": "The right pairs, the smallest cosine first. The largest comes first.",
    "unsorted": "The right pairs in the order of their numbers. The largest cosine comes first.",
    "j < i": "The larger number comes first in each pair: i < j is asked for.",
    "absolute": "A cosine near −1 is taken for close. The sign counts.",
    "distance": "The distance decides, and not the angle.",
    "neighbours": "Only each sentence's nearest neighbour is looked at. The second nearest can make a close pair too.",
    "from one": "The sentences are counted from 1.",
}


def pairs_with(fault, vectors, k):
    """The closest pairs, with one known mistake; a loop over pairs, without any matrix product."""
    found, count = [], len(vectors)
    for i in range(count):
        for j in range(count) if fault in ("itself", "twice") else range(i + 1, count):
            if fault == "itself" and j < i or fault == "twice" and j == i:
                continue
            dot = (vectors[i] * vectors[j]).sum().item()
            lengths = vectors[i].norm().item(), vectors[j].norm().item()
            value = {"dot": dot, "one side": dot / lengths[0],
                     "distance": -(vectors[i] - vectors[j]).norm().item()}.get(fault, dot / (lengths[0] * lengths[1]))  # fmt: skip
            found.append((i, j, value))
    if fault == "neighbours":
        best = set()
        for i in range(count):
            near = max((row for row in found if i in row[:2]), key=lambda row: row[2], default=None)
            best.add(near)
        found = list(best)
    order = {"last": lambda row: row[2], "absolute": lambda row: -abs(row[2])}.get(fault, lambda row: -row[2])
    found = sorted(found, key=order)[:k]
    if fault == "rising":
        found = found[::-1]
    if fault == "unsorted":
        found = sorted(found)
    if fault == "j < i":
        found = [(j, i, value) for i, j, value in found]
    if fault == "from one":
        found = [(i + 1, j + 1, value) for i, j, value in found]
    if fault == "distance":
        found = [(i, j, F.cosine_similarity(vectors[i], vectors[j], dim=0).item()) for i, j, _ in found]
    return found


# -- 7.6 similarity_loss --------------------------------------------------------------------------------------------


class Scorer(nn.Module):
    """A regression with one score a pair, (B, 1): the sum of the real tokens' numbers times a weight, plus a bias."""

    def __init__(self, weight=1.0, bias=0.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, input_ids, attention_mask):
        return self.weight * (input_ids * attention_mask).sum(1, keepdim=True) + self.bias


LOSS_FAULTS = {
    "broadcast": "The scores are (B, 1) and the labels (B,): their difference is (B, B), every score against every label.",
    "cut off": "The labels are turned into integers, so that 3.8 becomes 3.",
    "rounded": "The labels are rounded. A regression needs no classes.",
    "scaled": "The labels are divided by 5. That is for a cosine; these scores are on the labels' scale.",
    "sum": "The squares are added up. Their mean is asked for.",
    "root": "This is the root of the mean squared error.",
    "absolute": "This is the mean absolute error.",
    "half": "This is half of it. The mean squared error has no ½.",
    "signed": "The errors are not squared, so that too much and too little cancel.",
    "no mask": "The attention mask is not handed on: padding counts.",
    "first only": "Only the first pair of the batch is used.",
    "huber": "This is Huber's loss.",
    "square of mean": "The mean error is squared. Square first, then take the mean.",
}


def loss_with(fault, model, batch):
    """The loss of a batch with one known mistake."""
    mask = batch["attention_mask"]
    scores = model(batch["input_ids"], torch.ones_like(mask) if fault == "no mask" else mask)[:, 0]
    labels = {"cut off": batch["labels"].floor(), "rounded": (batch["labels"] + 0.5).floor(),
              "scaled": batch["labels"] / 5}.get(fault, batch["labels"])  # fmt: skip
    errors = scores - labels
    if fault == "broadcast":
        errors = scores.unsqueeze(1) - labels
    if fault == "huber":
        return F.huber_loss(scores, labels)
    square = (errors[:1] if fault == "first only" else errors) ** 2
    return {"sum": square.sum, "root": lambda: square.mean().sqrt(), "absolute": lambda: errors.abs().mean(),
            "half": lambda: square.mean() / 2, "signed": errors.mean, "square of mean": lambda: errors.mean() ** 2}.get(fault, square.mean)()  # fmt: skip


def similarity_loss(answer):
    """Exercise: `answer(model, batch)` returns the mean squared error of the scores of a batch."""
    check = Check("similarity_loss", see='Chapter 7, "Six classes or one number"')
    ids = torch.tensor([[1, 2, 0], [2, 1, 4], [1, 0, 0], [1, 1, 3]])
    # The last row's 3 and the second row's 4 are not real tokens: a mask that is not used shows.
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 0, 0], [1, 1, 0]])
    # By hand: with weight 1 and bias 0 the scores are 3, 3, 1 and 2.
    labels = torch.tensor([2.5, 5.0, 4.6, 0.4], dtype=torch.float64)
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    model = Scorer()
    got = check.run(answer, model, batch)
    check.true(torch.is_tensor(got), "the loss is no tensor, so no gradient can flow back from it.", expected="a tensor with one value",
               got=type(got).__name__, mistake="`.item()` is for printing. Training needs the tensor.")  # fmt: skip
    check.tensor(got, "the loss", (), shape_mistakes={
        (4,): "One square for each pair is returned. Their mean is asked for.",
        (4, 4): "Every score is compared with every label, and the mean is missing.",
    })
    known = {text: (lambda fault=fault: loss_with(fault, model, batch)) for fault, text in LOSS_FAULTS.items()}
    # (3 - 2.5)² + (3 - 5)² + (1 - 4.6)² + (2 - 0.4)² = 0.25 + 4 + 12.96 + 2.56 = 19.77, and a quarter of it is 4.9425.
    check.equal(got.detach(), torch.tensor(4.9425, dtype=torch.float64), "the loss", known)
    one = {name: value[:1] for name, value in batch.items()}
    alone = check.run(answer, model, one)
    check.equal(alone.detach(), torch.tensor(0.25, dtype=torch.float64), "the loss of a batch of one")
    check.true(got.requires_grad, "no gradient flows back to the model.", "The scores are detached, or computed under `torch.no_grad()`.")
    want = torch.autograd.grad(F.mse_loss(model(ids, mask).squeeze(1), labels), list(model.parameters()))
    check.equal(list(torch.autograd.grad(got, list(model.parameters()))), list(want), "the gradient")
    check.passed("Each score meets its own label.")


# -- 7.7 dev_correlation --------------------------------------------------------------------------------------------

R_FAULTS = {
    "batches": "r is computed batch by batch and averaged. It belongs to the whole set.",
    "weighted": "r is computed batch by batch, and averaged by the batches' sizes. It belongs to the whole set.",
    "centred by batch": "The mean of each batch is taken away, and not that of the whole set.",
    "cosine": "The means are not taken away: this is the cosine of the two lists.",
    "one mean": "Only the scores' mean is taken away. The labels' is needed too.",
    "one less": "The covariance is divided by N − 1 and the standard deviations by N, or the other way round.",
    "covariance": "This is the covariance. Divide by both standard deviations.",
    "squared": "This is r². r has a sign.",
    "absolute": "The sign is lost: a model that is always wrong the other way has a negative r.",
    "ranks": "This is the correlation of the ranks (Spearman's).",
    "first": "Only the first batch is used.",
    "last": "Only the last batch is used.",
    "slope": "This is the slope of the regression line. Divide by both lengths.",
}


def r_with(fault, batches):
    """r with one known mistake, in plain Python."""

    def deviations(values, mean=None):
        mean = sum(values) / len(values) if mean is None else mean
        return [value - mean for value in values]

    def dot(a, b):
        return sum(p * q for p, q in zip(a, b))

    def pearson_of(xs, ys, centre=True):
        a, b = (deviations(xs), deviations(ys)) if centre else (xs, ys)
        below = math.sqrt(dot(a, a) * dot(b, b))
        return dot(a, b) / below if below else math.nan

    lists = [(scores.tolist(), labels.tolist()) for scores, labels in batches]
    if fault in ("first", "last"):
        return pearson_of(*lists[0 if fault == "first" else -1])
    each = [pearson_of(*one) for one in lists] if fault in ("batches", "weighted") else []
    if fault == "batches":
        return sum(each) / len(each)
    xs, ys = ([value for one in lists for value in one[side]] for side in (0, 1))
    if fault == "weighted":
        return sum(r * len(one[0]) for r, one in zip(each, lists)) / len(xs)
    if fault == "centred by batch":
        return pearson_of([v for one in lists for v in deviations(one[0])], [v for one in lists for v in deviations(one[1])], centre=False)
    a, b, n = deviations(xs), deviations(ys), len(xs)
    r = pearson_of(xs, ys)

    def rank(values):
        return [sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2 for value in values]

    return {
        "cosine": lambda: pearson_of(xs, ys, centre=False), "one mean": lambda: dot(a, ys) / math.sqrt(dot(a, a) * dot(ys, ys)),
        "one less": lambda: r * n / (n - 1), "covariance": lambda: dot(a, b) / n, "squared": lambda: r * r, "absolute": lambda: abs(r),
        "ranks": lambda: pearson_of(rank(xs), rank(ys)), "slope": lambda: dot(a, b) / dot(a, a),
    }.get(fault, lambda: r)()  # fmt: skip


def dev_correlation(answer):
    """Exercise: `answer(batches)` returns Pearson's r over all batches of (scores, labels)."""
    check = Check("dev_correlation", see='Chapter 7, "Two tasks, and a number to beat"')

    def cut(scores, labels, size):
        return list(zip(torch.tensor(scores, dtype=torch.float64).split(size), torch.tensor(labels, dtype=torch.float64).split(size)))

    # By hand: the scores 1 to 5 have the deviations -2, -1, 0, 1, 2; the labels 4, 0, 5, 2, 4 have 1, -3, 2, -1, 1. Their product
    # is -2 + 3 + 0 - 1 + 2 = 2, the squared lengths are 10 and 16: r = 2/√160.
    hand = cut([1, 2, 3, 4, 5], [4, 0, 5, 2, 4], 3)
    falling = cut([0.5, 3.1, 0.2, 2.2, 4.4, 1.0, 2.9, 4.1, 3.3], [4.8, 2.0, 3.6, 3.0, 0.4, 4.0, 0.0, 1.2, 2.2], 4)
    for given, want, what in ((hand, 2 / math.sqrt(160), "r of a case worked by hand"), (falling, r_with(None, falling), "r")):
        got = check.run(answer, [(s.clone(), y.clone()) for s, y in given])
        check.true(isinstance(got, (int, float)) or (torch.is_tensor(got) and got.ndim == 0), "r should be one number.",
                   expected="a number", got=type(got).__name__)  # fmt: skip
        known = {text: (lambda fault=fault: r_with(fault, given)) for fault, text in R_FAULTS.items()}
        check.equal(float(got), want, what, known)
    oracle = torch.corrcoef(torch.stack([torch.cat([s for s, _ in falling]), torch.cat([y for _, y in falling])]))[0, 1]
    check.equal(float(got), oracle.item(), "r beside torch.corrcoef's")
    flat = cut([2.5, 2.5, 2.5, 2.5, 2.5], [1, 2, 3, 4, 5], 2)
    got = float(check.run(answer, flat, mistakes={ZeroDivisionError: "A constant prediction divides 0 by 0. Return `float(\"nan\")`."}))
    check.true(math.isnan(got), "the r of a constant prediction should be NaN.", "The division by 0 is avoided with a small number or a 0: "
               "then a model without any r looks like one with r = 0.", "nan", got)  # fmt: skip
    # A batch in which all labels are equal is no fault of the model's.
    same_labels = cut([1.0, 2.0, 4.0, 3.0], [3, 3, 1, 5], 2)
    check.equal(float(check.run(answer, same_labels)), r_with(None, same_labels), "r of a set with a batch whose labels are equal")
    check.passed("One r for the whole set, equal to torch.corrcoef's.")


# -- 7.8 common_direction -------------------------------------------------------------------------------------------


def common_direction(answer):
    """Exercise: by how much the share of right answers of S0's map rises when the pooler's mean vector is taken away."""
    check = Check("common_direction", see='Chapter 7, "From a cosine to an answer"')
    if answer is None:
        raise CheckFailed(not_answered("common_direction"))
    check.number(answer, 0.0, math.inf, "The rise")  # a number at all?
    vectors, labels = similarity_vectors(check)
    classes = torch.tensor([int(label + 0.5) for label in labels["dev"]])

    def share(pooling, middle=None, split="dev"):
        """How many of S0's answers are right, by an interval for each class, not by the map's scores."""
        u, v = (side - middle if middle is not None else side for side in vectors[split][pooling])
        cosine = F.cosine_similarity(u, v)
        # The winner between neighbouring borders; class 1 has no interval. See the chapter's bar.
        answers = torch.tensor([0, 2, 3, 4, 5])[torch.bucketize(cosine, torch.tensor([0.05, 0.25, 0.55, 0.85]))]
        return (answers == classes).float().mean().item()

    def middle(pooling, split="train"):
        return torch.cat(vectors[split][pooling]).mean(0)

    before, after = share("pooler"), share("pooler", middle("pooler"))
    value, tolerance = float(answer), 0.015
    known = {
        "This is the share after it. By how much does it rise?": after,
        "This is the share before it.": before,
        "The sign: after minus before.": before - after,
        "This is in per cent. A share from 0 to 1 is asked for.": 100 * (after - before),
        "These are mean-pooled vectors. The pooler's are asked for.": share("mean", middle("mean")) - share("mean"),
    }
    near = {text: min(tolerance, 0.2 * abs(wrong)) * (100 if abs(wrong) > 1 else 1) for text, wrong in known.items()}
    likely = [text for text, wrong in known.items() if abs(value - wrong) <= near[text]]
    check.true(abs(value - (after - before)) <= tolerance, f"The rise is not right (to {tolerance}).", likely[0] if likely else None,
               "the share of right answers after the mean is taken away, minus the share before", answer)  # fmt: skip
    check.passed("Nothing was trained: only the borders fit better.")


def similarity_vectors(check):
    """({split: {pooling: (u, v)}}, {split: labels}) of the built-in similarity pairs."""
    from minbert.pretrained import WeightsError, load_pretrained
    from minbert.run.batching import collate
    from minbert.run.data_pairs import load_pairs
    from minbert.tokens import encode

    try:
        encoder, tokenizer, _ = load_pretrained("minilm")
    except WeightsError as error:
        check.fail(f"it needs the real weights, and there is a gap: {error}.")
    vectors, labels = {}, {}
    for split in ("train", "dev"):
        part = load_pairs("sts", split)
        labels[split] = part.labels
        ids, rows = encode(tokenizer, part.first + part.second).ids, {"mean": {}, "pooler": {}}
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        with torch.no_grad():
            for start in range(0, len(order), 32):
                chosen = order[start:start + 32]
                batch = collate(chosen, ids)
                hidden, pooled = encoder(batch["input_ids"], batch["attention_mask"])
                for i, tokens, real, vector in zip(chosen, hidden, batch["attention_mask"], pooled):
                    rows["mean"][i], rows["pooler"][i] = tokens[real == 1].mean(0), vector
        vectors[split] = {name: torch.stack([found[i] for i in range(len(ids))]).chunk(2) for name, found in rows.items()}
    return vectors, labels
