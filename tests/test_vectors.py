"""`minbert embed` and `minbert similar`: the vectors are the model's, files come back whole, errors are one line."""

import io
import json
import math
import os

import numpy as np
import pytest
import torch

from minbert.bert import BertConfig, BertModel
from minbert.embeddings import mean_pool
from minbert.pretrained import load_pretrained, save_pretrained
from minbert.run import build, checkpoint, cli, loop, recipes, vectors
from minbert.run.data import load_task
from minbert.tokens import encode, pad, train_wordpiece

SENTENCES = ["A film about the sea and a boat.", "Dull from the first minute to the last, and loud.", "A boat at sea.",
             "The music is fine.", "Nobody laughs."]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A directory with a tiny BERT of random weights and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = train_wordpiece(load_task("sst", "train", "builtin").texts, vocab_size=300)
    model = BertModel(BertConfig(tokenizer.get_vocab_size(), 16, 2, 2, 32, max_positions=40))
    for parameter in model.parameters():                # fresh ones hide mistakes: biases are 0, scales 1
        torch.nn.init.normal_(parameter, std=0.3)
    directory = tmp_path_factory.mktemp("weights") / "tiny"
    save_pretrained(model, tokenizer, directory)
    return directory


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """An empty directory with a file of sentences."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("\n".join(SENTENCES), encoding="utf-8")
    return tmp_path


def minbert(*arguments):
    return cli.main([str(argument) for argument in arguments])


def made(tiny, out="v.safetensors", *more):
    assert minbert("embed", "book.txt", "--out", out, "--model", tiny, "--max-length", 40, "--quiet", *more) == 0
    return out


def one_by_one(directory, sentences, pooling):
    """Each sentence alone through the model, with no padding: what the batches must come to."""
    model, tokenizer, _ = load_pretrained(str(directory))
    found = []
    for ids in encode(tokenizer, sentences, 40).ids:
        hidden, pooled = model(*pad([ids]))
        found.append(pooled[0] if pooling == "pooler" else hidden[0].mean(dim=0))
    return torch.stack(found).detach()


@pytest.mark.parametrize("pooling", vectors.POOLINGS)
@pytest.mark.parametrize("ending", [".npy", ".safetensors"])
def test_a_vector_is_the_models_for_that_sentence_whatever_is_padded_beside_it(tiny, pooling, ending):
    want = one_by_one(tiny, SENTENCES, pooling)
    made(tiny, "v" + ending, "--pooling", pooling, "--no-normalise")
    stored = vectors.read_vectors("v" + ending)
    assert stored.rows.dtype == np.float32 and np.abs(stored.rows - want.numpy()).max() < 1e-6
    assert stored.sentences == (SENTENCES if ending == ".safetensors" else None)
    made(tiny, "n" + ending, "--pooling", pooling)
    directions = torch.nn.functional.normalize(want, dim=-1)
    assert np.abs(vectors.read_vectors("n" + ending).rows - directions.numpy()).max() < 1e-6


def test_the_mean_leaves_padding_out_by_hand():
    hidden = torch.tensor([[[1.0, 3.0], [3.0, 5.0], [100.0, 100.0]]])
    assert mean_pool(hidden, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 4.0]]


def test_a_npy_opens_in_plain_numpy_and_a_safetensors_says_how_it_was_made(tiny):
    made(tiny, "v.npy")
    assert np.load("v.npy").shape == (5, 16)
    about = vectors.read_vectors(made(tiny)).made
    assert (about["pooling"], about["normalised"], about["max_length"]) == ("mean", True, 40) and len(about["sha256"]) == 64


def test_nearest_by_hand():
    rows = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [0.0, 0.0], [0.0, 5.0]])
    [first, second, third, *_], [best, *_] = vectors.nearest_sentences(rows, np.array([[0.0, 4.0], [7.0, 0.0]]), 5)
    assert [first[0], second[0], third[0]] == [1, 4, 2]                    # equal cosines stay in their order
    assert first[1] == 1.0 and third[1] == pytest.approx(math.sqrt(0.5)) and best == (0, 1.0)
    zeros = vectors.nearest_sentences(rows, np.zeros((1, 2)), 5)[0]
    assert [cosine for _, cosine in zeros] == [0.0] * 5                    # and no NaN


def test_similar_finds_the_sentence_itself_first_and_scores_as_pytorch_does(tiny, capsys):
    made(tiny)
    capsys.readouterr()
    assert minbert("similar", "v.safetensors", SENTENCES[2], "--json", "--top", 5) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    want = one_by_one(tiny, SENTENCES, "mean")
    cosines = torch.nn.functional.cosine_similarity(want, want[2:3])
    assert [entry["rank"] for entry in found] == [1, 2, 3, 4, 5] and found[0]["sentence"] == SENTENCES[2]
    assert [entry["row"] for entry in found] == cosines.argsort(descending=True).tolist()
    assert [entry["cosine"] for entry in found] == pytest.approx(cosines.sort(descending=True).values.tolist(), abs=2e-4)


def test_similar_for_readers_and_several_queries_and_a_npy_with_its_sentences(tiny, capsys):
    made(tiny, "v.npy", "--pooling", "pooler")
    capsys.readouterr()
    with open("q.txt", "w", encoding="utf-8") as file:
        file.write(f"{SENTENCES[4]}\n\n{SENTENCES[0]}\n")
    assert minbert("similar", "v.npy", "--sentences", "book.txt", "--file", "q.txt", "--model", tiny, "--pooling", "pooler",
                   "--top", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0] == SENTENCES[4] and lines[1] == f"  1   1.00  {SENTENCES[4]}"
    assert lines[3] == SENTENCES[0] and lines[4] == f"  1   1.00  {SENTENCES[0]}"


def test_cut_sentences_are_counted_and_empty_lines_left_out(tiny, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n" + "sea " * 60 + "\n \nThe end.\n"))
    assert minbert("embed", "-", "--out", "v.safetensors", "--model", tiny, "--max-length", 40) == 0
    out, error = capsys.readouterr()
    assert "1 of 2 sentences was longer than 40 tokens and was cut" in error and "v.safetensors: 2 sentences" in out


def test_a_run_s_directory_gives_its_fine_tuned_encoder(capsys):
    settings = ["--model", "scratch", "--vocab-size", 150, "--layers", 1, "--hidden-size", 8, "--heads", 2,
                "--intermediate-size", 8, "--epochs", 1, "--steps-per-epoch", 2, "--lr", "1e-2", "--device", "cpu", "--quiet"]
    assert minbert("train", *settings, "--out", "run") == 0
    assert minbert("embed", "book.txt", "--out", "v.safetensors", "--model", "run", "--pooling", "pooler", "--no-normalise",
                   "--quiet") == 0
    from minbert.run.build import load_classifier

    model, tokenizer, _ = load_classifier("run")
    _, pooled = model.encoder(*pad(encode(tokenizer, SENTENCES, 128).ids))
    assert np.abs(vectors.read_vectors("v.safetensors").rows - pooled.detach().numpy()).max() < 1e-6
    capsys.readouterr()
    assert minbert("similar", "v.safetensors", SENTENCES[3], "--top", 1) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("  1   1.00  ")


def test_a_run_with_a_projection_uses_it(tmp_path):
    from minbert.pairs import ApartPairs, CosineScore
    from minbert.run.build import encoder_of

    torch.manual_seed(1)
    tokenizer = train_wordpiece(SENTENCES, vocab_size=60)
    shape = dict(vocab_size=tokenizer.get_vocab_size(), hidden_size=8)
    model = ApartPairs(encoder_of("bag", shape), CosineScore(), "mean", projection=3).eval()
    (tmp_path / "run").mkdir()
    tokenizer.save(str(tmp_path / "run" / "tokenizer.json"))
    meta = {"config": {"encoder": "bag", "size": "small", "task": "sts", "pair_head": "cosine", "similarity": "cosine",
                       "pooling": "mean", "projection": 3}, "shape": shape}
    checkpoint.save("run/best-1.safetensors", model.state_dict(), meta)
    embedder = vectors.load_embedder("run")
    rows, _ = vectors.embed_sentences(embedder, SENTENCES, normalise=False)
    want = model.embed(*pad(encode(tokenizer, SENTENCES, 128).ids))
    assert rows.shape == (5, 3) and np.abs(rows - want.detach().numpy()).max() < 1e-6


def trained(**changes):
    """A run of a few steps in ./run: its tensors and what is said of them."""
    config = recipes.make(**{**recipes.SMOKE, "hidden_size": 16, "intermediate_size": 32, "steps_per_epoch": 6,
                             "vocab_size": 300, "lr": 1e-2, **changes})
    loop.train(config, out="run", progress=False, device="cpu")
    return checkpoint.load(build.best_checkpoint("run"))


def test_a_run_with_adapters_gives_the_vectors_of_the_task_that_is_chosen(capsys):
    """By hand: W + s B A in place of each W, in a plain BERT, one sentence at a time."""
    tensors, meta = trained(task="sst+sts", sampling="round-robin", adapt="lora", lora_r=2, last_layer="cls")
    found = {}
    for task in ("sst", "sts"):
        plain = {}
        for name, tensor in tensors.items():
            if name.startswith("encoder.") and ".A." not in name and ".B." not in name:
                place = name.removeprefix("encoder.").replace(".linear.", ".").replace(".layer.", ".")
                if name.endswith(".linear.weight"):
                    start = name.removesuffix("linear.weight")
                    tensor = tensor + meta["config"]["lora_alpha"] / 2 * tensors[f"{start}B.{task}"] @ tensors[f"{start}A.{task}"]
                plain[place] = tensor
        model = BertModel(BertConfig(**meta["shape"]))
        model.load_state_dict(plain)
        model.eval()
        want = torch.stack([model(*pad([ids]))[0][0].mean(0) for ids in
                            encode(build.run_tokenizer("run"), SENTENCES, 40).ids]).detach()
        assert minbert("embed", "book.txt", "--out", f"{task}.safetensors", "--model", "run", "--task", task, "--no-normalise",
                       "--max-length", 40, "--quiet", "--device", "cpu") == 0
        found[task] = vectors.read_vectors(f"{task}.safetensors").rows
        assert np.abs(found[task] - want.numpy()).max() < 1e-5
    assert np.abs(found["sst"] - found["sts"]).max() > 1e-3
    capsys.readouterr()
    assert minbert("similar", "sts.safetensors", SENTENCES[1], "--top", 1) == 0          # the task is in the file
    assert capsys.readouterr().out.splitlines()[1].startswith("  1   1.00  ")
    for more, message in [((), "choose by --task, one of sst, sts"), (("--task", "quora"), "no task 'quora' in it: sst, sts")]:
        assert minbert("embed", "book.txt", "--out", "x.npy", "--model", "run", *more) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not os.path.exists("x.npy")
    assert minbert("similar", "sts.safetensors", "Dull.", "--task", "sst") == 1
    assert "made with --task sts; leave --task out" in capsys.readouterr().err


def test_tasks_that_share_the_encoder_have_the_same_vectors_without_a_choice(tmp_path, capsys):
    trained(task="sign+score", projection=4, pooling="mean", sampling="proportional")
    rows = [vectors.embed_sentences(vectors.load_embedder("run", task), SENTENCES)[0] for task in (None, "sign", "score")]
    assert rows[0].shape == (5, 4) and (rows[0] == rows[1]).all() and (rows[0] == rows[2]).all()


def test_pre_trained_weights_have_no_tasks(tiny, capsys):
    assert minbert("embed", "book.txt", "--out", "v.npy", "--model", tiny, "--task", "sts") == 1
    assert "pre-trained weights have no tasks: leave --task sts out" in capsys.readouterr().err


def test_a_file_is_never_replaced_unasked_nor_left_in_half(tiny, capsys, monkeypatch):
    made(tiny)
    before = open("v.safetensors", "rb").read()
    again = ["embed", "book.txt", "--out", "v.safetensors", "--model", tiny, "--max-length", 40, "--quiet", "--no-normalise"]
    assert minbert(*again) == 1 and "--again replaces it" in capsys.readouterr().err
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert minbert(*again, "--again") == 1
    assert "the disk is full" in capsys.readouterr().err
    assert open("v.safetensors", "rb").read() == before and not [n for n in os.listdir() if n.endswith(".part")]
    monkeypatch.undo()


def test_with_again_it_is_replaced(tiny):
    before = vectors.read_vectors(made(tiny)).rows
    after = vectors.read_vectors(made(tiny, "v.safetensors", "--again", "--no-normalise")).rows
    assert np.abs(before - after).max() > 0.1


def fault(capsys, *arguments):
    """The one line of a command that fails."""
    capsys.readouterr()
    assert minbert(*arguments) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("minbert: ")
    return line


def test_sentences_that_can_t_be_read_are_told_in_one_line(capsys, place, monkeypatch):
    embed = lambda name, out="v.npy": fault(capsys, "embed", name, "--out", out)      # noqa: E731
    assert "none.txt: can't be read (No such file or directory)" in embed("none.txt")
    (place / "bytes.txt").write_bytes(b"caf\xe9\n")
    assert "bytes.txt: can't be read (not UTF-8)" in embed("bytes.txt")
    (place / "empty.txt").write_text("\n \n")
    assert "empty.txt: holds no sentence" in embed("empty.txt")
    assert "must end with .safetensors or .npy" in embed("book.txt", "v.txt")
    assert "there is no directory nowhere" in embed("book.txt", "nowhere/v.npy")
    with monkeypatch.context() as patch:             # known before an hour's work, not after
        patch.setattr(os, "access", lambda path, mode: False)
        assert "v.npy: the directory . can't be written: choose another --out" in embed("book.txt")
    (place / "d.npy").mkdir()
    assert "d.npy: this is a directory" in embed("book.txt", "d.npy")
    assert "takes 3 to 512 word pieces" in fault(capsys, "embed", "book.txt", "--out", "v.npy", "--max-length", 600)
    assert "no such directory" in fault(capsys, "embed", "book.txt", "--out", "v.npy", "--model", "../a/b/c")
    assert not (place / "v.npy").exists()


def test_vectors_that_can_t_be_used_are_told_in_one_line(tiny, capsys, place):
    made(tiny)
    similar = lambda name, *more: fault(capsys, "similar", name, "sea", *more)        # noqa: E731
    assert "none.npy: no such file" in similar("none.npy")
    assert "its name would end with" in similar("book.txt")
    whole = (place / "v.safetensors").read_bytes()
    (place / "half.safetensors").write_bytes(whole[:-20])
    assert "half.safetensors: truncated or damaged" in similar("half.safetensors")
    checkpoint.save("other.safetensors", {"x": torch.ones(2)}, {})
    assert "holds no vectors of this book" in similar("other.safetensors")
    made(tiny, "v.npy")
    (place / "half.npy").write_bytes((place / "v.npy").read_bytes()[:-20])
    assert "half.npy: truncated or damaged" in similar("half.npy")
    np.save("pickle.npy", np.array([{"a": 1}], dtype=object))
    assert "pickle.npy: truncated or damaged" in similar("pickle.npy")
    with open("many.npy", "wb") as file:
        np.savez(file, a=np.ones((5, 16)))
    assert "many.npy: truncated or damaged, it can't be read (it is an archive of several arrays)" in similar("many.npy")
    for name, wrong, words in (("flat", np.ones(3), "of shape (3,)"), ("int", np.ones((3, 2), int), "int64 numbers"),
                               ("nan", np.full((5, 16), np.nan), "not every number in it is finite")):
        np.save(f"{name}.npy", wrong)
        assert words in similar(f"{name}.npy")
    assert "a .npy holds no sentences" in similar("v.npy")
    np.save("wide.npy", np.ones((5, 7)))
    assert "its vectors have 7 numbers and those of" in similar("wide.npy", "--sentences", "book.txt", "--model", tiny)
    (place / "two.txt").write_text("a\nb\n")
    assert "two.txt: its 2 sentences are not those of the 5 vectors" in similar("v.npy", "--sentences", "two.txt")
    assert "made with --pooling mean; leave --pooling out" in similar("v.safetensors", "--pooling", "pooler")
    assert "give 1 or more" in similar("v.safetensors", "--top", 0)
    assert "not both" in similar("v.safetensors", "--file", "two.txt")
    assert "nothing to look for" in fault(capsys, "similar", "v.safetensors")
    assert "the query is empty" in fault(capsys, "similar", "v.safetensors", "  ")
    assert "not UTF-8" in fault(capsys, "similar", "v.safetensors", "caf\udce9")


def test_vectors_of_other_weights_are_not_compared(tiny, capsys, tmp_path):
    made(tiny)
    model, tokenizer, _ = load_pretrained(str(tiny))
    with torch.no_grad():
        model.pooler.bias += 1
    save_pretrained(model, tokenizer, tmp_path / "other")
    assert "made with other weights" in fault(capsys, "similar", "v.safetensors", "sea", "--model", tmp_path / "other")
    assert minbert("similar", "v.safetensors", "sea", "--model", tiny) == 0


@pytest.mark.parametrize("command", ["embed", "similar"])
def test_the_help_explains_itself_with_examples_that_parse(command, capsys):
    import shlex

    with pytest.raises(SystemExit) as stop:
        minbert(command, "--help")
    examples = [line.strip() for line in capsys.readouterr().out.split("examples:")[1].splitlines() if line.strip()]
    assert stop.value.code == 0 and len(examples) >= 2
    for line in examples:
        assert cli.make_parser().parse_args(shlex.split(line)[1:]).command == command
