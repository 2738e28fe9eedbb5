"""Checks of chapter 2: the mask, attention, heads.

The oracles are PyTorch's own `scaled_dot_product_attention` and `nn.MultiheadAttention`. The random inputs are small:
with large ones softmax is one-hot, and attention without √Dh, with √D or with Dh all give the same.
"""

import math

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from minbert.attention import attention as plain_attention
from minbert.attention import merge_heads, split_heads
from minbert.checks.engine import Check, random, randomise, same

__all__ = ["mask_bias", "attention", "multi_head_attention", "self_attention", "local_attention", "head_switched_off"]

F64 = torch.float64
ROOT = 1e-6  # a tolerance for results in which √Dh may be a float32 number: `torch.sqrt(torch.tensor(2))` is one
# The chapter's case: three tokens, two dimensions; the third token is padding wherever a mask is used.
HAND_Q = torch.tensor([[[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]]], dtype=F64)  # (1, 1, 3, 2)
HAND_K = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]]], dtype=F64)  # (1, 1, 3, 2)
HAND_V = torch.tensor([[[[10.0, 0.0], [0.0, 10.0], [20.0, 20.0]]]], dtype=F64)  # (1, 1, 3, 2)



def _by_words(shapes):
    """{RuntimeError: the likely mistake by the words of the error}. `shapes` is told of shapes that do not fit."""
    known = {
        "Boolean value": "A tensor is asked whether it is true, as in `if bias:`. Ask whether it is None.",
        "view size is not compatible": "After a transpose the numbers no longer lie in memory in the order of the axes, so `view` refuses. `reshape` copies them.",
        "boolean mask": "A mask for masked_fill must be Boolean. Compare it with a number, or use .bool().",
    }
    sizes = ("must match", "cannot be multiplied", "is invalid for input", "Expected size", "Expected input batch", "must be equal")

    def likely(words):
        for part, text in known.items():
            if part in words:
                return text
        return shapes if any(size in words for size in sizes) else None

    return {RuntimeError: likely}


# ---- the mask ---------------------------------------------------------------------------------------------------------

def mask_bias(answer):
    """Exercise: `mask_bias(attention_mask, dtype)`."""
    check = Check("mask_bias", see='Chapter 2, "The mask"')
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])  # (2, 5)
    outside = 1.0 - mask[:, None, None, :].to(F64)  # (2, 1, 1, 5): 1 where there is padding

    single = check.run(answer, mask, torch.float32)
    half = check.run(answer, mask, torch.float16, mistakes={
        RuntimeError: "A number such as -1e9 does not fit into float16, which ends at -65504; masked_fill refuses it.",
    })  # fmt: skip
    for got, dtype in [(single, torch.float32), (half, torch.float16)]:
        check.true(torch.is_tensor(got) and got.dtype == dtype, f"the bias has the wrong dtype when {dtype} is asked for.",
                   "The argument dtype is not used, or only for a part. In mixed precision the scores may be float16.",
                   dtype, getattr(got, "dtype", type(got).__name__))  # fmt: skip
    check.true(not (single.isnan().any() or half.isnan().any()), "the bias contains NaN.",
               "0 times infinity is NaN: (1 - mask) is multiplied by an infinite number (in float16, -1e9 becomes one).")
    check.true(not single.isinf().any(), "the bias contains an infinite value.",
               "With -inf a sentence of padding only gives NaN after the softmax. A finite number does not.")
    check.true(not half.isinf().any(), "in float16 the bias contains an infinite value.",
               "The number, -1e9 perhaps, is finite in float32 but too large for float16, which ends at -65504.")
    check.tensor(single, "the bias", shape=(2, 1, 1, 5), shape_mistakes={
        (2, 5): "There are no axes for heads and queries. (B, T) can't be added to scores of (B, H, T, T).",
        (2, 1, 5): "One axis is missing. Shapes are matched from the right, so B would meet the axis of the heads.",
        (2, 1, 5, 1): "The mask stands on the query axis, the third. What must not be looked at is a key: the last axis.",
    })  # fmt: skip

    for dtype in (torch.float32, torch.float16, F64):
        got = check.run(answer, mask, dtype).to(F64)
        lowest = torch.finfo(dtype).min
        check.equal(got, outside * lowest, f"The bias in {dtype}", {
            "The mask is inverted: the real tokens get the negative number, and padding gets 0.":
                lambda: (1 - outside) * lowest,
            "These are the mask's own 1s and 0s. Added to scores they only tilt the softmax a little.":
                lambda: 1 - outside,
            "Padding gets 1 and tokens get 0: adding that makes padding more attractive, not less.": lambda: outside,
            "Padding gets -1: that makes padding about three times less likely, not impossible.": lambda: -outside,
            "The sign is wrong: padding gets a large positive number, so the softmax sees nothing but padding.":
                lambda: outside * -lowest,
            "Padding gets a negative number, but not the most negative one of this dtype (torch.finfo). How small is small enough should not depend on the scores.":
                lambda: outside * got.min().clamp(max=0),
        })  # fmt: skip

    # What it is for: the same probabilities as PyTorch's attention with a Boolean mask, and 0 on padding, exactly.
    q, k = random(2, 3, 5, 4, seed=1), random(2, 3, 5, 4, seed=2)
    identity = torch.eye(5, dtype=F64).expand(2, 3, 5, 5)
    want = scaled_dot_product_attention(q, k, identity, attn_mask=mask.bool()[:, None, None, :])
    got = (q @ k.transpose(-2, -1) / 2.0 + check.run(answer, mask, F64)).softmax(-1)
    check.equal(got, want, "softmax(scores + bias)")
    nothing = check.run(answer, torch.zeros(1, 5, dtype=torch.int64), torch.float32)
    check.true((torch.ones(5) + nothing).softmax(-1).isfinite().all(), "a sentence of padding only gives NaN.")
    check.passed()


