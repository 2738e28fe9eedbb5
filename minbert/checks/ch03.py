"""Checks of chapter 3: the layer, the model, hidden word pieces.

The oracle for a layer is `torch.nn.TransformerEncoderLayer`, which shares no line with this package. Every parameter
is random and everything is float64: with the first values of a fresh model, swapped normalisations and forgotten
biases change nothing, and a check would pass them.
"""

import copy
import math

import torch
from torch import nn
from torch.nn.functional import embedding, gelu, layer_norm, linear, relu

from minbert.attention import mask_bias
from minbert.bert import BertConfig, BertLayer
from minbert.bert import BertModel as PackageModel
from minbert.checks.engine import Check, random, randomise, same

__all__ = ["bert_layer", "bert_model", "pre_norm_layer", "mask_tokens", "repair_layer", "vanishing_gradient"]

# Odd sizes, all different: a swapped axis shows.
TINY = BertConfig(vocab_size=11, hidden_size=8, layers=3, heads=2, intermediate_size=12, max_positions=9,
                  hidden_dropout=0.0, attention_dropout=0.0)
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])  # (2, 5): the first sentence is padded


# ---- the layer --------------------------------------------------------------------------------------------------------

def bert_layer(answer):
    """Exercise: `BertLayer.forward(x, bias)`. `answer` is the class."""
    check = Check("bert_layer", see='Chapter 3, "The layer"')
    layer = check.module(answer, TINY)
    _check_layer(check, layer, layer, norm_first=False)


def repair_layer(answer):
    """Exercise: `repair_layer(layer, x, bias)`, a layer written with one helper function for both halves."""
    check = Check("repair_layer", see='Chapter 3, "A comparison that proves nothing"')
    layer = BertLayer(TINY)
    _check_layer(check, layer, lambda x, bias=None: answer(layer, x, bias), norm_first=False)


def pre_norm_layer(answer):
    """Exercise: `pre_norm_layer(layer, x, bias)`: the parts of a `BertLayer`, put together as a pre-LN layer."""
    check = Check("pre_norm_layer", see='Chapter 3, "The layer"')
    layer = BertLayer(TINY)
    _check_layer(check, layer, lambda x, bias=None: answer(layer, x, bias), norm_first=True)


