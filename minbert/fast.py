"""The same results, sooner. Each function here has a plain twin elsewhere, and a test that holds the two equal.

- `use_fast`: attention by PyTorch's fused kernel.
- `use_cls_only`: the last layer works for [CLS] alone, where nothing else of it is read.
- `use_occurring_rows`: the optimizer visits only those embedding rows that the data can change.
- `use_fast_lora`: one product with the A of query, key and value, where the plain form has three.
"""

import torch
from torch import nn

from minbert.attention import MultiHeadAttention, merge_heads, split_heads
from minbert.bert import BertLayer, BertModel
from minbert.lora import LoRALinear


def fast_attention(q, k, v, bias=None, dropout=0.0):
    """`minbert.attention.attention` by PyTorch's fused kernel, which never writes the (T, S) scores to memory. (With dropout
    on a CPU there is no such kernel, and PyTorch takes the plain way.)

    Args and shapes are those of the plain form. Returns context (B, H, T, Dh) and None: the fused kernel
    keeps no probabilities.
    """
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout), None


def use_fast(model, on=True):
    """Let every `MultiHeadAttention` in `model` use `fast_attention` (or the plain form again, with `on=False`).

    Modules that keep their probabilities for pictures stay plain. Returns the model.
    """
    from minbert.attention import attention

    for module in model.modules():
        if isinstance(module, MultiHeadAttention):
            module.attend = fast_attention if on and not module.keep_probabilities else attention
    return model


# The last layer, for [CLS] only ------------------------------------------------------------------------------------


class CLSLayer(BertLayer):
    """A `BertLayer` that computes its output for token 0 alone.

    [CLS] still looks at every token, so keys and values are needed for all of them. Its query, the mixing of its
    heads, the feed-forward part and both normalisations are needed once a sentence, not T times.

    Args:
        layer: the plain layer. Its parts are shared, not copied: same parameters, same names.

    Right where only `pooled` is read, as in classification. Not for spans, mean pooling or masked words, which read
    the other tokens. With dropout it draws fewer random numbers than the plain layer: the same distribution, other
    draws.
    """

    def __init__(self, layer):
        nn.Module.__init__(self)  # not BertLayer's: that would make new parameters
        for name, part in layer.named_children():
            self.add_module(name, part)
        self.train(layer.training)

    def forward(self, x, bias=None):
        """x (B, T, D) and bias (B, 1, 1, T) or None to (B, 1, D): what the plain layer gives for token 0."""
        first, a = x[:, :1], self.attention  # (B, 1, D)
        [q], (k, v) = together([a.query], first), together([a.key, a.value], x)
        q, k, v = (split_heads(part, a.heads) for part in (q, k, v))  # (B, H, 1, Dh), twice (B, H, T, Dh)
        context, _ = a.attend(q, k, v, bias, a.dropout if a.training else 0.0)  # (B, H, 1, Dh)
        [mixed] = together([a.output], merge_heads(context))  # (B, 1, D)
        h = self.attention_norm(first + self.dropout(mixed))  # (B, 1, D)
        wide = nn.functional.gelu(self.up(h))  # (B, 1, F)
        return self.output_norm(h + self.dropout(self.down(wide)))  # (B, 1, D)


def use_cls_only(model):
    """Let the last layer of the `BertModel` in `model` work for [CLS] only. Returns the model.

    `hidden`, the encoder's first output, is then (B, 1, D) instead of (B, T, D); `pooled` is what it was.

    Raises:
        ValueError: there is no `BertModel` with at least one layer.
    """
    for bert in _berts(model):
        if not isinstance(bert.layers[-1], CLSLayer):
            bert.layers[-1] = CLSLayer(bert.layers[-1])
    return model


# LoRA: one product for the A of several matrices ----------------------------------------------------------------------


def together(layers, x):
    """`[layer(x) for layer in layers]`; for `LoRALinear`s with one product for all of their A.

    The plain form of LoRA reads x once more for each adapted matrix, and goes three times over its (B, T, D) result: it
    is written, scaled, and added. Here z = x [A₁; A₂; …]ᵀ is one product, of numbers that are few; and s · z Bᵀ is added
    to W x + b while it is computed. A batch with several tasks takes the A of them all and sets to 0 what is not a row's
    own.

    Args:
        layers: `Linear`s, or `LoRALinear`s of one rank, scale and task, with as many inputs as x has numbers.
        x: (B, …, in).

    Returns:
        a list of (B, …, out). The gradients are those of the plain form, too: a task that is not in the batch gets none.
        With dropout on the updates the layers share one mask: the same distribution for each, other draws.
    """
    first = layers[0]
    if type(first) is not LoRALinear or first.task is None or first.merged is not None:
        return [layer(x) for layer in layers]  # nothing is added, or there is something to refuse
    tasks = [first.task] if isinstance(first.task, str) else list(dict.fromkeys(first.task))  # k
    if not isinstance(first.task, str) and len(first.task) != len(x):
        raise ValueError(f"LoRA: {len(first.task)} task names for {len(x)} rows")
    A = torch.cat([layer.A[task] for layer in layers for task in tasks])  # (n k r, in)
    z = first.dropout(x) @ A.T  # (B, …, n k r)
    if len(tasks) > 1:
        own = torch.tensor([[name == task for task in tasks] for name in first.task], dtype=z.dtype, device=z.device)
        own = own.repeat_interleave(first.r, dim=1).repeat(1, len(layers))  # (B, n k r)
        z = z * own.view(len(x), *[1] * (x.ndim - 2), -1)
    z = z.flatten(0, -2)  # (N, n k r)
    outputs = []
    for layer, part in zip(layers, z.chunk(len(layers), dim=1)):
        B = torch.cat([layer.B[task] for task in tasks], dim=1)  # (out, k r)
        y = layer.linear(x)  # (B, …, out)
        outputs.append(torch.addmm(y.flatten(0, -2), part, B.T, alpha=layer.scale).view(y.shape))
    return outputs