# ---- attention --------------------------------------------------------------------------------------------------------

def attention(answer):
    """Exercise: `attention(q, k, v, bias, dropout)`."""
    check = Check("attention", see='Chapter 2, "Attention, the whole of it"')

    def call(*args):
        result = check.run(answer, *args, mistakes=_by_words(
            "Two shapes don't fit. Often it is the keys: their last two axes must change places."
        ) | {TypeError: "If the error speaks of NoneType: the bias may be None, and then there is nothing to add."})
        check.true(isinstance(result, (tuple, list)) and len(result) == 2,
                   "it should return two tensors, the context and the probabilities.",
                   "Only one of the two is returned.", "(context, probabilities)", type(result).__name__)
        return result

    def compare(q, k, v, bias, what):
        context, probabilities = call(q, k, v) if bias is None else call(q, k, v, bias)
        size = (*q.shape[:3], k.shape[2])
        check.tensor(context, f"the context {what}", shape=q.shape, dtype=q.dtype, shape_mistakes={
            size: "The two results are in the wrong order: first the context, then the probabilities."
        })  # fmt: skip
        check.tensor(probabilities, f"the matrix of probabilities {what}", shape=size, dtype=q.dtype)
        want = scaled_dot_product_attention(q, k, v, attn_mask=bias)
        check.equal(context, want, f"The context {what}", _attention_mistakes(q, k, v, bias), ROOT)
        identity = torch.eye(k.shape[2], dtype=F64).expand(*k.shape[:2], -1, -1)
        check.equal(probabilities, scaled_dot_product_attention(q, k, identity, attn_mask=bias),
                    f"The matrix of probabilities {what}", {
                        "These are the scores, before the softmax.":
                            lambda: q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + (0 if bias is None else bias),
                    }, ROOT)  # fmt: skip

    # With dropout = 0 nothing is random.
    first, second = call(HAND_Q, HAND_K, HAND_V)[0], call(HAND_Q, HAND_K, HAND_V)[0]
    check.true(same(first, second, 1e-12), "two calls with dropout = 0 give two results.",
               "nn.functional.dropout is called without its second argument, and then drops half. Give it `dropout`.")

    # By hand, without a bias. First query (1, 0): scores 1, 0, 1, divided by √2: .7071, 0, .7071; their exponentials
    # 2.0281, 1, 2.0281 sum to 5.0562, so the probabilities are .4011, .1978, .4011 and the context is (12.034, 10).
    compare(HAND_Q, HAND_K, HAND_V, None, "of the chapter's three tokens")
    want = torch.tensor([12.0335, 10.0], dtype=F64)
    check.equal(call(HAND_Q, HAND_K, HAND_V)[0][0, 0, 0], want, "The context of the chapter's first token", tolerance=1e-4)

    # A bias of any values, not only 0 and very negative: some later models add learned ones.
    q, k, v = (random(2, 3, 5, 4, seed=seed) for seed in (1, 2, 3))
    compare(q, k, v, None, "of random queries, keys and values")
    compare(q, k, v, random(2, 1, 5, 5, seed=4), "with a random bias")

    # By hand, without the third token. First query: 2.0281 and 1 make the probabilities .6698 and .3302; the context is
    # (6.698, 3.302). Third query (1, 1): both scores are 1, so the probabilities are one half each, the context is (5, 5).
    bias = torch.tensor([0.0, 0.0, -1e4], dtype=F64).view(1, 1, 1, 3)
    compare(HAND_Q, HAND_K, HAND_V, bias, "of the chapter's three tokens with the third masked")
    context, _ = call(HAND_Q, HAND_K, HAND_V, bias)
    for query, want in [(0, [6.6976, 3.3024]), (2, [5.0, 5.0])]:
        check.equal(context[0, 0, query], torch.tensor(want, dtype=F64), f"The context of token {query}", tolerance=1e-4)

    # Padded rows, and another number of keys.
    compare(q, k, v, random(2, 1, 1, 5, seed=5), "with a random bias for each key")
    compare(q, random(2, 3, 7, 4, seed=6), random(2, 3, 7, 4, seed=7), None, "with more keys than queries")

    # Dropout. With 1 all probabilities are 0. With .5 and values [I I], where I is the identity, the context shows them
    # twice: each is 0 or twice what it was, and both halves are equal.
    _, before = call(q, k, v)
    context, probabilities = call(q, k, v, None, 1.0)
    check.equal(context, torch.zeros_like(context), "The context with dropout = 1, where every probability is dropped,", {
        "Dropout is left out.": lambda: before @ v,
        "Dropout is applied to the scores. A score of 0 is not a probability of 0: softmax makes it positive again.":
            lambda: v.mean(dim=-2, keepdim=True).expand_as(v),
    })  # fmt: skip
    check.equal(probabilities, before, "The returned matrix of probabilities with dropout = 1", {
        "These are the probabilities after dropout. Return them as they were before.": lambda: torch.zeros_like(before),
    })  # fmt: skip
    double = torch.eye(5, dtype=F64).repeat(1, 2).expand(2, 3, 5, 10)
    wide_q, wide_k = random(2, 3, 5, 10, seed=8), random(2, 3, 5, 10, seed=9)
    context, probabilities = call(wide_q, wide_k, double, None, 0.5)
    left, right = context[..., :5], context[..., 5:]
    check.true(same(left, right, 1e-9), "with dropout, two equal columns of values give two different results.",
               "Dropout is applied to the values or to the context. It belongs on the probabilities.")
    dropped = left == 0
    check.true(dropped.any() and not dropped.all(), "with dropout = 0.5 about half of the probabilities should be dropped.")
    check.equal(left, torch.where(dropped, 0.0, 2 * probabilities), "With dropout = 0.5, what is left of the probabilities", {
        "What is kept does not grow. It must be divided by 1 - dropout, so that the mean stays the same.":
            lambda: torch.where(dropped, 0.0, probabilities),
    })  # fmt: skip
    check.passed()


