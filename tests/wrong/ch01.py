"""Chapter 1: wrong versions from real mistakes, right versions written differently. See tests/test_checks.py."""

import torch
from torch.nn import functional as F

from minbert import embeddings, tokens

# -- split_word -----------------------------------------------------------------------------------------------------


def cut(word, vocabulary, unknown="[UNK]", longest=100, *, look_up="##", write="##", first="", shortest=False,
        shortest_piece=1, on_unknown="word", limit=True, at_limit=False, replace=False):  # fmt: skip
    """The greedy rule with a switch for each mistake."""
    if limit and (len(word) >= longest if at_limit else len(word) > longest):
        return [unknown]
    pieces, rest = [], word
    while rest:
        ends = range(shortest_piece, len(rest) + 1)
        for end in ends if shortest else reversed(ends):
            if (look_up if pieces else first) + rest[:end] in vocabulary:
                pieces.append((write if pieces else first) + rest[:end])
                rest = rest.replace(rest[:end], "") if replace else rest[end:]
                break
        else:
            if on_unknown == "word":
                return [unknown]
            if on_unknown == "keep":
                return pieces + [unknown]
            if on_unknown == "stop":
                return pieces + ["##" + rest]
            rest = rest[1:]  # "skip"
    return pieces


def too_long(limit=None, result=None):
    """The limit, or what a word beyond it becomes, is written into the code."""

    def split_word(word, vocabulary, unknown="[UNK]", longest=100):
        if len(word) > (limit or longest):
            return [result or unknown]
        return cut(word, vocabulary, unknown, limit=False)

    return split_word


def switched(**switches):
    return lambda word, vocabulary, unknown="[UNK]", longest=100: cut(word, vocabulary, unknown, longest, **switches)


def whole_word_or_letters(word, vocabulary, unknown="[UNK]", longest=100):
    if word in vocabulary:
        return [word]
    return cut(word, vocabulary, unknown, longest, shortest=True)


def from_the_end(word, vocabulary, unknown="[UNK]", longest=100):
    if len(word) > longest:
        return [unknown]
    pieces = []
    while word:
        for start in range(len(word)):
            piece = ("##" if start else "") + word[start:]
            if piece in vocabulary:
                pieces.insert(0, piece)
                word = word[:start]
                break
        else:
            return [unknown]
    return pieces


def marked_from_the_start(word, vocabulary, unknown="[UNK]", longest=100):
    """The first piece of a cut word is looked up with "##" as well."""
    return [word] if word in vocabulary else cut(word, vocabulary, unknown, longest, first="##")


def going_back(word, vocabulary, unknown="[UNK]", longest=100):
    """Any way to cut the word, longer pieces first."""

    def rest(start):
        if start == len(word):
            return []
        for end in range(len(word), start, -1):
            piece = ("##" if start else "") + word[start:end]
            if piece in vocabulary and (tail := rest(end)) is not None:
                return [piece] + tail
        return None

    return [unknown] if len(word) > longest else rest(0) or [unknown]


def by_recursion(word, vocabulary, unknown="[UNK]", longest=100):
    def rest(start):
        if start == len(word):
            return []
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else "##" + word[start:end]
            if piece in vocabulary:
                tail = rest(end)
                return None if tail is None else [piece] + tail
        return None

    return [unknown] if len(word) > longest else rest(0) or [unknown]


def by_the_library(word, vocabulary, unknown="[UNK]", longest=100):
    from tokenizers.models import WordPiece

    ids = {piece: number for number, piece in enumerate(sorted(vocabulary))}
    ids.setdefault(unknown, len(ids))
    model = WordPiece(ids, unk_token=unknown, max_input_chars_per_word=longest)
    return [token.value for token in model.tokenize(word)]


def by_prefixes(word, vocabulary, unknown="[UNK]", longest=100):
    """Grow the candidates, keep the last that was there."""
    if len(word) > longest:
        return [unknown]
    pieces = []
    while word:
        marked = word if not pieces else "##" + word
        fits = [n for n in range(1, len(word) + 1) if marked[: len(marked) - len(word) + n] in vocabulary]
        if not fits:
            return [unknown]
        pieces.append(marked[: len(marked) - len(word) + fits[-1]])
        word = word[fits[-1] :]
    return pieces


