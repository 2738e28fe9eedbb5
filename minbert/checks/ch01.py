"""Checks of chapter 1: tokens and embeddings."""

import math

import torch
from torch.nn.functional import embedding, embedding_bag, layer_norm

from minbert.checks.engine import Check, CheckFailed, not_answered, random, randomise

__all__ = ["split_word", "bert_embeddings", "max_pool", "masked_mean", "untrained_rows"]


# -- 1.1 split_word -------------------------------------------------------------------------------------------------

# "v" + "##egan" and "vega" + "##n" both spell "vegan"; "unrun" holds "un" twice; "rev" leads into a dead end;
# no piece has a "z".
PIECES = {
    "un", "watch", "##watch", "##able", "u", "r", "##r", "##run", "v", "vega", "##egan", "##n",
    "##w", "##a", "##t", "##c", "##h", "##b", "##l", "##e", "##u", "a", "re", "rev", "##view",
}  # fmt: skip


def split_word(answer):
    """Exercise: `answer(word, vocabulary, unknown="[UNK]", longest=100)` returns a list of pieces."""
    check = Check("split_word", see='Chapter 1, "The longest piece first"')

    def expect(word, want, mistakes, **options):
        got = pieces_of(check, answer, word, PIECES, **options)
        check.equal(got, want, f"split_word({short(word)!r}, …)", {text: lambda w=wrong: w for text, wrong in mistakes.items()})

    # By hand, one trap each.
    expect("un", ["un"], {
        "The search begins with the shortest piece. The longest must win.": ["u", "##n"],
    })
    expect("unwatchable", ["un", "##watch", "##able"], {
        'Inside a word the pieces are looked up without "##".': ["[UNK]"],
        'The pieces are looked up with "##", but returned without it.': ["un", "watch", "able"],
        "A word that is not in the vocabulary as a whole falls apart into letters. Longer pieces must be tried first.":
            ["u", "##n", "##w", "##a", "##t", "##c", "##h", "##a", "##b", "##l", "##e"],
        'Every piece gets a "##", the first one too.': ["##u", "##n", "##watch", "##able"],
    })
    expect("vegan", ["vega", "##n"], {
        "The word is cut from its end. The longest piece must be looked for at the start.": ["v", "##egan"],
        "A piece of one character is never tried.": ["[UNK]"],
    })
    expect("unrun", ["un", "##run"], {
        "All places where a piece occurs are removed from the word (`replace`), not only the first.": ["un", "##r"],
    })
    expect("unz", ["[UNK]"], {
        "What was found before the unknown part is kept. One unknown part makes the whole word unknown.": ["un", "[UNK]"],
        "A character that fits no piece is skipped. It makes the whole word unknown.": ["un"],
        "The pieces found so far are returned when nothing fits, without the unknown part. The whole word is unknown.":
            ["un", "##z"],
    })
    expect("review", ["[UNK]"], {
        "After a dead end a shorter piece is tried. The rule never goes back: it takes the longest piece and lives with it.":
            ["re", "##view"],
    })
    expect("uz", ["<unk>"], {'"[UNK]" is written into the code; the argument `unknown` says what it is.': ["[UNK]"]}, unknown="<unk>")
    letters = ["a"] + ["##a"] * 99
    expect("a" * 100, letters, {"A word of exactly `longest` characters is still cut; only longer ones are unknown.": ["[UNK]"]})
    expect("a" * 101, ["[UNK]"], {"The argument `longest` is not used.": letters + ["##a"]})
    expect("unwatchable", ["<unk>"], {
        "A limit of 100 is written into the code; the argument `longest` says what it is.": ["un", "##watch", "##able"],
        'A word that is too long becomes "[UNK]". It becomes what the argument `unknown` says.': ["[UNK]"],
    }, longest=5, unknown="<unk>")

    # The tokenizers library, with a vocabulary learned from the built-in sentences, on words it has not seen.
    from tokenizers.models import WordPiece

    from minbert.run.data import load_task
    from minbert.tokens import train_wordpiece

    vocabulary = train_wordpiece(load_task("sst", "train").texts, vocab_size=600).get_vocab()
    library = WordPiece(vocabulary, unk_token="[UNK]")
    words = {word.lower() for text in load_task("sst", "dev").texts for word in text.split()}
    for word in sorted(words):  # "end." and "it's" too: the rule knows nothing of punctuation
        want = [token.value for token in library.tokenize(word)]
        check.equal(pieces_of(check, answer, word, vocabulary), want, f"split_word({word!r}, …) with a learned vocabulary")
    check.passed(f"{len(words)} words agree with the tokenizers library.")