def _attention_mistakes(q, k, v, bias):
    """{mistake: the context that it gives}."""
    b = torch.zeros(1, 1, 1, 1, dtype=q.dtype) if bias is None else bias
    size = q.shape[-1]
    scores, scaled = q @ k.transpose(-2, -1), q @ k.transpose(-2, -1) / math.sqrt(size)
    right = (scaled + b).softmax(-1)
    mistakes = {
        "The scores are not divided by √Dh.": lambda: (scores + b).softmax(-1) @ v,
        "The scores are divided by Dh, not by its square root.": lambda: (scores / size + b).softmax(-1) @ v,
        "The scores are multiplied by √Dh instead of divided.": lambda: (scores * math.sqrt(size) + b).softmax(-1) @ v,
        "The scores are divided by √D, with D the size of all heads together. Each head has vectors of size Dh.":
            lambda: (scores / math.sqrt(size * q.shape[1]) + b).softmax(-1) @ v,
        "The scores are divided by √T: the wrong axis's size. It is the size of a query, the last axis.":
            lambda: (scores / math.sqrt(q.shape[-2]) + b).softmax(-1) @ v,
        "The softmax runs over the queries (dim=-2). Each query's probabilities must sum to 1: dim=-1.":
            lambda: (scaled + b).softmax(-2) @ v,
        "The softmax runs over the heads (dim=1).": lambda: (scaled + b).softmax(1) @ v,
        "There is no softmax.": lambda: (scaled + b) @ v,
        "The keys are reshaped to (…, Dh, S) instead of transposed: the numbers are read in another order.":
            lambda: (q @ k.reshape(*k.shape[:2], size, -1) / math.sqrt(size) + b).softmax(-1) @ v,
        "Queries and keys have changed places: row i must be what query i sees.":
            lambda: (scaled.transpose(-2, -1) + b).softmax(-1) @ v,
        "The probabilities are transposed before they meet the values.": lambda: right.transpose(-2, -1) @ v,
        "The average is taken over the keys. It is the values that are averaged.": lambda: right @ k,
        "Keys and values have changed places: the scores are made with the keys, and the values are averaged.":
            lambda: (q @ v.transpose(-2, -1) / math.sqrt(size) + b).softmax(-1) @ k,
    }  # fmt: skip
    if bias is None:
        return mistakes | {
            "`dropout` is taken for the share that is kept. It is the share that is set to 0.": lambda: torch.zeros_like(q),
        }  # fmt: skip
    return mistakes | {
        "The bias is not used.": lambda: scaled.softmax(-1) @ v,
        "The bias is added after the softmax. It must be added to the scores, before.": lambda: (scaled.softmax(-1) + b) @ v,
        "The probabilities are multiplied by the mask after the softmax: what is left does not sum to 1.":
            lambda: (scaled.softmax(-1) * (b == 0)) @ v,
        "The probabilities are multiplied by the bias.": lambda: (scaled.softmax(-1) * b) @ v,
        "The bias is subtracted.": lambda: (scaled - b).softmax(-1) @ v,
        "The bias is divided by √Dh with the scores. It is added after the division.":
            lambda: ((scores + b) / math.sqrt(size)).softmax(-1) @ v,
        "The bias is on the query axis: it is transposed.": lambda: (scaled + b.transpose(-2, -1)).softmax(-1) @ v,
    }  # fmt: skip


