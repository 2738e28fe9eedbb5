"""Word pieces: the greedy rule, the learned vocabulary, cutting and padding."""

import subprocess
import sys

import pytest
import torch

from minbert.pretrained import find_weights
from minbert.tokens import MASK, PAD, encode, load_tokenizer, pad, split_word, train_wordpiece

TEXTS = ["The unwatchable, the watchable and the watched.", "A café, an actor's café!", "watch it; watch them watching"]


@pytest.fixture(scope="module")
def bert_tokenizer():
    return load_tokenizer(find_weights("minilm"))


def test_the_longest_piece_first():
    vocabulary = {"un", "##watch", "##able", "##w", "watch", "u", "##n"}
    assert split_word("unwatchable", vocabulary) == ["un", "##watch", "##able"]
    assert split_word("watch", vocabulary) == ["watch"]
    assert split_word("un", vocabulary) == ["un"]


def test_one_part_without_a_piece_makes_the_whole_word_unknown():
    assert split_word("unzip", {"un", "##z", "##i"}) == ["[UNK]"]
    assert split_word("a" * 101, {"a", "##a"}) == ["[UNK]"]
    assert split_word("", {"a"}) == []


def test_the_rule_equals_the_tokenizers_library(bert_tokenizer):
    vocabulary = bert_tokenizer.get_vocab()
    words = "unwatchable tarantino zzyzx 1998 acteur naïve 🙂 antidisestablishmentarianism the w3schools"
    for word in bert_tokenizer.normalizer.normalize_str(words).split():
        assert split_word(word, vocabulary) == bert_tokenizer.encode(word, add_special_tokens=False).tokens, word


def test_the_tokenizer_equals_hugging_face(bert_tokenizer):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(find_weights("minilm"))
    texts = [*TEXTS, "naïve  émigré\t1,000.50 😀 [MASK] 電影 don't", " ", "x" * 120]
    assert encode(bert_tokenizer, texts).ids == theirs(texts)["input_ids"]
    pair = bert_tokenizer.encode("one", "two")
    assert pair.type_ids == theirs("one", "two", return_token_type_ids=True)["token_type_ids"]


def test_vocab_txt_alone_gives_the_same_ids(tmp_path, bert_tokenizer):
    (tmp_path / "vocab.txt").write_bytes((find_weights("minilm") / "vocab.txt").read_bytes())
    texts = [*TEXTS, "naïve 電影 [MASK] 1,000"]
    assert encode(load_tokenizer(tmp_path), texts).ids == encode(bert_tokenizer, texts).ids


def test_a_learned_vocabulary_is_always_the_same_and_knows_its_text():
    a, b = (train_wordpiece(TEXTS * 3, vocab_size=80).get_vocab() for _ in range(2))
    assert a == b
    assert a[PAD] == 0 and a[MASK] == 4
    assert len(a) <= 80
    tokenizer = train_wordpiece(TEXTS, vocab_size=200, min_frequency=1)
    assert "[UNK]" not in tokenizer.encode(" ".join(TEXTS)).tokens
    assert "cafe" in tokenizer.get_vocab()  # lower-cased, accents stripped


def test_a_learned_vocabulary_is_the_same_in_another_process():
    code = f"from minbert.tokens import train_wordpiece as t; print(t({TEXTS!r} * 3, 80).get_vocab(with_added_tokens=True))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True,
                          env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1", "PATH": "/usr/bin:/bin"})
    assert eval(done.stdout) == train_wordpiece(TEXTS * 3, 80).get_vocab(with_added_tokens=True)


def test_vocab_txt_keeps_its_numbers_and_its_capitals(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "ott", "e"]      # U+2028 ends a line for str.splitlines
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).get_vocab() == {piece: number for number, piece in enumerate(pieces)}
    assert load_tokenizer(tmp_path).encode("Ott é").tokens == ["[CLS]", "ott", "e", "[SEP]"]
    (tmp_path / "vocab.txt").write_text("\n".join([*pieces, "Ott", "é"]) + "\n", encoding="utf-8")
    assert load_tokenizer(tmp_path).encode("Ott ott é").tokens == ["[CLS]", "Ott", "ott", "é", "[SEP]"]


def test_long_text_is_cut_counted_and_still_ends_with_sep(bert_tokenizer):
    encoded = encode(bert_tokenizer, ["film " * 10_000, "short"], max_length=16)
    assert [len(row) for row in encoded.ids] == [16, 3]
    assert encoded.ids[0][0] == 101 and encoded.ids[0][-1] == 102
    assert encoded.truncated == 1
    with pytest.raises(ValueError, match="room for"):
        encode(bert_tokenizer, ["a"], max_length=1)


def test_one_string_is_not_taken_for_a_list_of_letters(bert_tokenizer):
    for call in (lambda: encode(bert_tokenizer, "film"), lambda: train_wordpiece("film")):
        with pytest.raises(ValueError, match="a list of strings, not one string"):
            call()
    assert encode(bert_tokenizer, (text for text in ["film"])).ids == encode(bert_tokenizer, ["film"]).ids


def test_pad_makes_a_rectangle_and_its_mask():
    ids, mask = pad([[101, 7, 102], [101, 102]], pad_id=9)
    assert torch.equal(ids, torch.tensor([[101, 7, 102], [101, 102, 9]]))
    assert torch.equal(mask, torch.tensor([[1, 1, 1], [1, 1, 0]]))
    with pytest.raises(ValueError, match="at least one"):
        pad([])


def test_a_directory_without_a_vocabulary_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer.json and no vocab.txt"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"no \[CLS\]|not a BERT vocabulary"):
        load_tokenizer(tmp_path)