def _check_layer(check, layer, forward, norm_first):
    """`forward(x, bias)` must be the layer that the parts of `layer` make."""
    mistakes, dropout_mistakes = _pre_norm_mistakes, _pre_norm_dropout
    if not norm_first:
        mistakes, dropout_mistakes = _post_norm_mistakes, _post_norm_dropout
    x = random(2, 5, 8, seed=1)
    bias = mask_bias(MASK, torch.float64)  # (2, 1, 1, 5)
    randomise(layer)
    layer.eval()

    # Does it run; shape, dtype, finite, inputs untouched.
    got = check.run(forward, x, bias)
    check.tensor(got, "the layer's output", shape=(2, 5, 8), dtype=torch.float64)

    # The tiny case below is easy to follow, but several mistakes give the same two numbers there. With random parameters
    # each gives its own, so the name is looked for here and told there.
    oracle = _torch_layer(layer, norm_first)
    leaf = x.clone().requires_grad_()
    want = oracle(leaf, src_key_padding_mask=MASK == 0)  # (2, 5, 8)
    named = _name(got, want, mistakes(layer, x, bias))

    # By hand. Attention and feed-forward give 0, so only the two normalisations and the residuals are left.
    # x = (1, 3) has mean 2 and variance 1. Post-LN: LN gives (-1, 1), times 2 plus 1 makes h = (-1, 3), whose mean is 1
    # and variance 4; LN gives (-1, 1), times 3 plus 5 makes (2, 8). Pre-LN: nothing is added to x, so x comes out.
    parts = {name: getattr(layer, name) for name in ("attention", "attention_norm", "up", "down", "output_norm")}
    small = _hand_layer()
    for name in parts:
        setattr(layer, name, getattr(small, name))
    pair = torch.tensor([[[1.0, 3.0]]], dtype=torch.float64)
    tiny = check.run(forward, pair)
    check.tensor(tiny, "the output for one token x = (1, 3)", shape=(1, 1, 2), dtype=torch.float64)
    check.equal(tiny, torch.tensor([[[1.0, 3.0]]] if norm_first else [[[2.0, 8.0]]], dtype=torch.float64),
                "The output for x = (1, 3), with attention and feed-forward that give 0,", named and {named: lambda: tiny})
    for name, part in parts.items():
        setattr(layer, name, part)

    # The oracle, with padding; then its gradient.
    check.equal(got, want, "The output of a layer with random parameters", named and {named: lambda: got})
    probe = random(2, 5, 8, seed=2)
    (slope,) = torch.autograd.grad((want * probe).sum(), leaf)
    own = x.clone().requires_grad_()
    out = check.run(forward, own, bias)
    cut = "Something is detached, or computed under no_grad."
    check.true(out.requires_grad, "the output has no gradient.", cut)
    (own_slope,) = torch.autograd.grad((out * probe).sum(), own, allow_unused=True)
    check.true(own_slope is not None, "the gradient does not reach the input.", cut)
    check.equal(own_slope, slope, "The gradient by the input")

    # A dropout of 1 leaves nothing of the two updates, so the output is exact. In evaluation it must do nothing.
    plain = want.detach()
    layer.dropout.p = 1.0
    layer.train()
    exact = x if norm_first else layer.output_norm(layer.attention_norm(x))
    check.equal(check.run(forward, x, bias), exact, "The output in training, with a dropout of 1 (every update dropped),",
                dropout_mistakes(layer, x, bias))
    layer.eval()
    check.equal(check.run(forward, x, bias), plain, "The output in evaluation, where dropout must do nothing,", {
        "Dropout is active in evaluation too. It must know the mode, as nn.Dropout does.": lambda: exact})

    # A second dropout on the way can't be seen behind one that leaves nothing. With a half, and an attention that finds
    # nothing, each number of the update is 0 or twice what it was: one of 2⁸ vectors for each token.
    with torch.no_grad():
        layer.attention.output.weight.zero_()
        layer.attention.output.bias.zero_()
        h = x if norm_first else layer.attention_norm(x)
        update = layer.down(gelu(layer.up(layer.output_norm(h) if norm_first else h)))  # (B, T, 8)
        kept = torch.cartesian_prod(*[torch.tensor([0.0, 2.0], dtype=x.dtype)] * 8)  # (256, 8)
        possible = h.unsqueeze(2) + kept * update.unsqueeze(2)  # (B, T, 256, 8)
        possible = possible if norm_first else layer.output_norm(possible)
    layer.dropout.p = 0.5
    layer.train()
    off = (check.run(forward, x, bias).unsqueeze(2) - possible).abs().amax(-1).amin(-1)  # (B, T)
    check.true(bool((off < 1e-6).all()), "in training, with an attention of 0 and a dropout of 0.5, each number of the update should be 0 or twice what it was.",
               "Dropout is applied twice in the second half: inside the feed-forward network as well as on its result.")
    check.passed()


def _name(got, want, mistakes, tolerance=1e-9):
    """The first of {text: a function that recomputes what this mistake gives} that fits a wrong result, or None."""
    if same(got, want, tolerance):
        return None
    return next((text for text, make in mistakes.items() if same(got, make(), tolerance)), None)