# ---- heads ------------------------------------------------------------------------------------------------------------

def multi_head_attention(answer):
    """Exercise: `MultiHeadAttention.forward(x, bias)`. `answer` is the class."""
    check = Check("multi_head_attention", see='Chapter 2, "The module"')

    def build(size, heads, dropout):
        module = check.module(answer, size, heads, dropout)
        module.double().eval()
        module.attend = plain_attention  # the package's, so that this exercise can be done before the one on attention
        return module

    def call(module, *args):
        return check.run(module, *args, mistakes=_by_words(
            "Two shapes don't fit. Split q, k and v into heads, attend, merge the context, then `self.output`."))

    module = build(8, 2, 0.0)
    randomise(module)
    x = random(2, 5, 8, seed=1)
    bias = torch.tensor([[0.0] * 5, [0.0, 0.0, 0.0, -1e4, -1e4]], dtype=F64).view(2, 1, 1, 5)
    check.tensor(call(module, x), "the output", shape=(2, 5, 8), dtype=F64, shape_mistakes={
        (2, 2, 5, 4): "The heads are not merged.", (2, 5, 2, 4): "The heads are not merged into one vector a token.",
    })  # fmt: skip

    # By hand. D = 2, H = 2, so Dh = 1 and each head sees one coordinate; all weights are the identity.
    # x = (0, 1), (2, 0). Head 0 has queries, keys and values 0 and 2: token 0 has scores 0 and 0, so the mean, 1; token 1
    # has scores 0 and 4, so 2·e⁴/(e⁴ + 1) = 1.9640. Head 1 has 1 and 0: token 0 has scores 1 and 0, so e/(e + 1) = .7311;
    # token 1 has scores 0 and 0, so .5.
    small = build(2, 2, 0.0)
    with torch.no_grad():
        for linear in (small.query, small.key, small.value, small.output):
            linear.weight.copy_(torch.eye(2))
            linear.bias.zero_()
    pair = torch.tensor([[[0.0, 1.0], [2.0, 0.0]]], dtype=F64)  # (1, 2, 2)
    check.equal(call(small, pair), torch.tensor([[[1.0, 0.73106], [1.96403, 0.5]]]),
                "The output for x = (0, 1), (2, 0) with two heads and identity weights",
                _module_mistakes(small, pair, None, heads=2), tolerance=1e-4)  # fmt: skip

    # The oracle, with a padded row. What padded queries compute is read by nobody, but it is defined, so it is compared.
    twin = nn.MultiheadAttention(8, 2, batch_first=True, dtype=F64).eval()
    with torch.no_grad():
        three = (module.query, module.key, module.value)
        twin.in_proj_weight.copy_(torch.cat([linear.weight for linear in three]))
        twin.in_proj_bias.copy_(torch.cat([linear.bias for linear in three]))
        twin.out_proj.weight.copy_(module.output.weight)
        twin.out_proj.bias.copy_(module.output.bias)
        want_free, want_probabilities = twin(x, x, x, average_attn_weights=False)
        want, _ = twin(x, x, x, key_padding_mask=bias[:, 0, 0] < 0)
    check.equal(call(module, x), want_free, "The output for a random x, without a mask,", _module_mistakes(module, x, None, 2))
    check.equal(call(module, x, bias), want, "The output for a random x with padding", _module_mistakes(module, x, bias, 2))

    # Probabilities are kept only when somebody wants to draw them.
    check.true(getattr(module, "probabilities", None) is None, "the probabilities are kept although nobody asked.",
               "`self.probabilities` is set without asking `self.keep_probabilities`. They are large: (B, H, T, T).")
    module.keep_probabilities = True
    call(module, x)
    check.true(module.probabilities is not None, "with keep_probabilities = True, `probabilities` is still None.",
               "`self.keep_probabilities` is not asked.")
    check.equal(module.probabilities, want_probabilities, "The kept matrix of probabilities")
    module.keep_probabilities = False

    # The work is done by `attend`, so that a faster function can be put in its place.
    seen = []

    def spy(q, k, v, bias=None, dropout=0.0):
        seen.append(dropout)
        return plain_attention(q, k, v, bias)

    module.attend = spy
    call(module, x)
    check.true(seen, "`self.attend` is not called.",
               "The function `attention` is called by its own name, so a faster one in `self.attend` is never used.")
    module.attend = plain_attention

    # Dropout, exact with a share of 1: in training nothing but the output's bias is left, in evaluation nothing is lost.
    module.dropout = 1.0
    bare = module.output.bias.expand(2, 5, 8)
    check.equal(call(module, x), want_free, "The output in evaluation, where dropout must do nothing,", {
        "Dropout is on in evaluation too: `self.training` is not asked.": lambda: bare,
    })  # fmt: skip
    module.train()
    check.equal(call(module, x), bare, "The output in training with a dropout of 1 (all probabilities dropped)", {
        "Dropout on the probabilities is left out: `self.dropout` is not passed on.":
            lambda: want_free,
        "Dropout is on the output of the module. Here it belongs on the probabilities.": lambda: torch.zeros_like(bare),
    })  # fmt: skip
    check.passed()