def pieces_of(check, answer, word, vocabulary, **options):
    """Run the reader's function; the result must be a list of strings, the vocabulary as before."""
    given = vocabulary.copy()
    got = check.run(answer, word, given, **options)
    check.true(isinstance(got, list) and all(isinstance(piece, str) for piece in got),
               "the result should be a list of strings.", expected="a list of strings", got=repr(got))  # fmt: skip
    check.true(given == vocabulary, "the vocabulary was changed; the caller still needs it as it was.")
    return got


def short(word):
    return word if len(word) <= 20 else f"{word[:3]}…{len(word)} characters"


# -- 1.2 bert_embeddings --------------------------------------------------------------------------------------------


def bert_embeddings(answer):
    """Exercise: `answer` is the class `BertEmbeddings`."""
    check = Check("bert_embeddings", see='Chapter 1, "Word, position, token type"')
    model = check.run(answer, 11, 6, max_positions=9, type_vocab_size=3, dropout=0.0)
    for name in ("word", "position", "token_type", "norm", "dropout"):
        check.true(isinstance(getattr(model, name, None), torch.nn.Module), f"the part `{name}` is gone from __init__.")
    randomise(model)
    ids = torch.tensor([[4, 9, 2, 10, 7], [4, 1, 7, 0, 0]])  # the second row is padded
    types = torch.tensor([[0, 1, 1, 2, 0], [0, 0, 2, 0, 0]])
    got = check.run(model, ids, types)
    check.tensor(got, "the output", (2, 5, 6), torch.float64, shape_mistakes={
        (2, 5, 18): "The three vectors are joined end to end. BERT adds them.",
    })
    check.true(got.requires_grad, "no gradient flows back to the tables, so they would never be trained.",
               mistake="The look-up goes through `.data`, `.detach()` or `torch.no_grad()`.")  # fmt: skip

    # By hand, with D = 4. First token: (1, 0, 0, 0) + (0, 1, 1, −1) + (0, 0, −1, 1) = (1, 1, 0, 0), with mean 1/2 and
    # variance 1/4: (1, 1, −1, −1). Second: (1, 0, 0, −7) + (0, 4, 0, 0) + (0, 3, −1, 0) = (1, 7, −1, −7), with mean 0
    # and variance 25: (0.2, 1.4, −0.2, −1.4). Third, a padding: (0, 0, 1, 0) + (0, 0, 1, 0) + (0, 0, −1, 1) =
    # (0, 0, 1, 1), which gives (−1, −1, 1, 1).
    tiny = check.run(answer, 3, 4, max_positions=4, type_vocab_size=2, dropout=0.0).double()
    with torch.no_grad():
        tiny.word.weight.copy_(torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, -7]]))
        tiny.position.weight.copy_(torch.tensor([[0, 1, 1, -1], [0, 4, 0, 0], [0, 0, 1, 0], [0, 9, 7, 0]]))
        tiny.token_type.weight.copy_(torch.tensor([[0, 0, -1, 1], [0, 3, -1, 0]]))
    three = torch.tensor([[1, 2, 0]]), torch.tensor([[0, 1, 0]])
    want = torch.tensor([[[1, 1, -1, -1], [0.2, 1.4, -0.2, -1.4], [-1, -1, 1, 1]]], dtype=torch.float64)
    check.equal(check.run(tiny, *three), want, "the output of a case worked by hand", wrong_sums(tiny, *three))

    # PyTorch's own functions, every parameter random.
    check.equal(got, embedded(model, ids, types), "the output", wrong_sums(model, ids, types))
    without = check.run(model, ids)
    check.equal(without, embedded(model, ids, torch.zeros_like(ids)), "the output without token_type_ids", {
        "Without token_type_ids no token-type vector is added. None means type 0, and type 0 has a vector too.":
            lambda: normed(model, embedding(ids, model.word.weight) + positions(model, ids)),
    })

    # Dropout with p = 1 leaves nothing, so its place can be seen exactly.
    sure = randomise(check.run(answer, 11, 6, max_positions=9, type_vocab_size=3, dropout=1.0), seed=1)
    right = embedded(sure, ids, types)
    zeros, bias = torch.zeros_like(right), torch.zeros_like(right) + sure.norm.bias
    check.equal(check.run(sure.eval(), ids, types), right, "the output in evaluation mode, with dropout 1", {
        "Dropout is active in evaluation mode too.": lambda: zeros,
        "Dropout is active in evaluation mode too, and comes before the normalisation.": lambda: bias,
    })
    check.equal(check.run(sure.train(), ids, types), zeros, "the output in training mode, with dropout 1", {
        "Dropout is left out.": lambda: right,
        "Dropout comes before the layer normalisation. It is the last step.": lambda: bias,
        "Dropout touches the word vectors only. It is the last step, after the layer normalisation.":
            lambda: normed(sure, positions(sure, ids) + embedding(types, sure.token_type.weight)),
    })
    check.passed("Equal to PyTorch's own look-up and normalisation, padding and token types included.")