def _post_norm_mistakes(layer, x, bias):
    """What well-known wrong layers give, without dropout."""
    norm1, norm2 = layer.attention_norm, layer.output_norm

    def attend():
        return layer.attention(x, bias)

    def feed(h, activation=gelu):
        return layer.down(activation(layer.up(h)))

    def finish(h):
        return norm2(h + feed(h))

    def first():
        return norm1(x + attend())

    def eps(value):
        other = copy.deepcopy(layer)
        other.attention_norm.eps = other.output_norm.eps = value
        h = other.attention_norm(x + attend())
        return other.output_norm(h + feed(h))

    return {
        "The two layer normalisations are swapped. A fresh model can't show it: there both are 1 and 0.":
            lambda: norm1((h := norm2(x + attend())) + feed(h)),
        "`attention_norm` is used for both halves; the second one belongs to `output_norm`.":
            lambda: norm1((h := first()) + feed(h)),
        "`output_norm` is used for both halves; the first one belongs to `attention_norm`.":
            lambda: finish(norm2(x + attend())),
        "The residual around the attention is missing: x itself is not added.":
            lambda: finish(norm1(attend())),
        "The residual around the feed-forward network is missing: h itself is not added.":
            lambda: norm2(feed(first())),
        "The second residual adds x, the layer's input. It must add h, the input of the feed-forward network.":
            lambda: norm2(x + feed(first())),
        "The feed-forward network reads x, not h, the result of the first half.":
            lambda: norm2(first() + feed(x)),
        "The normalisation comes before each part (pre-LN). BERT normalises after each sum.":
            lambda: (h := x + layer.attention(norm1(x), bias)) + feed(norm2(h)),
        "Only the update is normalised, then added: x + LN(update). BERT normalises the sum: LN(x + update).":
            lambda: (h := x + norm1(attend())) + norm2(feed(h)),
        "The last layer normalisation is missing.":
            lambda: (h := first()) + feed(h),
        "The first layer normalisation is missing.":
            lambda: finish(x + attend()),
        "GELU is the tanh approximation. BERT's weights, as Hugging Face runs them, use the exact one.":
            lambda: norm2((h := first()) + feed(h, lambda t: gelu(t, approximate="tanh"))),
        "The activation is ReLU; BERT's is GELU.":
            lambda: norm2((h := first()) + feed(h, relu)),
        "There is no activation between the two linear layers, which makes them one linear layer.":
            lambda: norm2((h := first()) + feed(h, lambda t: t)),
        "`bias` is not handed to the attention, so padding is attended to.":
            lambda: norm2((h := norm1(x + layer.attention(x))) + feed(h)),
        "The layer normalisations do not use config.eps (1e-12); PyTorch's own value is 1e-5.":
            lambda: eps(1e-5),
    }


def _post_norm_dropout(layer, x, bias):
    """What wrong places of dropout give in training when p is 1: every dropped update is exactly 0."""
    norm1, norm2 = layer.attention_norm, layer.output_norm

    def feed(h):
        return layer.down(gelu(layer.up(h)))

    attended = layer.attention(x, bias)
    return {
        "Dropout is missing after the attention.": lambda: norm2(norm1(x + attended)),
        "Dropout is missing after the feed-forward network.": lambda: norm2((h := norm1(x)) + feed(h)),
        "There is no dropout at all.": lambda: norm2((h := norm1(x + attended)) + feed(h)),
        "Dropout comes after the layer normalisation. It belongs on the update, before the sum.":
            lambda: torch.zeros_like(x),
        "Dropout is applied to the sum, so it also cuts the residual path. It belongs on the update alone.":
            lambda: norm2(torch.zeros_like(x)),
        "Dropout is applied inside the feed-forward network, after GELU, not on its result.":
            lambda: norm2((h := norm1(x)) + layer.down.bias),
    }


