"""Text to numbers: word pieces and their ids (chapter 1).

BERT reads *word pieces*: whole words where they are frequent, parts of words where they are not.
`split_word` is the rule that cuts one word; the rest wraps the `tokenizers` library, which does the
same much faster and also cleans and splits the text before.

Source: Wu et al. 2016, section 4.1 (the word-piece model); Devlin et al. 2019, section 3 ([CLS] and [SEP]).
"""

from dataclasses import dataclass
from pathlib import Path

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = [PAD, UNKNOWN, CLS, SEP, MASK]


def split_word(word, vocabulary, unknown=UNKNOWN, longest=100):
    """Cut one word into the pieces of a vocabulary: the longest matching piece first, from left to right.

    Args:
        word: a string with no white space, already lower-cased if the vocabulary is.
        vocabulary: a set (or dict) of pieces; a piece that continues a word begins with "##".
        unknown: what a word becomes when some part of it matches no piece.
        longest: words of more characters than this become `unknown` at once.

    Returns:
        a list of pieces, for example `["un", "##watch", "##able"]`.

    Source: Wu et al. 2016; the greedy form is that of BERT's released tokenizer (Devlin et al. 2019).
    """
    if len(word) > longest:
        return [unknown]
    pieces = []
    start = 0
    while start < len(word):
        prefix = "##" if start > 0 else ""
        end = len(word)
        while end > start and prefix + word[start:end] not in vocabulary:
            end -= 1
        if end == start:  # not even one character matches: the whole word is unknown, not only this part
            return [unknown]
        pieces.append(prefix + word[start:end])
        start = end
    return pieces


def train_wordpiece(texts, vocab_size=2000, min_frequency=2, lowercase=True):
    """Learn a word-piece vocabulary from texts.

    Args:
        texts: an iterable of strings.
        vocab_size: the number of pieces wanted, the five special ones included.
        min_frequency: pairs of pieces seen less often than this are never merged.
        lowercase: lower-case the text and strip accents, as bert-base-uncased does.

    Returns:
        a `tokenizers.Tokenizer` that puts [CLS] before and [SEP] after each text. The same texts give the same
        pieces with the same ids, in every process.

    Raises:
        ValueError: one string instead of several: its letters would be the texts.
    """
    from tokenizers import trainers

    texts = _several(texts)
    tokenizer = _wordpiece({}, lowercase)
    # The library numbers the letters inside words in an order that changes from process to process, and breaks ties
    # between equally frequent pairs by these numbers. Pieces that it is told of before are numbered as they come.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=min_frequency, show_progress=False,
        special_tokens=SPECIAL + _letters(tokenizer, texts),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    # A second tokenizer with the same vocabulary, in which the letters are ordinary pieces again.
    return with_special_tokens(_wordpiece(tokenizer.get_vocab(), lowercase))


def _several(texts):
    if isinstance(texts, str):
        raise ValueError("texts must be a list of strings, not one string: put it into [ ]")
    return list(texts)


def _wordpiece(vocabulary, lowercase=True):
    """A tokenizer that cleans and splits text as BERT's does and cuts words by `vocabulary` {piece: id}."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in SPECIAL if token in vocabulary])
    return tokenizer


def _letters(tokenizer, texts):
    """Every letter that begins or is inside a word of the texts, sorted; those inside also with "##"."""
    letters = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            letters.update(word, ("##" + letter for letter in word[1:]))
    return sorted(letters, key=lambda piece: (len(piece), piece))


def with_special_tokens(tokenizer):
    """Make `tokenizer` write [CLS] a [SEP], and [CLS] a [SEP] b [SEP] for a pair, with no padding or cutting. Returns it.

    Raises:
        ValueError: its vocabulary has no [CLS] or no [SEP].
    """
    from tokenizers.processors import TemplateProcessing

    special = [(token, tokenizer.token_to_id(token)) for token in (CLS, SEP)]
    missing = [token for token, number in special if number is None]
    if missing:
        raise ValueError(f"the vocabulary has no {' and no '.join(missing)}: it is not a BERT vocabulary")
    tokenizer.post_processor = TemplateProcessing(
        single=f"{CLS}:0 $A:0 {SEP}:0", pair=f"{CLS}:0 $A:0 {SEP}:0 $B:1 {SEP}:1", special_tokens=special
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def load_tokenizer(directory):
    """Load the tokenizer that belongs to a model from `tokenizer.json`, or else from `vocab.txt`.

    `vocab.txt` holds one piece a line and nothing about the text before: it is lower-cased, with its accents stripped, unless
    some piece has a capital letter.

    Args:
        directory: the model's directory.

    Returns:
        a `tokenizers.Tokenizer` that puts [CLS] before and [SEP] after each text, and neither pads nor cuts.

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: the file is damaged, or it is not a BERT vocabulary.
    """
    from tokenizers import Tokenizer

    directory = Path(directory)
    if (directory / "tokenizer.json").is_file():
        path = directory / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{path}: not a readable tokenizer ({error}); get it again") from None
    elif (directory / "vocab.txt").is_file():
        path = directory / "vocab.txt"
        try:
            # Not splitlines(): it also breaks a line at rarer characters, which a piece may have; all later ids would shift.
            pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not a readable vocabulary (not UTF-8); get it again") from None
        cased = any(piece != piece.lower() for piece in pieces if not piece.startswith("["))
        tokenizer = _wordpiece({piece: i for i, piece in enumerate(pieces)}, lowercase=not cased)
    else:
        raise FileNotFoundError(f"{directory}: no tokenizer.json and no vocab.txt; a model's directory needs one of them")
    return with_special_tokens(tokenizer)


@dataclass
class Encoded:
    """Texts as lists of piece ids, and how many of the texts had to be cut."""

    ids: list  # one list of int a text, [CLS] first and [SEP] last, no padding
    truncated: int


def encode(tokenizer, texts, max_length=512):
    """Turn texts into lists of piece ids: [CLS] pieces [SEP], at most `max_length` long.

    Args:
        tokenizer: from `train_wordpiece` or `load_tokenizer`.
        texts: a list of strings.
        max_length: longer texts lose their end; [SEP] stays the last piece.

    Returns:
        `Encoded(ids, truncated)`, where `truncated` counts the texts that were cut.

    Raises:
        ValueError: a `max_length` with no room for [CLS] and [SEP]; or one string instead of a list, whose letters would be
            the texts.
    """
    if max_length < 2:
        raise ValueError(f"max_length must leave room for [CLS] and [SEP], got {max_length}")
    ids, truncated = [], 0
    for encoding in tokenizer.encode_batch(_several(texts)):
        row = encoding.ids
        if len(row) > max_length:
            row = row[: max_length - 1] + row[-1:]
            truncated += 1
        ids.append(row)
    return Encoded(ids, truncated)


def pad(sequences, pad_id=0):
    """Put lists of different lengths into one rectangle.

    Args:
        sequences: B lists of ids.
        pad_id: what fills the ends of the shorter ones.

    Returns:
        `input_ids` (B, T) and `attention_mask` (B, T), both int64; T is the longest length.
        The mask is 1 where there is a piece and 0 where there is padding.

    Raises:
        ValueError: no sequence.
    """
    import torch

    if not sequences:
        raise ValueError("pad needs at least one sequence")
    length = max(len(sequence) for sequence in sequences)
    input_ids = torch.full((len(sequences), length), pad_id, dtype=torch.int64)  # (B, T)
    attention_mask = torch.zeros((len(sequences), length), dtype=torch.int64)  # (B, T)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
        attention_mask[row, : len(sequence)] = 1
    return input_ids, attention_mask