def positions(model, ids, start=0):
    places = torch.arange(start, start + ids.shape[1])
    return embedding(places, model.position.weight)


def normed(model, total, eps=1e-12):
    return layer_norm(total, total.shape[-1:], model.norm.weight, model.norm.bias, eps)


def embedded(model, ids, types):
    total = embedding(ids, model.word.weight) + positions(model, ids) + embedding(types, model.token_type.weight)
    return normed(model, total)


def wrong_sums(model, ids, types):
    """What well-known mistakes would give."""
    word, place = embedding(ids, model.word.weight), positions(model, ids)
    kind = embedding(types, model.token_type.weight)
    total = word + place + kind
    real = (ids != 0).long()

    def sample_variance():
        centred = total - total.mean(-1, keepdim=True)
        return centred / (total.std(-1, keepdim=True) + 1e-12) * model.norm.weight + model.norm.bias

    def counted_from_the_mask():
        places = embedding(real.cumsum(1) * real, model.position.weight)
        return normed(model, word + places + kind)

    return {
        "The token types are ignored.": lambda: normed(model, word + place),
        "Every token gets token type 0, whatever token_type_ids says.":
            lambda: normed(model, word + place + model.token_type.weight[0]),
        "The positions are ignored.": lambda: normed(model, word + kind),
        "The positions begin at 1. They begin at 0.":
            lambda: normed(model, word + positions(model, ids, 1) + kind),
        "All tokens get the same position.": lambda: normed(model, word + model.position.weight[0] + kind),
        "The position is counted over real tokens only, as RoBERTa does. BERT counts 0 to T−1, padding included.":
            counted_from_the_mask,
        "The layer normalisation is missing.": lambda: total,
        "The learned weight and bias of the layer normalisation are not used.":
            lambda: layer_norm(total, total.shape[-1:], eps=1e-12),
        "The layer normalisation has PyTorch's eps of 1e-5. BERT's is 1e-12.": lambda: normed(model, total, 1e-5),
        "The layer normalisation divides by the standard deviation of a sample (D − 1). It is D.": sample_variance,
        "The word vectors are normalised before the other two are added. The sum is normalised.":
            lambda: normed(model, word) + place + kind,
        "The word vectors are multiplied by √D, as in the first transformer. BERT does not.":
            lambda: normed(model, word * math.sqrt(word.shape[-1]) + place + kind),
        "The vectors of padding are set to 0. The mask keeps padding out later, not here.":
            lambda: embedded(model, ids, types) * real.unsqueeze(-1),
    }


# -- 1.3 max_pool ---------------------------------------------------------------------------------------------------