def _pre_norm_mistakes(layer, x, bias):
    """The same for the pre-LN layer."""
    norm1, norm2 = layer.attention_norm, layer.output_norm

    def attend(t, with_bias=True):
        return layer.attention(t, bias if with_bias else None)

    def feed(t, activation=gelu):
        return layer.down(activation(layer.up(t)))

    def first():
        return x + attend(norm1(x))

    return {
        "This is post-LN, BERT's own form: here the normalisation must come before each part, not after each sum.":
            lambda: norm2((h := norm1(x + attend(x))) + feed(h)),
        "The first residual adds LN(x). The residual path must stay untouched: add x itself.":
            lambda: (h := norm1(x) + attend(norm1(x))) + feed(norm2(h)),
        "The second residual adds LN(h). The residual path must stay untouched: add h itself.":
            lambda: norm2(first()) + feed(norm2(first())),
        "Both residuals add the normalised vector. The residual path must stay untouched.":
            lambda: (n := norm2(norm1(x) + attend(norm1(x)))) + feed(n),
        "The second residual adds x, the layer's input, so what the attention found is lost.":
            lambda: x + feed(norm2(first())),
        "The update is normalised, x + LN(update); it is the input of each part that must be.":
            lambda: (h := x + norm1(attend(x))) + norm2(feed(h)),
        "The two layer normalisations are swapped.":
            lambda: (h := x + attend(norm2(x))) + feed(norm1(h)),
        "The feed-forward network reads h without its layer normalisation.":
            lambda: (h := first()) + feed(h),
        "The attention reads x without its layer normalisation.":
            lambda: (h := x + attend(x)) + feed(norm2(h)),
        "The output is normalised once more. In pre-LN that is done once, after the last layer of the stack.":
            lambda: norm2((h := first()) + feed(norm2(h))),
        "There is no residual connection.":
            lambda: feed(norm2(attend(norm1(x)))),
        "`bias` is not handed to the attention, so padding is attended to.":
            lambda: (h := x + attend(norm1(x), False)) + feed(norm2(h)),
        "GELU is the tanh approximation; use the exact one, as BertLayer does.":
            lambda: (h := first()) + feed(norm2(h), lambda t: gelu(t, approximate="tanh")),
    }


def _pre_norm_dropout(layer, x, bias):
    """The same for the pre-LN layer."""
    norm1, norm2 = layer.attention_norm, layer.output_norm

    def feed(h):
        return layer.down(gelu(layer.up(h)))

    attended = layer.attention(norm1(x), bias)
    return {
        "Dropout is missing after the attention.": lambda: x + attended,
        "Dropout is missing after the feed-forward network.": lambda: x + feed(norm2(x)),
        "There is no dropout at all.": lambda: (h := x + attended) + feed(norm2(h)),
        "Dropout is applied to the sum, so it also cuts the residual path. It belongs on the update alone.":
            lambda: torch.zeros_like(x),
    }


def _hand_layer():
    """D = 2, everything 0 but the layer normalisations: times 2 plus 1, then times 3 plus 5."""
    config = BertConfig(vocab_size=5, hidden_size=2, layers=1, heads=1, intermediate_size=3, hidden_dropout=0.0,
                        attention_dropout=0.0)
    layer = BertLayer(config).double().eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.attention_norm.weight.fill_(2.0)
        layer.attention_norm.bias.fill_(1.0)
        layer.output_norm.weight.fill_(3.0)
        layer.output_norm.bias.fill_(5.0)
    return layer


def _torch_layer(layer, norm_first=False):
    """PyTorch's own layer with the parameters of `layer`. In training mode and without dropout: its plain path."""
    size, wide = layer.up.in_features, layer.up.out_features
    oracle = nn.TransformerEncoderLayer(size, layer.attention.heads, wide, dropout=0.0, activation=gelu,
                                        layer_norm_eps=TINY.eps, batch_first=True, norm_first=norm_first).double()
    a, t = layer.attention, oracle.self_attn
    copies = [
        (t.in_proj_weight, torch.cat([a.query.weight, a.key.weight, a.value.weight])),
        (t.in_proj_bias, torch.cat([a.query.bias, a.key.bias, a.value.bias])),
    ]
    pairs = [(t.out_proj, a.output), (oracle.linear1, layer.up), (oracle.linear2, layer.down),
             (oracle.norm1, layer.attention_norm), (oracle.norm2, layer.output_norm)]
    for theirs, ours in pairs:
        copies += [(theirs.weight, ours.weight), (theirs.bias, ours.bias)]
    with torch.no_grad():
        for target, value in copies:
            target.copy_(value)
    return oracle.train()


# ---- the model --------------------------------------------------------------------------------------------------------