def _attend(q, k, v, bias, scale=None):
    """The context, by PyTorch."""
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def _module_mistakes(module, x, bias, heads):
    """{mistake: the output that it gives}."""
    batch, length, size = x.shape
    part = size // heads
    q, k, v = module.query(x), module.key(x), module.value(x)  # (B, T, D)

    def split(y):
        return split_heads(y, heads)

    def view(y):
        return y.reshape(batch, heads, length, part)

    def flat(context):
        return context.reshape(batch, length, size)

    right = _attend(split(q), split(k), split(v), bias)  # (B, H, T, Dh)
    return {
        "The heads are merged without a transpose: reshape alone reads the numbers head by head, not token by token.":
            lambda: module.output(flat(right)),
        "The heads are split without a transpose: view(B, H, T, Dh) cuts the list of tokens, not the vectors.":
            lambda: module.output(merge_heads(_attend(view(q), view(k), view(v), bias))),
        "Split and merge both lack their transpose. They undo each other, but each head sees pieces of several tokens.":
            lambda: module.output(flat(_attend(view(q), view(k), view(v), bias))),
        "The vectors are not split: this is one head of size D.":
            lambda: module.output(_attend(q[:, None], k[:, None], v[:, None], bias)[:, 0]),
        "The numbers are dealt to the heads in turn. Head h takes the block from h·Dh to (h + 1)·Dh.":
            lambda: module.output(flat(_attend(*(y.view(batch, length, part, heads).permute(0, 3, 1, 2) for y in (q, k, v)),
                                               bias).permute(0, 2, 3, 1))),
        "The last linear layer, `self.output`, is left out.": lambda: merge_heads(right),
        "x is added to the result. The residual connection belongs to the layer around it (chapter 3).":
            lambda: x + module.output(merge_heads(right)),
        "The bias is not passed on, so padding is looked at.":
            lambda: module.output(merge_heads(_attend(split(q), split(k), split(v), None))),
        "The keys are used as the values too.": lambda: module.output(merge_heads(_attend(split(q), split(k), split(k), bias))),
        "The queries are used as the keys too.": lambda: module.output(merge_heads(_attend(split(q), split(q), split(v), bias))),
        "Queries and keys have changed places.": lambda: module.output(merge_heads(_attend(split(k), split(q), split(v), bias))),
        "Keys and values have changed places: `attend` takes q, k, v in this order.":
            lambda: module.output(merge_heads(_attend(split(q), split(v), split(k), bias))),
        "The values are x itself, without their linear layer.":
            lambda: module.output(merge_heads(_attend(split(q), split(k), split(x), bias))),
        "The scores are divided by √D. Each head's vectors have size Dh.":
            lambda: module.output(merge_heads(_attend(split(q), split(k), split(v), bias, scale=size**-0.5))),
    }  # fmt: skip