# -- bert_embeddings ------------------------------------------------------------------------------------------------


class Base(embeddings.BertEmbeddings):
    """The stub's __init__; each version below writes `total` (or the whole forward pass)."""

    def places(self, ids, start=0):
        return self.position(torch.arange(start, start + ids.shape[1]))

    def types(self, ids, kinds):
        return self.token_type(torch.zeros_like(ids) if kinds is None else kinds)

    def total(self, ids, kinds):
        return self.word(ids) + self.places(ids) + self.types(ids, kinds)

    def forward(self, input_ids, token_type_ids=None):
        return self.dropout(self.norm(self.total(input_ids, token_type_ids)))


def version(total=None, forward=None):
    body = {"total": total} if total else {"forward": lambda self, input_ids, token_type_ids=None: forward(self, input_ids, token_type_ids)}
    return type("BertEmbeddings", (Base,), body)


def with_eps(self, ids, kinds):
    return self.dropout(F.layer_norm(self.total(ids, kinds), (self.word.embedding_dim,), self.norm.weight, self.norm.bias))


def by_hand(self, ids, kinds, unbiased=False):
    x = self.total(ids, kinds)
    centred = x - x.mean(-1, keepdim=True)
    if unbiased:
        return self.dropout(centred / (x.std(-1, keepdim=True) + 1e-12) * self.norm.weight + self.norm.bias)
    return self.dropout(centred / (x.var(-1, keepdim=True, unbiased=False) + self.norm.eps).sqrt() * self.norm.weight + self.norm.bias)


def one_hot(self, ids, kinds):
    kinds = torch.zeros_like(ids) if kinds is None else kinds
    tables = [(ids, self.word), (torch.arange(ids.shape[1]).expand_as(ids), self.position), (kinds, self.token_type)]
    x = sum(F.one_hot(index, table.num_embeddings).to(table.weight.dtype) @ table.weight for index, table in tables)
    return self.dropout(self.norm(x))


def token_by_token(self, ids, kinds):
    rows = []
    for b in range(ids.shape[0]):
        row = []
        for t in range(ids.shape[1]):
            kind = 0 if kinds is None else kinds[b, t]
            row.append(self.word.weight[ids[b, t]] + self.position.weight[t] + self.token_type.weight[kind])
        rows.append(torch.stack(row))
    return self.dropout(self.norm(torch.stack(rows)))


def without_gradient(self, ids, kinds):
    with torch.no_grad():
        return self.dropout(self.norm(self.total(ids, kinds)))


def none_adds_nothing(self, ids, kinds):
    x = self.word(ids) + self.places(ids)
    return x if kinds is None else x + self.token_type(kinds)


def counted_from_the_mask(self, ids, kinds):
    real = (ids != 0).long()
    return self.word(ids) + self.position(real.cumsum(1) * real) + self.types(ids, kinds)


# -- max_pool -------------------------------------------------------------------------------------------------------


def keep(mask):
    return mask.bool().unsqueeze(-1)


def max_pool(hidden, attention_mask, stand_in=None, empty=True):
    stand_in = torch.finfo(hidden.dtype).min if stand_in is None else stand_in
    pooled = hidden.masked_fill(~keep(attention_mask), stand_in).amax(1)
    return pooled.masked_fill(~attention_mask.any(1, keepdim=True), 0) if empty else pooled


def largest_absolute(hidden, mask):
    real = hidden * mask.unsqueeze(-1)
    return real.gather(1, real.abs().argmax(1, keepdim=True)).squeeze(1)


def max_row_by_row(hidden, mask):
    rows = [row[m == 1] for row, m in zip(hidden, mask)]
    return torch.stack([row.max(dim=0).values if len(row) else hidden.new_zeros(hidden.shape[-1]) for row in rows])


def max_by_sorting(hidden, mask):
    filled = torch.where(keep(mask), hidden, float("-inf"))
    return torch.nan_to_num(filled.sort(dim=1, descending=True).values[:, 0], neginf=0.0)


def max_running(hidden, mask):
    best = torch.full_like(hidden[:, 0], float("-inf"))
    for t in range(hidden.shape[1]):
        best = torch.where(mask[:, t : t + 1] == 1, torch.maximum(best, hidden[:, t]), best)
    return torch.where(best.isinf(), 0.0, best)