def bert_model(answer):
    """Exercise: `BertModel.forward(input_ids, attention_mask, token_type_ids)`. `answer` is the class."""
    check = Check("bert_model", see='Chapter 3, "The model"')
    model = check.module(answer, TINY)
    randomise(model, seed=3, std=0.4)
    model.eval()
    ids = torch.tensor([[2, 8, 3, 0, 0], [2, 5, 7, 9, 3]])  # (2, 5), 0 is padding
    types = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
    real = MASK.bool()  # a padded place's vector is never read, so it is not compared

    def encode(*inputs):
        result = check.run(model, *inputs, mistakes={
            TypeError: "The layers take x and bias; the bias comes from `mask_bias`.",
        })
        check.true(isinstance(result, (tuple, list)) and len(result) == 2,
                   "the model should return two things, hidden and pooled.",
                   "Only one of the two is returned.", "(hidden, pooled)", type(result).__name__)
        hidden, pooled = result
        check.tensor(hidden, "hidden", shape=(2, 5, 8), dtype=torch.float64,
                     shape_mistakes={(2, 8): "hidden and pooled are returned in the wrong order."})
        check.tensor(pooled, "pooled", shape=(2, 8), dtype=torch.float64, shape_mistakes={
            (2, 5, 8): "The pooler is applied to every token; it reads only the first, [CLS].",
            (8,): "x[0] is the first sentence of the batch; the first token of every sentence is x[:, 0].",
            (5, 8): "x[0] is the first sentence of the batch; the first token of every sentence is x[:, 0].",
        })
        return hidden, pooled

    hidden, pooled = encode(ids, MASK, types)

    # The oracle: PyTorch's functions and layers. Its verdict comes after the tiny case, but a mistake is named by it.
    layers = [_torch_layer(layer) for layer in model.layers]
    want_hidden, want_pooled = _torch_model(model, layers, ids, MASK, types)
    tried = _model_mistakes(model, layers, ids, types)
    named = _name((hidden[real], pooled), (want_hidden[real], want_pooled),
                  {text: lambda make=make: ((both := make())[0][real], both[1]) for text, make in tried.items()})

    # By hand: no layers, and an embedding table that gives every piece (1, 3). LN makes that (-1, 1); a pooler with the
    # weight ((0, 1), (1, 0)) swaps the two: pooled = (tanh 1, tanh -1) = (.7616, -.7616).
    small, saved = _hand_model(), {name: getattr(model, name) for name in ("embeddings", "layers", "pooler")}
    for name in saved:
        setattr(model, name, getattr(small, name))
    result = check.run(model, torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.long))
    half = torch.tensor(1.0, dtype=torch.float64).tanh()
    check.equal(result[0], torch.tensor([[[-1.0, 1.0]]]).expand(1, 2, 2), "With no layers, hidden",
                named and {named: lambda: result[0]})
    check.equal(result[1], torch.stack([half, -half])[None], "With no layers and a pooler that swaps two numbers, pooled",
                named and {named: lambda: result[1]})
    for name, part in saved.items():
        setattr(model, name, part)

    check.equal(hidden[real], want_hidden[real], "hidden, of a model with random parameters,",
                named and {named: lambda: hidden[real]})
    check.equal(pooled, want_pooled, "pooled, of a model with random parameters,", named and {named: lambda: pooled})
    hidden, _ = encode(ids, MASK)
    without = _torch_model(model, layers, ids, MASK, torch.zeros_like(ids))
    check.equal(hidden[real], without[0][real], "hidden, with no token types given (all 0),")
    check.true(hidden.requires_grad, "the output has no gradient.", "Something is detached, or computed under no_grad.")
    model.bfloat16()
    result = check.run(model, ids, MASK, types, mistakes={
        RuntimeError: lambda words: "The bias has another dtype than the vectors: `mask_bias(attention_mask, x.dtype)`." if "type" in words else None,
    })
    check.tensor(result[0], "hidden, of a model in bfloat16,", dtype=torch.bfloat16)
    check.passed()


def _hand_model():
    config = BertConfig(vocab_size=5, hidden_size=2, layers=0, heads=1, intermediate_size=3, hidden_dropout=0.0)
    model = PackageModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embeddings.word.weight.copy_(torch.tensor([1.0, 3.0]))
        model.embeddings.norm.weight.fill_(1.0)
        model.pooler.weight.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    return model