def self_attention(answer):
    """Exercise: mend `self_attention(x, query, key, value, heads)`, whose heads see pieces of several tokens."""
    check = Check("self_attention", see='Chapter 2, "Heads"')
    x = random(2, 5, 6, seed=1)
    query, key, value = (random(6, 6, seed=seed, std=0.7) for seed in (2, 3, 4))
    got = check.run(answer, x, query, key, value, 3, mistakes=_by_words("Two shapes don't fit."))
    check.tensor(got, "the output", shape=(2, 5, 6), dtype=F64)

    # By hand: queries and keys 0, so every probability is one half, and every token gets the mean of the two values.
    # x = (1, 2), (3, 6), values = x, two heads: both tokens get (2, 4).
    pair = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]], dtype=F64)
    zero, one = torch.zeros(2, 2, dtype=F64), torch.eye(2, dtype=F64)
    half = check.run(answer, pair, zero, zero, one, 2)
    check.tensor(half, "the output for two tokens", shape=(1, 2, 2))
    known = _self_attention_mistakes(pair, zero, zero, one, 2)
    in_place = [(x @ w).view(2, 5, 3, 2) for w in (query, key, value)]  # on the pair it gives the same as the stub
    if same(got, _attend(*in_place, None).reshape(2, 5, 6), 1e-9):
        known = {"T and H stand in each other's place: each token attends among its own heads. What is in q[b, h, t]?":
                     lambda: torch.tensor([[[1.5, 1.5], [4.5, 4.5]]])}  # fmt: skip
    check.equal(half, torch.tensor([[[2.0, 4.0], [2.0, 4.0]]]), "The output for x = (1, 2), (3, 6), all probabilities 1/2,", known)

    # The oracle: one head after the other, on the columns that belong to it.
    columns = [slice(2 * h, 2 * h + 2) for h in range(3)]
    want = torch.cat([_attend((x @ query)[..., c], (x @ key)[..., c], (x @ value)[..., c], None) for c in columns], dim=-1)
    check.equal(got, want, "The output", _self_attention_mistakes(x, query, key, value, 3), ROOT)
    order = torch.tensor([3, 0, 4, 1, 2])
    check.equal(check.run(answer, x[:, order], query, key, value, 3), want[:, order], "The output for the tokens in another order",
                tolerance=ROOT)
    check.passed()


def _self_attention_mistakes(x, query, key, value, heads):
    batch, length, size = x.shape
    part = size // heads
    q, k, v = x @ query, x @ key, x @ value

    def split(y):
        return split_heads(y, heads)

    def view(y):
        return y.reshape(batch, heads, length, part)

    def deal(y):
        return y.view(batch, length, part, heads).permute(0, 3, 1, 2)

    def flat(context):
        return context.reshape(batch, length, size)

    right = _attend(split(q), split(k), split(v), None)
    scores = split(q) @ split(k).transpose(-2, -1) / math.sqrt(part)
    return {
        "A head gets whole tokens that are cut in pieces, instead of a piece of every token. What is in q[b, h, t]?":
            lambda: flat(_attend(view(q), view(k), view(v), None)),
        "Going in, the axes are wrong (coming out they are right). What is in q[b, h, t]?":
            lambda: merge_heads(_attend(view(q), view(k), view(v), None)),
        "Coming out, the axes are wrong (going in they are right): row t must hold what all heads found for token t.":
            lambda: flat(right),
        "Going in and coming out, the numbers of a vector are dealt to the heads in turn. Head h takes a block of Dh.":
            lambda: flat(_attend(deal(q), deal(k), deal(v), None).permute(0, 2, 3, 1)),
        "Coming out, the numbers of the heads are mixed one by one. They stand side by side in blocks: head 0, head 1, …":
            lambda: flat(right.permute(0, 2, 3, 1)),
        "This is one head of size D: the vectors are not split.": lambda: _attend(q, k, v, None),
        "The scores are divided by √D. The vectors of a head have size Dh = D / H.":
            lambda: merge_heads(_attend(split(q), split(k), split(v), None, scale=size**-0.5)),
        "The scores are not scaled any more.": lambda: merge_heads(_attend(split(q), split(k), split(v), None, scale=1.0)),
        "The softmax runs over the queries, not over the keys.": lambda: merge_heads(scores.softmax(-2) @ split(v)),
        "The softmax runs over the heads, not over the keys.": lambda: merge_heads(scores.softmax(1) @ split(v)),
    }  # fmt: skip