def max_in_place(hidden, mask):
    hidden[mask == 0] = torch.finfo(hidden.dtype).min
    return hidden.amax(1)


# -- masked_mean ----------------------------------------------------------------------------------------------------


def weights(hidden, mask):
    return mask.unsqueeze(-1).to(hidden.dtype)


def total(hidden, mask):
    return (hidden * weights(hidden, mask)).sum(1)


def mean_row_by_row(hidden, mask):
    rows = [row[m == 1] for row, m in zip(hidden, mask)]
    return torch.stack([row.mean(0) if len(row) else hidden.new_zeros(hidden.shape[-1]) for row in rows])


def mean_by_einsum(hidden, mask):
    share = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return torch.einsum("btd,bt->bd", hidden, share.to(hidden.dtype))


def mean_by_nan(hidden, mask):
    return hidden.masked_fill(~keep(mask), float("nan")).nanmean(1).nan_to_num(0.0)


WRONG = {
    "split_word": {
        "no ## in the look-up": switched(look_up="", write=""),
        "## in the look-up only": switched(write=""),
        "shortest first": switched(shortest=True),
        "whole word or letters": whole_word_or_letters,
        "from the end": from_the_end,
        "## on the first piece too": marked_from_the_start,
        "one character never tried": lambda w, v, unknown="[UNK]", longest=100: cut(w, v, unknown, longest, shortest_piece=2),
        "replace takes away every occurrence": switched(replace=True),
        "goes back after a dead end": going_back,
        "only the unknown part is unknown": switched(on_unknown="keep"),
        "unknown characters are skipped": switched(on_unknown="skip"),
        "what is left is returned as a piece": switched(on_unknown="stop"),
        "the unknown piece is written into the code": lambda w, v, unknown="[UNK]", longest=100: cut(w, v, "[UNK]", longest),
        "the limit is off by one": switched(at_limit=True),
        "no limit": switched(limit=False),
        "the limit is written into the code": too_long(limit=100),
        "the unknown piece of a long word is written into the code": too_long(result="[UNK]"),
    },
    "bert_embeddings": {
        "joined end to end": version(forward=lambda self, ids, kinds: torch.cat(
            [self.word(ids), self.places(ids).expand(len(ids), -1, -1), self.types(ids, kinds)], -1)),
        "no gradient": version(forward=without_gradient),
        "no token types": version(lambda self, ids, kinds: self.word(ids) + self.places(ids)),
        "token type 0 always": version(lambda self, ids, kinds: self.word(ids) + self.places(ids) + self.token_type.weight[0]),
        "no positions": version(lambda self, ids, kinds: self.word(ids) + self.types(ids, kinds)),
        "positions from 1": version(lambda self, ids, kinds: self.word(ids) + self.places(ids, 1) + self.types(ids, kinds)),
        "the same position for all": version(
            lambda self, ids, kinds: self.word(ids) + self.position(torch.zeros_like(ids)) + self.types(ids, kinds)),
        "positions of real tokens only": version(counted_from_the_mask),
        "no normalisation": version(forward=lambda self, ids, kinds: self.dropout(self.total(ids, kinds))),
        "normalisation without weight and bias": version(
            forward=lambda self, ids, kinds: self.dropout(F.layer_norm(self.total(ids, kinds), (self.word.embedding_dim,), eps=1e-12))),
        "eps 1e-5": version(forward=with_eps),
        "sample variance": version(forward=lambda self, ids, kinds: by_hand(self, ids, kinds, unbiased=True)),
        "words normalised, then the sum": version(
            forward=lambda self, ids, kinds: self.dropout(self.norm(self.word(ids)) + self.places(ids) + self.types(ids, kinds))),
        "times the root of D": version(
            lambda self, ids, kinds: self.word(ids) * self.word.embedding_dim**0.5 + self.places(ids) + self.types(ids, kinds)),
        "padding set to 0": version(
            forward=lambda self, ids, kinds: self.dropout(self.norm(self.total(ids, kinds))) * (ids != 0).unsqueeze(-1)),
        "None adds no token type": version(none_adds_nothing),
        "dropout always": version(forward=lambda self, ids, kinds: F.dropout(self.norm(self.total(ids, kinds)), self.dropout.p)),
        "dropout always, and before the normalisation": version(
            forward=lambda self, ids, kinds: self.norm(F.dropout(self.total(ids, kinds), self.dropout.p))),
        "no dropout": version(forward=lambda self, ids, kinds: self.norm(self.total(ids, kinds))),
        "dropout before the normalisation": version(forward=lambda self, ids, kinds: self.norm(self.dropout(self.total(ids, kinds)))),
        "dropout on the words only": version(
            forward=lambda self, ids, kinds: self.norm(self.dropout(self.word(ids)) + self.places(ids) + self.types(ids, kinds))),
    },
    "max_pool": {
        "padding takes part": lambda hidden, mask: hidden.amax(1),
        "padding set to 0": lambda hidden, mask: (hidden * mask.unsqueeze(-1)).amax(1),
        "mask turned round": lambda hidden, mask: hidden.masked_fill(keep(mask), torch.finfo(hidden.dtype).min).amax(1),
        "largest absolute value": largest_absolute,
        "mean": lambda hidden, mask: embeddings.mean_pool(hidden, mask),
        "smallest": lambda hidden, mask: hidden.masked_fill(~keep(mask), torch.finfo(hidden.dtype).max).amin(1),
        "over D": lambda hidden, mask: hidden.masked_fill(~keep(mask), -9.0).amax(2),
        "over the batch": lambda hidden, mask: hidden.masked_fill(~keep(mask), -9.0).amax(0),
        "values and places": lambda hidden, mask: hidden.masked_fill(~keep(mask), -1e30).max(dim=1),
        "a stand-in of -1e4": lambda hidden, mask: max_pool(hidden, mask, -1e4),
        "an empty row is -inf": lambda hidden, mask: max_pool(hidden, mask, float("-inf"), empty=False),
        "a stand-in of -1e9": lambda hidden, mask: max_pool(hidden, mask, -1e9),
    },
    "masked_mean": {
        "divided by T": lambda hidden, mask: (hidden * weights(hidden, mask)).mean(1),
        "no mask": lambda hidden, mask: hidden.mean(1),
        "mask turned round": lambda hidden, mask: mean_row_by_row(hidden, 1 - mask),
        "not divided": total,
        "divided by the batch's tokens": lambda hidden, mask: total(hidden, mask) / mask.sum(),
        "padding summed": lambda hidden, mask: hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1),
        "[CLS]": lambda hidden, mask: hidden[:, 0],
        "the first n": lambda hidden, mask: torch.stack([row[:n].mean(0) for row, n in zip(hidden, mask.sum(1).tolist())]),
        "lengths along D": lambda hidden, mask: total(hidden, mask) / mask.sum(1),
        "over D": lambda hidden, mask: (hidden * weights(hidden, mask)).mean(2),
        "over the batch": lambda hidden, mask: (hidden * weights(hidden, mask)).mean(0),
        "0 divided by 0": lambda hidden, mask: total(hidden, mask) / mask.sum(1, keepdim=True),
    },
}

RIGHT = {
    "split_word": {
        "the package's": tokens.split_word,
        "with switches, none on": switched(),
        "by recursion": by_recursion,
        "by growing prefixes": by_prefixes,
        "by the tokenizers library": by_the_library,
    },
    "bert_embeddings": {
        "the package's": embeddings.BertEmbeddings,
        "one-hot vectors times matrices": version(forward=one_hot),
        "token by token": version(forward=token_by_token),
        "normalisation by hand": version(forward=by_hand),
    },
    "max_pool": {
        "masked_fill": max_pool,
        "row by row": max_row_by_row,
        "by sorting": max_by_sorting,
        "a running maximum": max_running,
    },
    "masked_mean": {
        "the package's": embeddings.mean_pool,
        "row by row": mean_row_by_row,
        "einsum": mean_by_einsum,
        "nanmean": mean_by_nan,
    },
}

UNLISTED = {
    "split_word": lambda word, vocabulary, unknown="[UNK]", longest=100: list(word),
    "bert_embeddings": version(lambda self, ids, kinds: self.word(ids) - self.places(ids) + self.types(ids, kinds)),
    "max_pool": max_in_place,
    "masked_mean": lambda hidden, mask: embeddings.mean_pool(hidden, mask) + 1,
}