def max_pool(answer):
    """Exercise: `answer(hidden, attention_mask)` returns the largest value of each of the D numbers over the real tokens."""
    check = Check("max_pool", see='Chapter 1, "One vector for a sentence"')
    hidden, mask = random(2, 5, 3, std=1.0), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    hidden[1, 4] = 3.0  # padding that would win
    got = check.run(answer, hidden, mask)
    if isinstance(got, tuple):
        check.fail("the result should be a tensor.", "torch.Tensor", type(got).__name__,
                   "`max(dim=…)` returns the values and their places. Only the values are wanted (or take `amax`).")  # fmt: skip
    check.tensor(got, "the result", (2, 3), torch.float64, shape_mistakes={
        (2, 5): "The maximum is taken over the D numbers of each token. It is taken over the tokens.",
        (5, 3): "The maximum is taken over the batch. It is taken over the tokens.",
    })

    # By hand: (−1, 2, 7), (−3, −4, 1), then padding (1, 5, 3). The largest are (−1, 2, 7).
    by_hand = torch.tensor([[[-1.0, 2.0, 7.0], [-3.0, -4.0, 1.0], [1.0, 5.0, 3.0]]]), torch.tensor([[1, 1, 0]])
    check.equal(check.run(answer, *by_hand), torch.tensor([[-1.0, 2.0, 7.0]]), "the result of a case worked by hand",
                wrong_maxima(*by_hand))  # fmt: skip
    got = check.run(answer, by_hand[0] - 1e6, by_hand[1])
    check.equal(got, torch.tensor([[-1000001.0, -999998.0, -999993.0]]), "the result when every value is near minus a million", {
        "The number that stands in for padding is not low enough: every value is below it here, and it wins.":
            lambda: torch.full_like(got, got.flatten()[0].item()),
    })

    # PyTorch's embedding_bag takes the same maximum of rows of a table, and leaves a padding row out.
    table, ids = random(9, 6, seed=2), torch.tensor([[3, 1, 8, 2], [5, 7, 0, 0], [0, 6, 0, 4], [2, 0, 0, 0]])
    hidden, mask = table[ids], (ids != 0).long()
    want = embedding_bag(ids, table, mode="max", padding_idx=0)
    check.equal(check.run(answer, hidden, mask), want, "the result", wrong_maxima(hidden, mask))

    # A row with no token at all, as embedding_bag has it: zeros.
    empty = random(2, 3, 4, seed=3), torch.tensor([[1, 1, 0], [0, 0, 0]])
    got = check.run(answer, *empty)
    check.equal(got[1], torch.zeros(4, dtype=torch.float64), "the result of a row with no token", {
        "A row with no token gives the stand-in for padding. It should give zeros.":
            lambda: got[1] if got[1].isinf().any() or (got[1] < -1e3).all() else torch.zeros(4),
    })
    half = hidden.half()
    got = check.run(answer, half, mask, mistakes={
        RuntimeError: "A stand-in such as -1e9 does not fit into float16, which ends at −65504. torch.finfo(dtype).min always fits.",
    })
    check.tensor(got, "the result of a float16 input", (4, 6), torch.float16)
    check.equal(got, want.half(), "the result of a float16 input", tolerance=1e-3)
    check.passed("Equal to PyTorch's embedding_bag in its mode max.")


def wrong_maxima(hidden, mask):
    """What well-known mistakes would give."""
    keep = mask.bool().unsqueeze(-1)
    lowest = torch.finfo(hidden.dtype).min
    real = hidden.masked_fill(~keep, 0.0)

    def largest_absolute():
        return real.gather(1, real.abs().argmax(1, keepdim=True)).squeeze(1)

    return {
        "The padding takes part.": lambda: hidden.amax(1),
        "The padding is set to 0, and 0 wins over every negative number.": lambda: real.amax(1),
        "The mask is turned round: the padding is kept and the tokens are left out.":
            lambda: hidden.masked_fill(keep, lowest).amax(1),
        "The largest absolute value is taken, not the largest value.": largest_absolute,
        "This is the mean of the tokens, not their maximum.": lambda: real.sum(1) / keep.sum(1).clamp(min=1),
        "This is the smallest value.": lambda: hidden.masked_fill(~keep, -lowest).amin(1),
    }


# -- 1.4 masked_mean ------------------------------------------------------------------------------------------------


def masked_mean(answer):
    """Exercise: `answer(hidden, attention_mask)` returns the mean of the real tokens' vectors."""
    tolerance = 1e-6  # a share of tokens may well be computed in float32, as `mask / mask.sum()` is
    check = Check("masked_mean", see='Chapter 1, "One vector for a sentence"')
    # B = D on purpose: then lengths that are spread along the wrong axis give no error, only wrong numbers.
    hidden, mask = random(3, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    got = check.run(answer, hidden, mask)
    check.tensor(got, "the result", (3, 3), torch.float64, shape_mistakes={
        (3, 4): "The mean is taken over the D numbers of each token. It is taken over the tokens.",
        (4, 3): "The mean is taken over the batch. It is taken over the tokens.",
    })

    # By hand: (1, 4), (5, 8), then padding (9, 9). The mean of the two tokens is (3, 6).
    by_hand = torch.tensor([[[1.0, 4.0], [5.0, 8.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])
    check.equal(check.run(answer, *by_hand), torch.tensor([[3.0, 6.0]]), "the result of a case worked by hand",
                wrong_means(*by_hand), tolerance)  # fmt: skip
    check.equal(got, torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0), hidden[2, :3].mean(0)]), "the result",
                wrong_means(hidden, mask), tolerance)  # fmt: skip

    # PyTorch's embedding_bag takes the same mean of rows of a table, and leaves a padding row out wherever it stands.
    table, ids = random(9, 6, seed=2), torch.tensor([[3, 1, 8, 2], [5, 7, 0, 0], [0, 6, 0, 4], [2, 0, 0, 0]])
    hidden, mask = table[ids], (ids != 0).long()
    check.equal(check.run(answer, hidden, mask), embedding_bag(ids, table, mode="mean", padding_idx=0), "the result",
                wrong_means(hidden, mask), tolerance)  # fmt: skip

    empty = random(2, 3, 4, seed=3), torch.tensor([[1, 1, 0], [0, 0, 0]])
    got = check.run(answer, *empty)
    check.equal(got[1], torch.zeros(4, dtype=torch.float64), "the result of a row with no token", {
        "A row with no token is divided by 0. A small lower limit for the divisor prevents it.":
            lambda: got[1] if got[1].isnan().any() else torch.zeros(4),
    })
    check.passed("Equal to PyTorch's embedding_bag in its mode mean.")