# ---- a window ---------------------------------------------------------------------------------------------------------

def local_attention(answer):
    """Exercise: `local_attention(q, k, v, attention_mask, width)`: attend to at most `width` places left and right."""
    check = Check("local_attention", see='Chapter 2, "The mask"')
    mask = torch.tensor([[1] * 8, [1, 1, 1, 1, 1, 0, 0, 0]])  # (2, 8)
    q, k, v = (random(2, 3, 8, 4, seed=seed) for seed in (1, 2, 3))

    def call(q, k, v, mask, width):
        return check.run(answer, q, k, v, mask, width, mistakes=_by_words(
            "Two shapes don't fit. The scores are (B, H, T, T), the mask is (B, T), the window is (T, T)."))

    got = call(q, k, v, mask, 2)
    check.true(not isinstance(got, (tuple, list)), "it should return the context alone.", "Two results are returned.")
    check.true(torch.is_tensor(got) and not got.isnan().any(), "the context contains NaN.",
               "The last padded token sees no real token in its window. If all its scores are -inf, or the sum of what is left is 0, its probabilities are NaN.")
    check.tensor(got, "the context", shape=(2, 3, 8, 4), dtype=F64)

    # By hand. All queries and keys are equal, so the probabilities are even. Values 0, 4, 8, 12, 16, 60, width 3: token 0
    # sees the first four, mean 6; token 1 the first five, 8; tokens 2 and 3 all, 100/6; token 4 the last five, 20; token 5
    # the last four, 24. If the last is padding: 6, 8, 8, 8, and token 4 sees 4, 8, 12, 16, mean 10.
    one = torch.ones(1, 1, 6, 1, dtype=F64)
    values = torch.tensor([0.0, 4.0, 8.0, 12.0, 16.0, 60.0], dtype=F64).view(1, 1, 6, 1)
    for row, want, what in [([1, 1, 1, 1, 1, 0], [6.0, 8.0, 8.0, 8.0, 10.0], "five tokens and padding"),
                            ([1] * 6, [6.0, 8.0, 100 / 6, 100 / 6, 20.0, 24.0], "six tokens")]:  # fmt: skip
        row, real = torch.tensor([row]), len(want)
        small = call(one, one, values, row, 3)
        check.tensor(small, "the context", shape=(1, 1, 6, 1))
        known = _local_mistakes(one, one, values, row, 3)
        check.equal(small[0, 0, :real, 0], torch.tensor(want, dtype=F64),
                    f"The context of {what}, with equal keys, values 0, 4, 8, 12, 16, 60 and width 3,",
                    {text: lambda make=make: make()[0, 0, :real, 0] for text, make in known.items()})  # fmt: skip

    # The oracle: PyTorch's attention with a Boolean mask. Only real queries are compared: nobody reads the others.
    for width in (2, 3, 0, 100):
        got = call(q, k, v, mask, width)
        want = scaled_dot_product_attention(q, k, v, attn_mask=_window(8, width) & mask.bool()[:, None, None, :])
        known = _local_mistakes(q, k, v, mask, width)
        for row, real in [(0, 8), (1, 5)]:
            check.equal(got[row, :, :real], want[row, :, :real], f"The context for width {width}",
                        {text: lambda make=make: make()[row, :, :real] for text, make in known.items()})  # fmt: skip
    check.passed()


def _window(length, width):
    place = torch.arange(length)
    return (place[:, None] - place[None, :]).abs() <= width  # (T, T)


