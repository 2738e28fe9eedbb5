"""Chapter 3: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from minbert import mlm
from minbert.attention import mask_bias
from minbert.bert import BertLayer, BertModel

# -- the layer ------------------------------------------------------------------------------------------------------


def tanh_gelu(t):
    return F.gelu(t, approximate="tanh")


def post(layer, x, bias=None, *, swapped=False, twice=False, res1=True, res2=True, from_x=False, ffn_x=False,
         norm1=True, norm2=True, inner_norm=False, act=F.gelu, masked=True, drop1=True, drop2=True, drop_late=False,
         drop_sum=False, drop_inside=False, drop_both=False, always=False, scale=1.0, detach=False):  # fmt: skip
    """A post-LN layer with a switch for each mistake."""
    first, second = layer.attention_norm, layer.output_norm
    if swapped:
        first, second = second, first
    if twice:  # "first" or "second": the one that is used for both halves
        first = second = first if twice == "first" else second

    def drop(t, on=True):
        if always:
            return F.dropout(t, layer.dropout.p)
        return layer.dropout(t) if on else t

    def join(residual, update, keep, norm, use_norm, on):
        if drop_late:
            return layer.dropout(norm(residual + update))
        if drop_sum:
            return norm(layer.dropout(residual + update))
        update = drop(update, on)
        if inner_norm:
            return residual + norm(update)
        total = residual + update if keep else update
        return norm(total) if use_norm else total

    attended = layer.attention(x, bias if masked else None)
    if detach:
        attended = attended.detach()
    h = join(x, attended, res1, first, norm1, drop1)
    wide = act(layer.up(x if ffn_x else h))
    if drop_inside:
        return second(h + layer.down(layer.dropout(wide)))
    if drop_both:
        wide = layer.dropout(wide)
    return scale * join(x if from_x else h, layer.down(wide), res2, second, norm2, drop2)


def pre(layer, x, bias=None, *, path1="x", path2="h", swapped=False, norm1=True, norm2=True, last=False, res=True,
        masked=True, act=F.gelu, drop1=True, drop2=True, drop_sum=False, drop_both=False, always=False, scale=1.0):  # fmt: skip
    """A pre-LN layer with a switch for each mistake."""
    first, second = layer.attention_norm, layer.output_norm
    if swapped:
        first, second = second, first

    def drop(t, on):
        if always:
            return F.dropout(t, layer.dropout.p)
        return layer.dropout(t) if on and not drop_sum else t

    def total(t):
        return layer.dropout(t) if drop_sum else t

    n = first(x) if norm1 else x
    update = drop(layer.attention(n, bias if masked else None), drop1)
    h = total((n if path1 == "n" else x) + update) if res else update
    m = second(h) if norm2 else h
    wide = act(layer.up(m))
    update = drop(layer.down(layer.dropout(wide) if drop_both else wide), drop2)
    y = total({"h": h, "m": m, "x": x}[path2] + update) if res else update
    return scale * (second(y) if last else y)


def as_class(**switches):
    """A BertLayer whose forward is `post` with these switches."""

    class Layer(BertLayer):
        def forward(self, x, bias=None):
            return post(self, x, bias, **switches)

    return Layer


def as_function(make, **switches):
    return lambda layer, x, bias=None: make(layer, x, bias, **switches)


class PreNormClass(BertLayer):
    def forward(self, x, bias=None):
        return pre(self, x, bias)


class DefaultEps(BertLayer):
    def __init__(self, config):
        super().__init__(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size)


# The mistakes that a layer can have whether it is written as a class or as a function.
LAYER = {
    "normalisations swapped": dict(swapped=True),
    "the first normalisation used twice": dict(twice="first"),
    "the second normalisation used twice": dict(twice="second"),
    "no residual around the attention": dict(res1=False),
    "no residual around the feed-forward network": dict(res2=False),
    "second residual from x": dict(from_x=True),
    "feed-forward network reads x": dict(ffn_x=True),
    "only the update is normalised": dict(inner_norm=True),
    "no last normalisation": dict(norm2=False),
    "no first normalisation": dict(norm1=False),
    "tanh GELU": dict(act=tanh_gelu),
    "ReLU": dict(act=F.relu),
    "no activation": dict(act=lambda t: t),
    "bias not handed on": dict(masked=False),
    "no dropout after the attention": dict(drop1=False),
    "no dropout after the feed-forward network": dict(drop2=False),
    "no dropout": dict(drop1=False, drop2=False),
    "dropout after the normalisation": dict(drop_late=True),
    "dropout on the sum": dict(drop_sum=True),
    "dropout inside the feed-forward network": dict(drop_inside=True),
    "dropout inside the feed-forward network too": dict(drop_both=True),
    "functional dropout, active in evaluation": dict(always=True),
}


def by_hand_norm(norm, t):
    centred = t - t.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def by_hand_layer(layer, x, bias=None):
    """Written out: normalisation by its formula, GELU by erf, the linear layers by einsum."""
    h = by_hand_norm(layer.attention_norm, layer.dropout(layer.attention(x, bias)) + x)
    wide = torch.einsum("btd,fd->btf", h, layer.up.weight) + layer.up.bias
    wide = wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2)))
    return by_hand_norm(layer.output_norm, layer.dropout(layer.down(wide)) + h)


class ByHand(BertLayer):
    def forward(self, x, bias=None):
        return by_hand_layer(self, x, bias)


class OneSentenceAtATime(BertLayer):
    """A loop over the batch, and functional dropout that knows the mode."""

    def forward(self, x, bias=None):
        rows = []
        for i in range(len(x)):
            row = x[i : i + 1]
            update = self.attention(row, None if bias is None else bias[i : i + 1])
            h = self.attention_norm(row + F.dropout(update, self.dropout.p, self.training))
            update = self.down(nn.GELU()(self.up(h)))
            rows.append(self.output_norm(h + F.dropout(update, self.dropout.p, self.training)))
        return torch.cat(rows)


def helper_layer(layer, x, bias=None):
    for update, norm in [(lambda t: layer.attention(t, bias), layer.attention_norm),
                         (lambda t: layer.down(F.gelu(layer.up(t))), layer.output_norm)]:
        x = norm(x + layer.dropout(update(x)))
    return x


def helper_pre_layer(layer, x, bias=None):
    for update, norm in [(lambda t: layer.attention(t, bias), layer.attention_norm),
                         (lambda t: layer.down(F.gelu(layer.up(t))), layer.output_norm)]:
        x = x + layer.dropout(update(norm(x)))
    return x


def by_hand_pre_layer(layer, x, bias=None):
    update = layer.attention(by_hand_norm(layer.attention_norm, x), bias)
    h = x + F.dropout(update, layer.dropout.p, layer.training)
    wide = layer.up(by_hand_norm(layer.output_norm, h))
    update = layer.down(wide * 0.5 * (1 + torch.erf(wide / math.sqrt(2))))
    return h + F.dropout(update, layer.dropout.p, layer.training)


# -- the model ------------------------------------------------------------------------------------------------------


def model(**switches):
    """A BertModel whose forward has a switch for each mistake."""

    class Model(BertModel):
        def forward(self, input_ids, attention_mask, token_type_ids=None):
            return encode(self, input_ids, attention_mask, token_type_ids, **switches)

    return Model


def encode(m, ids, mask, types, *, use_types=True, bias="right", order=None, own_input=False, pool="cls", tanh=True,
           linear=True, back=False, only=False, scale=1.0):  # fmt: skip
    start = m.embeddings(ids, types if use_types else None)
    biases = {
        "right": lambda: mask_bias(mask, start.dtype),
        "none": lambda: None,
        "inverted": lambda: mask_bias(1 - mask, start.dtype),
        "raw": lambda: mask[:, None, None, :],
        "two axes": lambda: mask,
        "float32": lambda: mask_bias(mask),
    }
    added = biases[bias]()
    layers = list(m.layers)
    x = start
    for layer in order(layers) if order else layers:
        out = layer(start if own_input else x, added)
        x = out
    weight = mask[..., None].to(x.dtype)
    choices = {
        "cls": lambda: x[:, 0],
        "mean": lambda: (x * weight).sum(1) / weight.sum(1),
        "padded mean": lambda: x.mean(1),
        "last": lambda: x[:, -1],
        "embedding": lambda: start[:, 0],
        "all": lambda: x,
        "row": lambda: x[0],
    }
    vector = choices[pool]()
    pooled = m.pooler(vector) if linear else vector
    pooled = torch.tanh(pooled) if tanh else pooled
    if only:
        return x
    return (pooled, x) if back else (scale * x, pooled)


class Folded(BertModel):
    """The pooler and the mask written out, the layers folded with reduce."""

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        from functools import reduce

        bias = torch.zeros(attention_mask.shape, dtype=self.pooler.weight.dtype)
        bias = bias.masked_fill(attention_mask == 0, -1e30)[:, None, None, :]
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        x = reduce(lambda x, layer: layer(x, bias), self.layers, self.embeddings(input_ids, types))
        first = x.select(1, 0)
        return x, (first @ self.pooler.weight.T + self.pooler.bias).tanh()


class SentenceBySentence(BertModel):
    """No padding at all: every sentence alone, cut to its length."""

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        hidden, pooled = [], []
        for i, length in enumerate(attention_mask.sum(1).tolist()):
            types = None if token_type_ids is None else token_type_ids[i : i + 1, :length]
            x = self.embeddings(input_ids[i : i + 1, :length], types)
            for layer in self.layers:
                x = layer(x)
            hidden.append(F.pad(x[0], (0, 0, 0, input_ids.shape[1] - length)))
            pooled.append(torch.tanh(self.pooler(x[0, 0])))
        return torch.stack(hidden), torch.stack(pooled)


# -- hidden word pieces ---------------------------------------------------------------------------------------------


def hide(ids, special, mask_id, vocab, generator, rate=0.15, *, avoid=True, only_some_special=False, label="right",
         shares=(0.8, 0.1), draws="one", use_generator=True, fixed_seed=False, one_piece=False, reach=0, inverted=False,
         touch_all=False):  # fmt: skip
    """`mask_tokens` with a switch for each mistake."""
    g = generator if use_generator else None
    if fixed_seed:
        g = torch.Generator().manual_seed(0)
    forbidden = torch.isin(ids, torch.tensor(sorted(special)))
    chosen = torch.rand(ids.shape, generator=g) < rate
    if inverted:
        chosen = ~chosen
    if avoid:
        chosen &= ~forbidden
    if only_some_special:  # [PAD] is avoided, [CLS] and [SEP] are not
        chosen = (torch.rand(ids.shape, generator=g) < rate) & (ids != 0)
    kind = torch.rand(ids.shape, generator=g)
    if draws == "one":
        masks, swaps = kind < shares[0], (kind >= shares[0]) & (kind < sum(shares))
    elif draws == "tenth":  # 10 % of the left-over 20 %
        masks = kind < 0.8
        swaps = ~masks & (torch.rand(ids.shape, generator=g) < 0.1)
    else:  # overlapping: a tenth of all the chosen, those with [MASK] too
        masks, swaps = kind < 0.8, torch.rand(ids.shape, generator=g) < 0.5
    pieces = torch.randint(vocab + reach, (1,) if one_piece else ids.shape, generator=g).expand(ids.shape)
    masked = torch.where((chosen | touch_all) & masks, mask_id, ids)
    masked = torch.where(chosen & swaps, pieces, masked)
    labels = {
        "right": lambda: torch.where(chosen, ids, -100),
        "late": lambda: torch.where(chosen, masked, -100),
        "all": lambda: ids.clone(),
        "zero": lambda: torch.where(chosen, ids, 0),
        "only masks": lambda: torch.where(chosen & masks, ids, -100),
    }[label]()
    return masked, labels


def hidden(**switches):
    return lambda ids, special, mask_id, vocab, generator, rate=0.15: hide(
        ids, special, mask_id, vocab, generator, rate, **switches)


def hide_in_place(ids, special, mask_id, vocab, generator, rate=0.15):
    masked, labels = mlm.mask_tokens(ids, special, mask_id, vocab, generator, rate)
    ids.copy_(masked)
    return ids, labels


def hide_one_by_one(ids, special, mask_id, vocab, generator, rate=0.15):
    """Python loops, one number at a time."""
    masked, labels = ids.tolist(), [[-100] * ids.shape[1] for _ in range(ids.shape[0])]
    for r, row in enumerate(ids.tolist()):
        for c, piece in enumerate(row):
            if piece in special or torch.rand((), generator=generator).item() >= rate:
                continue
            labels[r][c] = piece
            dice = torch.randint(10, (), generator=generator).item()
            if dice < 8:
                masked[r][c] = mask_id
            elif dice == 8:
                masked[r][c] = torch.randint(vocab, (), generator=generator).item()
    return torch.tensor(masked), torch.tensor(labels)


def hide_by_two_draws(ids, special, mask_id, vocab, generator, rate=0.15):
    """Bernoulli draws: 80 % become [MASK], half of the left-over a random piece."""
    probability = torch.full(ids.shape, float(rate))
    for piece in special:
        probability[ids == piece] = 0.0
    chosen = torch.bernoulli(probability, generator=generator).bool()
    labels, masked = ids.clone(), ids.clone()
    labels[~chosen] = -100
    masks = torch.bernoulli(torch.full(ids.shape, 0.8), generator=generator).bool() & chosen
    masked[masks] = mask_id
    swaps = torch.bernoulli(torch.full(ids.shape, 0.5), generator=generator).bool() & chosen & ~masks
    masked[swaps] = torch.randint(vocab, (int(swaps.sum()),), generator=generator)
    return masked, labels


# -- the lists ------------------------------------------------------------------------------------------------------

WRONG = {
    "bert_layer": {
        **{name: as_class(**switches) for name, switches in LAYER.items()},
        "pre-LN": PreNormClass,
        "eps 1e-5": DefaultEps,
    },
    "repair_layer": {
        **{name: as_function(post, **switches) for name, switches in LAYER.items()},
        "pre-LN": as_function(pre),
    },
    "pre_norm_layer": {
        "post-LN": as_function(post),
        "first residual from LN(x)": as_function(pre, path1="n"),
        "second residual from LN(h)": as_function(pre, path2="m"),
        "both residuals from the normalised vector": as_function(pre, path1="n", path2="m"),
        "second residual from x": as_function(pre, path2="x"),
        "the update is normalised": as_function(post, inner_norm=True),
        "normalisations swapped": as_function(pre, swapped=True),
        "no normalisation before the feed-forward network": as_function(pre, norm2=False),
        "no normalisation before the attention": as_function(pre, norm1=False),
        "normalised once more at the end": as_function(pre, last=True),
        "no residual": as_function(pre, res=False),
        "bias not handed on": as_function(pre, masked=False),
        "tanh GELU": as_function(pre, act=tanh_gelu),
        "no dropout after the attention": as_function(pre, drop1=False),
        "no dropout after the feed-forward network": as_function(pre, drop2=False),
        "no dropout": as_function(pre, drop1=False, drop2=False),
        "dropout on the sum": as_function(pre, drop_sum=True),
        "dropout inside the feed-forward network too": as_function(pre, drop_both=True),
        "functional dropout, active in evaluation": as_function(pre, always=True),
    },
    "bert_model": {
        "token types ignored": model(use_types=False),
        "no mask": model(bias="none"),
        "mask inverted": model(bias="inverted"),
        "mask added as 0 and 1": model(bias="raw"),
        "every layer reads the embeddings": model(own_input=True),
        "the first layer over and over": model(order=lambda layers: layers[:1] * len(layers)),
        "layers in reverse": model(order=lambda layers: layers[::-1]),
        "last layer left out": model(order=lambda layers: layers[:-1]),
        "first layer left out": model(order=lambda layers: layers[1:]),
        "no layers": model(order=lambda layers: []),
        "mean for [CLS]": model(pool="mean"),
        "mean with padding for [CLS]": model(pool="padded mean"),
        "last place for [CLS]": model(pool="last"),
        "embedding of [CLS]": model(pool="embedding"),
        "the mean itself": model(pool="mean", linear=False, tanh=False),
        "no tanh": model(tanh=False),
        "no linear layer": model(linear=False),
        "pooler on every token": model(pool="all"),
        "first sentence instead of first token": model(pool="row"),
        "wrong order of results": model(back=True),
        "only hidden": model(only=True),
        "a bias in float32": model(bias="float32"),
    },
    "mask_tokens": {
        "special pieces chosen": hidden(avoid=False),
        "[CLS] and [SEP] chosen": hidden(only_some_special=True),
        "labels taken after hiding": hidden(label="late"),
        "labels everywhere": hidden(label="all"),
        "0 for what was not chosen": hidden(label="zero"),
        "labels only where [MASK] stands": hidden(label="only masks"),
        "everything becomes [MASK]": hidden(shares=(1.0, 0.0)),
        "no random pieces": hidden(shares=(0.8, 0.0)),
        "nothing stays": hidden(shares=(0.8, 0.2)),
        "a tenth of the left-over": hidden(draws="tenth"),
        "kinds overlap": hidden(draws="overlap"),
        "one random piece for all": hidden(one_piece=True),
        "generator not used": hidden(use_generator=False),
        "generator seeded inside": hidden(fixed_seed=True),
        "choice inverted": hidden(inverted=True),
        "the last piece is never drawn": hidden(reach=-1),
        "one piece beyond the last": hidden(reach=5),
        "what was not chosen is hidden too": hidden(touch_all=True),
    },
}

RIGHT = {
    "bert_layer": {"the package's": BertLayer, "formulas written out": ByHand, "a loop over sentences": OneSentenceAtATime},
    "repair_layer": {"a switchable function": as_function(post), "a loop over the halves": helper_layer,
                     "formulas written out": by_hand_layer},
    "pre_norm_layer": {"a switchable function": as_function(pre), "a loop over the halves": helper_pre_layer,
                       "formulas written out": by_hand_pre_layer},
    "bert_model": {"the package's": BertModel, "folded": Folded, "without padding": SentenceBySentence},
    "mask_tokens": {"the package's": mlm.mask_tokens, "one by one": hide_one_by_one, "two draws": hide_by_two_draws,
                    "a switchable function": hidden()},
}

UNLISTED = {
    "bert_layer": as_class(detach=True),  # the output is right, its gradient is not
    "repair_layer": as_function(post, scale=1.001),
    "pre_norm_layer": as_function(pre, scale=1.001),
    "bert_model": model(scale=1.001),
    "mask_tokens": hide_in_place,
}