class LoRAAttention(MultiHeadAttention):
    """A `MultiHeadAttention` with `LoRALinear`s in it, of which query, key and value are computed `together`.

    Args:
        attention: the plain one. Its parts are shared, not copied: same parameters, same names.
    """

    def __init__(self, attention):
        nn.Module.__init__(self)  # not MultiHeadAttention's: that would make new parameters
        for name, part in attention.named_children():
            self.add_module(name, part)
        self.heads, self.dropout, self.attend = attention.heads, attention.dropout, attention.attend
        self.keep_probabilities, self.probabilities = attention.keep_probabilities, None
        self.plain = [attention]  # in a list: it is no part of this module
        self.train(attention.training)

    def forward(self, x, bias=None):
        """x (B, T, D) and bias (B, 1, 1, T) or None to (B, T, D)."""
        q, k, v = (split_heads(part, self.heads) for part in together([self.query, self.key, self.value], x))
        context, probabilities = self.attend(q, k, v, bias, self.dropout if self.training else 0.0)  # (B, H, T, Dh)
        if self.keep_probabilities:
            self.probabilities = probabilities
        return together([self.output], merge_heads(context))[0]  # (B, T, D)


def use_fast_lora(model, on=True):
    """Let every attention in `model` that `add_lora` has adapted use `LoRAAttention` (or the plain form, with `on=False`).

    Call it after `add_lora`; before it there is nothing to change. Returns the model.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if on and type(child) is MultiHeadAttention and type(child.query) is LoRALinear:
                setattr(parent, name, LoRAAttention(child))
            elif not on and isinstance(child, LoRAAttention):
                plain = child.plain[0].train(child.training)
                plain.attend, plain.keep_probabilities = child.attend, child.keep_probabilities
                setattr(parent, name, plain)
    return model


# Only the embedding rows that occur --------------------------------------------------------------------------------


class OccurringRows(nn.Module):
    """A word-embedding table of which only the rows that occur in the training data are trained.

    A row whose piece never occurs has gradient 0 in every step, yet a plain table makes the optimizer visit it in every
    step. Here `weight` (n, D) holds the n rows that occur, and only they have gradients and moments.

    Args:
        embedding: the plain `nn.Embedding` (V, D).
        ids: the tokenised training data, lists of ids.

    Equal to the plain table in every row that occurs; in the others only if the table has no weight decay. With decay
    the plain table shrinks those by (1 - lr·λ) a step and this one leaves them as they are, which shows only in a
    sentence with a piece that was never trained on.

    Such pieces are looked up in the untrained rest of the table. `state_dict` puts the rows back: it holds one table
    (V, D) under the plain name, and loads one, so that a checkpoint does not tell which form wrote it.
    """

    def __init__(self, embedding, ids):
        super().__init__()
        table, padding = embedding.weight.detach(), embedding.padding_idx
        occur = sorted(set().union(*ids) | ({padding} - {None}))  # n of V
        self.padding = None if padding is None else occur.index(padding)  # its row gets no gradient, as before
        rows = torch.tensor(occur, device=table.device)  # (n,)
        place = torch.full((len(table),), -1, device=table.device)  # (V,): where a row is kept; -1: nowhere
        place[rows] = torch.arange(len(rows), device=table.device)
        self.weight = nn.Parameter(table[rows].clone(), requires_grad=embedding.weight.requires_grad)  # (n, D)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("table", table.clone(), persistent=False)  # (V, D): its rows that occur fall out of date
        self.register_state_dict_post_hook(_put_rows_back)
        self.register_load_state_dict_pre_hook(_take_rows_out)

    def forward(self, input_ids):
        """(B, T) to (B, T, D)."""
        place = self.place[input_ids]  # (B, T)
        found = nn.functional.embedding(place.clamp(min=0), self.weight, self.padding)  # (B, T, D)
        return torch.where((place < 0).unsqueeze(-1), self.table[input_ids], found)  # (B, T, D)

    def full_table(self):
        """The whole table (V, D), with the trained rows in their places."""
        return self.table.index_copy(0, self.rows, self.weight.detach())


def _put_rows_back(module, state_dict, prefix, local_metadata):
    state_dict[prefix + "weight"] = module.full_table()


def _take_rows_out(module, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
    table = state_dict.get(prefix + "weight")
    if table is not None and table.shape == module.table.shape:  # otherwise PyTorch's own message says what is wrong
        module.table.copy_(table)
        state_dict[prefix + "weight"] = table[module.rows.to(table.device)]


def use_occurring_rows(model, ids):
    """Train only those word embeddings of the `BertModel` in `model` that occur in `ids`. Returns the model.

    Call it before the optimizer is made: the table's parameter is a new one. Not for a masked language model, whose
    output uses every row.

    Raises:
        ValueError: there is no `BertModel` with at least one layer.
    """
    for bert in _berts(model):
        if not isinstance(bert.embeddings.word, OccurringRows):
            bert.embeddings.word = OccurringRows(bert.embeddings.word, ids)
    return model


def _berts(model):
    found = [module for module in model.modules() if isinstance(module, BertModel) and len(module.layers)]
    if not found:
        raise ValueError(f"{type(model).__name__} holds no BertModel with layers: there is nothing to speed up in it")
    return found