def _local_mistakes(q, k, v, mask, width):
    length = q.shape[-2]
    place = torch.arange(length)
    ahead = place[None, :] - place[:, None]  # (T, T): how far key j stands to the right of query i
    real = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
    full = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])

    def masked(allowed, scores=full):
        return scores.masked_fill(~allowed, -1e30).softmax(-1) @ v

    window = _window(length, width)
    return {
        "The window has only its left half: a token may look back but not ahead.": lambda: masked((ahead <= 0) & (ahead >= -width) & real),
        "The window has only its right half: a token may look ahead but not back.": lambda: masked((ahead >= 0) & (ahead <= width) & real),
        "The window is one place too narrow on each side: a distance of `width` is still inside (<=, not <).":
            lambda: masked((ahead.abs() < width) & real),
        "The whole window has `width` places. It should reach `width` places to each side.": lambda: masked((ahead.abs() <= width // 2) & real),
        "Padding is looked at. Either the mask is not applied, or it is on the query axis, where it does nothing.": lambda: masked(window.expand(1, 1, -1, -1)),
        "The window is not applied; only the mask is.": lambda: masked(real),
        "A token is seen if it is in the window or real. It must be both.": lambda: masked(window | real),
        "The window is inverted: near tokens are hidden, far ones are seen.": lambda: masked(~window & real),
        "What is allowed is hidden and the rest is seen: a `~` is missing in masked_fill.": lambda: masked(~(window & real)),
        "A token does not see itself.": lambda: masked(window & (ahead != 0) & real),
        "The last place of the window is missing on the right: a range's end is not in it.":
            lambda: masked((ahead >= -width) & (ahead < width) & real),
        "The distance has a sign: without .abs() all that is ahead counts as near.": lambda: masked((-ahead <= width) & real),
        "The distance has a sign: without .abs() all that lies behind counts as near.": lambda: masked((ahead <= width) & real),
        "Fixed blocks: a token sees its own block only, not `width` places around itself.":
            lambda: masked((place[:, None] // max(width, 1) == place[None, :] // max(width, 1)) & real),
        "The window is multiplied into the probabilities after the softmax, so they do not sum to 1 any more.":
            lambda: (full.softmax(-1) * (window & real)) @ v,
        "The scores outside are set to 0. That is not impossible: softmax gives 0 a positive probability.":
            lambda: (full * (window & real)).softmax(-1) @ v,
        "The scores are not divided by √Dh.": lambda: masked(window & real, full * math.sqrt(q.shape[-1])),
    }  # fmt: skip


# ---- the real model ---------------------------------------------------------------------------------------------------

# From the solution, which the tests run again: MiniLM, float32, the first 40 dev sentences that come with the book.
LARGEST_CHANGE = 6.0  # head 5, counted from 1; head 3, which looks back, changes 3.6
NOT_THE_LARGEST = [  # (what comes, margin, why), each from a run of that mistake
    (0.006, 0.0002, "The number is not multiplied by 1,000."),
    (5.0, 0.001, "This is the number of the head. The answer is how much it changes."),
    (5.57, 0.03, "The mean runs over padding too. Average with the mask: mean_pool."),
    (2.35, 0.03, "This compares the vectors of [CLS]. Average the hidden vectors over the real tokens."),
    (2.25, 0.03, "Rows are set to 0 instead of columns. What a head found comes in through its columns."),
    (47.86, 0.2, "The columns are not put back, so the heads are switched off one after the other and stay so."),
    (3.59, 0.03, "This is head 3, the one that looks back. Are all 12 heads compared?"),
    *((change, 0.015, "This is another head's change. Take the largest of the 12.")
      for change in (2.20, 4.27, 1.92, 2.91, 1.24, 1.65, 1.14, 1.62, 3.77, 0.85)),
]  # fmt: skip


def head_switched_off(answer):
    """Exercise: the largest change that switching off one head of MiniLM's first layer makes, times 1,000."""
    check = Check("head_switched_off", see='Chapter 2, "What may be read from it"')
    try:
        value = float(answer) if answer is not None else None
    except (TypeError, ValueError):
        value = None  # check.number says so
    if value is not None and abs(value - LARGEST_CHANGE) > 0.1:
        mistake = next((text for known, margin, text in NOT_THE_LARGEST if abs(value - known) <= margin), None)
        check.fail("this is not the largest of the 12 changes, in thousandths.", got=value, expected="another number", mistake=mistake)
    check.number(answer, LARGEST_CHANGE, 0.1, "The largest change, in thousandths,")
    check.passed("It is head 5. Then come 2 and 11; head 3, the one that looks back, is fourth.")