def wrong_means(hidden, mask):
    """What well-known mistakes would give."""
    keep = mask.unsqueeze(-1).to(hidden.dtype)
    total, lengths = (hidden * keep).sum(1), mask.sum(1)
    wrong = {
        "The sum leaves padding out, but it is divided by T, which counts padding.": lambda: total / hidden.shape[1],
        "The mask is not used: padding is averaged too.": lambda: hidden.mean(1),
        "The mask is turned round: this is the mean of the padding.":
            lambda: (hidden * (1 - keep)).sum(1) / (1 - keep).sum(1).clamp(min=1e-9),
        "The sum is not divided by the number of tokens.": lambda: total,
        "The sum is divided by the number of tokens in the whole batch.": lambda: total / mask.sum(),
        "Padding is added up too, and only the divisor leaves it out.":
            lambda: hidden.sum(1) / lengths.clamp(min=1e-9).unsqueeze(-1),
        "This is the vector of the first token, [CLS]. All real tokens count.": lambda: hidden[:, 0],
        "The first tokens of each row are averaged, as many as the mask counts. Padding can stand elsewhere: use the mask.":
            lambda: torch.stack([row[:n].mean(0) for row, n in zip(hidden, lengths.tolist())]),
    }
    if len(lengths) == hidden.shape[-1]:
        wrong["The lengths (B,) are spread along the axis D. They need a second axis: (B, 1)."] = lambda: total / lengths
    return wrong


# -- 1.5 untrained_rows ---------------------------------------------------------------------------------------------


def untrained_rows(answer):
    """Exercise: the share of the dev sentences' pieces, in per cent, that no training sentence contains."""
    check = Check("untrained_rows", see='Chapter 1, "A bag of embeddings"')
    if answer is None:
        raise CheckFailed(not_answered("untrained_rows"))
    from minbert.pretrained import WeightsError, find_weights
    from minbert.run.data import load_task
    from minbert.tokens import encode, load_tokenizer

    try:
        tokenizer = load_tokenizer(find_weights("minilm"))
    except WeightsError as error:
        check.fail(f"it needs the vocabulary of the real weights, and there is a gap: {error}.")
    rows = {split: encode(tokenizer, load_task("sst", split).texts).ids for split in ("train", "dev")}
    known = {piece for row in rows["train"] for piece in row}
    pieces = [piece for row in rows["dev"] for piece in row[1:-1]]  # without [CLS] and [SEP]

    def share(items):
        return 100 * sum(item not in known for item in items) / len(items)

    want = share(pieces)
    check.number(answer, want, math.inf, "The share")  # a number at all?
    mistakes = {
        "This is a fraction of 1. The share is asked for in per cent.": want / 100,
        "This is the share of *different* pieces. Count every occurrence.": share(sorted(set(pieces))),
        "[CLS] and [SEP] are counted. They are in every sentence; leave them out.": share([p for row in rows["dev"] for p in row]),
        "This is the share of pieces that were seen. The others are asked for.": 100 - want,
    }
    likely = [text for text, wrong in mistakes.items() if abs(float(answer) - wrong) < 0.15]
    check.true(abs(float(answer) - want) <= 0.15, "The share is not right (to 0.15 percentage points).",
               mistake=likely[0] if likely else None, got=answer, expected="the share of the dev sentences' pieces, in per cent")  # fmt: skip
    check.passed()