def _torch_embeddings(model, ids, types):
    e = model.embeddings
    total = embedding(ids, e.word.weight) + e.position.weight[: ids.shape[1]] + embedding(types, e.token_type.weight)
    return layer_norm(total, (TINY.hidden_size,), e.norm.weight, e.norm.bias, TINY.eps)  # (B, T, D)


def _pool(model, vectors):
    return torch.tanh(linear(vectors, model.pooler.weight, model.pooler.bias))


def _torch_model(model, layers, ids, mask, types):
    """The model in PyTorch's own parts; `mask` is (B, T), or None for no mask."""
    x = _torch_embeddings(model, ids, types)
    for layer in layers:
        x = layer(x, src_key_padding_mask=None if mask is None else mask == 0)
    return x, _pool(model, x[:, 0])


def _model_mistakes(model, layers, ids, types):
    def stack(chosen, mask=MASK, given=types):
        return _torch_model(model, chosen, ids, mask, given)

    def added(bias):
        """The layers with something else added to the scores."""
        x = _torch_embeddings(model, ids, types)
        wide = bias.expand(-1, TINY.heads, ids.shape[1], -1).flatten(0, 1)  # (B·H, T, T), as PyTorch wants it
        for layer in layers:
            x = layer(x, src_mask=wide.to(torch.float64))
        return x, _pool(model, x[:, 0])

    def pooled_from(choose):
        x, _ = stack(layers)
        return x, choose(x)

    def mean(x, mask):
        weight = mask[..., None].to(x.dtype)
        return (x * weight).sum(1) / weight.sum(1)

    square = MASK[:, None, None, :]
    return {
        "token_type_ids are ignored: every token is treated as type 0.":
            lambda: stack(layers, given=torch.zeros_like(ids)),
        "The mask is not used: real tokens attend to padding.":
            lambda: stack(layers, mask=None),
        "The mask is inverted: 1 is a real token, 0 is padding.":
            lambda: added(mask_bias(1 - MASK, torch.float64)),
        "The 0/1 mask itself is added to the scores. `mask_bias` turns it into 0 and a very negative number.":
            lambda: added(square),
        "Every layer reads the embeddings, so only the last layer counts. Each must read what the one before wrote.":
            lambda: stack(layers[-1:]),
        "The first layer is applied again and again; loop over all of `self.layers`.":
            lambda: stack(layers[:1] * len(layers)),
        "The layers are applied in reverse order.":
            lambda: stack(layers[::-1]),
        "The last layer is left out.":
            lambda: stack(layers[:-1]),
        "The first layer is left out.":
            lambda: stack(layers[1:]),
        "There are no layers: the embeddings are returned.":
            lambda: stack([]),
        "The pooler reads the mean of all tokens. It reads the first token, [CLS].":
            lambda: pooled_from(lambda x: _pool(model, mean(x, MASK))),
        "The pooler reads the mean of all places, padding included. It reads the first token, [CLS].":
            lambda: pooled_from(lambda x: _pool(model, x.mean(1))),
        "The pooler reads the last place, x[:, -1]. [CLS] is the first: x[:, 0].":
            lambda: pooled_from(lambda x: _pool(model, x[:, -1])),
        "The pooler reads the embeddings of [CLS], not the last layer's vector.":
            lambda: (stack(layers)[0], _pool(model, _torch_embeddings(model, ids, types)[:, 0])),
        "The pooled vector is the mean over tokens, without the pooler.":
            lambda: pooled_from(lambda x: mean(x, MASK)),
        "The tanh after the pooler is missing.":
            lambda: pooled_from(lambda x: linear(x[:, 0], model.pooler.weight, model.pooler.bias)),
        "The pooler's linear layer is missing: tanh is taken of the vector of [CLS] itself.":
            lambda: pooled_from(lambda x: x[:, 0].tanh()),
        "The pooled vector is the vector of [CLS] as it is, without the pooler.":
            lambda: pooled_from(lambda x: x[:, 0]),
    }


# ---- hidden word pieces -----------------------------------------------------------------------------------------------

def mask_tokens(answer):
    """Exercise: `mask_tokens(input_ids, special_ids, mask_id, vocab_size, generator, rate)`."""
    check = Check("mask_tokens", see='Chapter 3, "Hide some pieces"')
    vocab, mask_id, special = 50, 4, {0, 1, 2, 3, 4}

    def run(ids, seed=0, rate=0.15):
        generator = torch.Generator().manual_seed(seed)
        result = check.run(answer, ids, special, mask_id, vocab, generator, rate)
        check.true(isinstance(result, (tuple, list)) and len(result) == 2, "it should return two tensors, masked and labels.")
        masked, labels = result
        check.tensor(masked, "masked", shape=ids.shape, dtype=torch.int64)
        check.tensor(labels, "labels", shape=ids.shape, dtype=torch.int64)
        return masked, labels

    ids = torch.randint(5, vocab, (200, 100), generator=torch.Generator().manual_seed(7))
    ids[:, 0], ids[:, 90], ids[:, 91:] = 2, 3, 0  # [CLS] … [SEP] and padding
    ordinary = ids > 4
    masked, labels = run(ids)
    chosen = labels != -100
    share = (chosen & ordinary).sum().item() / ordinary.sum().item()

    # Two small cases whose labels are certain. Rate 0: nothing is chosen.
    row = torch.tensor([[2, *range(10, 30), 3, 0]])  # [CLS], 20 pieces, [SEP], [PAD]
    word = row > 4
    unchanged, nothing = run(row, rate=0.0)
    check.equal(nothing, torch.full_like(row, -100), "With rate 0 nothing is chosen; the tensor `labels`", mistakes={
        "Labels keep the true piece everywhere. Where nothing was chosen they must be -100, which the loss skips.":
            lambda: row,
        "Where nothing was chosen the labels are 0. That is the id of [PAD], and the loss would learn to guess it; -100 is skipped.":
            lambda: torch.zeros_like(row),
        "The choice is the wrong way round: a share of 1 - rate is chosen.":
            lambda: torch.where(word, row, -100),
    })
    check.equal(unchanged, row, "With rate 0 nothing is chosen; the tensor `masked`", mistakes={
        "Places that were not chosen are changed: the 80 and 10 % are meant of the chosen ones.": lambda: unchanged})
    # Rate 1: every ordinary piece is chosen, and nothing else.
    result, everything = run(row, rate=1.0)
    check.equal(everything, torch.where(word, row, -100), "With rate 1 every ordinary piece is chosen; the tensor `labels`", mistakes={
        "Special pieces are chosen too. [CLS], [SEP] and [PAD] hold no word to guess.":
            lambda: row,
        "[PAD] is left out, but [CLS] and [SEP] are chosen; they hold no word to guess either.":
            lambda: torch.where(row != 0, row, -100),
        "The labels are taken from the input after hiding, so the model is asked for what it can see.":
            lambda: torch.where(word, result, -100),
        "Labels are kept only where [MASK] stands. The pieces that were replaced at random or left alone are chosen too.":
            lambda: torch.where(result == mask_id, row, -100),
    })

    # Labels against the input.
    check.true(not (chosen & ~ordinary).any(), "a special piece was chosen.")
    check.equal(labels, torch.where(chosen, ids, -100), "The tensor `labels`")
    check.equal(masked[~chosen], ids[~chosen], "The input where nothing was chosen")

    # Shares, over 17,800 ordinary pieces (2,670 chosen): the margins are more than four standard deviations.
    check.true(0.139 < share < 0.161, "the share of chosen pieces is not the rate.", None, "about 0.15", f"{share:.3f}")
    kept = (masked == ids) & chosen
    hidden = (masked == mask_id) & chosen
    swapped = chosen & ~kept & ~hidden
    n = chosen.sum().item()
    shares = [group.sum().item() / n for group in (hidden, swapped, kept)]
    mistake = None
    if shares[0] > 0.99:
        mistake = "Every chosen piece becomes [MASK]. Only 80 % do; 10 % become a random piece and 10 % stay."
    elif shares[1] < 0.01 and shares[0] < 0.9:
        mistake = "No chosen piece is replaced by a random one: [MASK] or left alone is all that happens."
    elif shares[2] < 0.012:
        mistake = "No chosen piece is left as it was: 10 % should be, so that a piece in sight may also be asked for."
    elif 0.005 < shares[1] < 0.05 and 0.13 < shares[2]:
        mistake = "Random pieces are drawn for 10 % of what [MASK] left over: that is 2 %. It must be half of the left-over."
    elif shares[1] > 0.15 and shares[2] < 0.05 or shares[0] < 0.75:
        mistake = "The kinds overlap: a piece that became [MASK] is replaced again. One number a piece should decide its kind."
    right = abs(shares[0] - 0.8) < 0.035 and abs(shares[1] - 0.1) < 0.027 and abs(shares[2] - 0.1) < 0.027
    check.true(right, "the chosen pieces are not treated 80 : 10 : 10.", mistake,
               "[MASK] 80 %, random 10 %, unchanged 10 %",
               "[MASK] {:.0%}, random {:.0%}, unchanged {:.0%}".format(*shares))
    drawn = masked[swapped]
    check.true(bool(((drawn >= 0) & (drawn < vocab)).all()), "a random piece is not in the vocabulary.",
               "The ids end at `vocab_size` - 1, and `torch.randint(vocab_size, …)` ends there too.")
    check.true(len(drawn.unique()) > 30, "the random pieces are too few different ones.",
               "One random piece is drawn for the whole batch; draw one a place." if len(drawn.unique()) == 1 else None,
               "nearly all of the 50", len(drawn.unique()))

    # With rate 1 about 900 pieces are drawn, so that the last of the 50 is missing in one of 10 million runs.
    many, _ = run(ids[:100], rate=1.0)
    drawn = many[(many != ids[:100]) & (many != mask_id)]
    check.true(int(drawn.max()) == vocab - 1, "the random pieces should come from the whole vocabulary.",
               "The upper end of `torch.randint` is never drawn: it is `vocab_size`, not `vocab_size` - 1.",
               f"ids up to {vocab - 1}", f"ids up to {int(drawn.max())}")

    # The generator.
    again = run(ids)
    check.true(torch.equal(again[0], masked) and torch.equal(again[1], labels),
               "two calls with generators of the same seed gave different results.",
               "A random draw does not use `generator`, so a run can't be repeated.")
    other = run(ids, seed=1)
    check.true(not torch.equal(other[1], labels), "two generators of different seeds gave the same result.",
               "The generator is seeded inside the function: every batch would hide the same places.")
    check.passed()


# ---- an investigation -------------------------------------------------------------------------------------------------

def vanishing_gradient(answer):
    """Investigation: by how many powers of ten the gradient shrinks with each layer that has neither residual nor LN."""
    # Measured by the exercise's recipe with five seeds: 2.60 ± .01; the solution repeats it. The hand estimate is 2.58.
    check = Check("vanishing_gradient", see='Chapter 3, "A stack that can\'t learn"')
    per_layer, tolerance = 2.6, 0.1
    mistakes = {
        "The sign: asked is by how much it shrinks, so a shrinking gradient gives a positive number.": -per_layer,
        "This is the loss over all six further layers; divide by 6.": 6 * per_layer,
        "Divided by 8, the layers of the taller stack. Between 2 and 8 layers lie 6.": 6 * per_layer / 8,
        "The logarithm is the natural one; powers of ten need math.log10.": per_layer * 2.302585,
        "This is the factor itself; asked is its logarithm to base 10.": 10**per_layer,
    }
    if answer is not None:
        check.number(answer, 0.0, math.inf, "the number of powers of ten")  # a number at all? In a tensor it is one too
    for mistake, value in mistakes.items():
        if answer is not None and abs(float(answer) - value) <= tolerance * abs(value / per_layer):
            check.fail("the number of powers of ten is not the recorded one.", mistake=mistake)
    check.number(answer, per_layer, tolerance, "the number of powers of ten")
    check.passed("In the shape of bert-base it is about 1 a layer: 12 layers leave a millionth of a millionth.")
