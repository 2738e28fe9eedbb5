"""Named experiments.

A `Config` holds every setting that can change the outcome of a training run.  A `Recipe` is a named experiment of
the book: the settings it fixes, and what it fixes differently at each size.  `resolve` turns a recipe, a size and
a few choices into one `Config`.  This file imports no torch, so that `minbert recipes` answers at once.

Sizes
  smoke   a 2-layer model on the built-in sentences, a few steps: it shows that the pipes hold water, nothing else
  small   a laptop
  full    BERT-base and the whole data sets, on a GPU
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from dataclasses import dataclass, field

SIZES = ("smoke", "small", "full")


class RecipeError(ValueError):
    """A recipe, size, setting or value that does not exist; the message suggests the nearest."""


@dataclass(frozen=True)
class Config:
    """Every setting of a training run that alters its result.  Nothing here is a path of the output.

    A setting that is added later must have a default that does what was done before: old records are read with it.
    """

    recipe: str = "train"
    size: str = "small"
    task: str = "sst"                # "sst": five classes · "cfimdb": two · "mlm": masked-language-model pre-training
    encoder: str = "bert"            # "bert" · "attention" (one layer, chapter 2) · "bag" (of embeddings, chapter 1)
    init: str = "pretrained"         # "pretrained" · "random": the same shape and vocabulary, no learned weights
    weights: str = "minilm"          # "minilm" · a directory · a hub name · "scratch" · "run:RECIPE" (see build.py)
    data: str = "builtin"            # "builtin" · a directory in the course's format · "hub"
    seed: int = 0
    # how long, and how many sentences a step
    epochs: int = 3
    batch_size: int = 8
    steps_per_epoch: int = 0         # stop an epoch after so many steps; 0: use all the data
    max_length: int = 128            # in word pieces, [CLS] and [SEP] included; longer sentences are cut and counted
    bucket: int = 50                 # sort by length within so many batches; 1: random batches
    # the optimizer
    optimizer: str = "adamw-torch"   # "adamw-torch": PyTorch's, fused · "adamw": ours · and others, see optim.py
    lr: float = 3e-5
    weight_decay: float = 0.01
    schedule: str = "linear"         # "linear": up over the warm-up, then down to 0 · "constant": up, then level
    warmup: float = 0.1              # share of all steps
    clip: float = 1.0                # largest gradient norm; 0: no clipping
    rates: str = "same"              # "same" · "layerwise": lower by rate_decay at each layer down · "tiers"
    rate_decay: float = 0.8
    # regularisation
    dropout: float = 0.1             # inside the encoder: hidden states and attention probabilities
    head_dropout: float = 0.1        # on the pooled vector, before the classifier
    freeze: str = "none"             # "none" · "embeddings" · "partial": these and freeze_layers layers · "full" · "head"
    freeze_layers: int = 0
    # arithmetic
    precision: str = "auto"          # "auto": fp32 on a CPU, bf16 or fp16 on a GPU · "fp32" · "bf16" · "fp16"
    attention: str = "plain"         # "plain": the one to read · "fast": scaled_dot_product_attention
    last_layer: str = "all"          # "all" · "cls": its output for [CLS] only, which is all that a sentence task reads
    embedding_rows: str = "all"      # "all" · "occurring": the optimizer sees only rows that the training data use
    micro_batch: int = 0             # sentences that go through the model at once, of the batch_size of a step; 0: all
    # shape of a model from nothing (weights "scratch", or the encoders "bag" and "attention")
    vocab_size: int = 0
    layers: int = 0
    hidden_size: int = 0
    heads: int = 0
    intermediate_size: int = 0
    # masked-language-model pre-training
    mask_rate: float = 0.15


# They may differ between two runs that are called the same.  Names alter nothing; the micro-batch alters the rounding
# (and, with dropout, which random numbers are drawn), so that a run out of memory can go on with a smaller one.
LABELS = ("recipe", "size", "micro_batch")
# Chosen at the command line, apart from the recipe.  A record keeps its own values of these.
CHOSEN_APART = ("size", "weights", "data", "precision", "seed")

CHOICES = {
    "task": ("sst", "cfimdb", "mlm"),
    "encoder": ("bert", "attention", "bag"),
    "init": ("pretrained", "random"),
    "optimizer": ("adamw-torch", "adamw", "adamw-course", "adamw-uncorrected", "adam-l2"),
    "rates": ("same", "layerwise", "tiers"),
    "schedule": ("linear", "constant"),
    "freeze": ("none", "embeddings", "partial", "full", "head", "all"),
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "attention": ("plain", "fast"),
    "last_layer": ("all", "cls"),
    "embedding_rows": ("all", "occurring"),
}


@dataclass(frozen=True)
class Recipe:
    """One experiment of the book."""

    name: str
    chapter: int
    summary: str                                     # one line
    settings: dict                                   # what it fixes at every size
    small: dict = field(default_factory=dict)        # … and at one size only
    full: dict = field(default_factory=dict)
    smoke: dict = field(default_factory=dict)
    minutes: float = 1.0                             # a seed, at size small, on a laptop: an estimate
    published: tuple = ()                            # ((report, table, row, column), …) in published.json
    differs: str = ""                                # what the reports did otherwise
    needs: str = ""                                  # a recipe whose run this one starts from
    seeds: tuple = (0, 1, 2)


# A 2-layer BERT with its own little vocabulary: seconds, no download.  "Plumbing only": its scores mean nothing.
SMOKE = dict(weights="scratch", init="random", data="builtin", layers=2, hidden_size=32, heads=2, intermediate_size=64,
             vocab_size=500, epochs=2, batch_size=8, steps_per_epoch=4, lr=1e-3)

# The field's usual setting for SST, shared by the three runs that chapter 5 compares.
SST = dict(task="sst", data="hub", epochs=3, lr=3e-5, batch_size=8)
SST_FULL = dict(weights="bert-base-uncased", epochs=10)

# The small BERT that a reader can pre-train over a cup of tea (chapter 3).
SMALL_BERT = dict(weights="scratch", init="random", vocab_size=4000, layers=4, hidden_size=128, heads=4,
                  intermediate_size=512)

# Chapter 4: one epoch, at a rate at which optimizers differ. Ours in each of its forms; one factor at a time.
ONE_EPOCH = dict(SST, optimizer="adamw", epochs=1, lr=1e-4, batch_size=32)
ONE_EPOCH_FULL = dict(weights="bert-base-uncased")

_RECIPES = (
    Recipe(
        "bag-of-embeddings", 1, "a mean of word-piece vectors, learned from nothing, and a linear classifier",
        dict(task="sst", data="hub", encoder="bag", init="random", hidden_size=128, epochs=5, batch_size=32, lr=3e-3),
        full=dict(weights="bert-base-uncased"),
        minutes=2,
    ),
    Recipe(
        "one-attention-layer", 2, "embeddings and one layer of attention, learned from nothing",
        dict(task="sst", data="hub", encoder="attention", init="random", hidden_size=128, heads=4, epochs=5,
             batch_size=32, lr=1e-3),
        full=dict(weights="bert-base-uncased"),
        minutes=3,
    ),
    Recipe(
        "random-weights", 3, "BERT of MiniLM's shape, trained from random weights",
        dict(SST, init="random", lr=1e-4),
        full=SST_FULL,
        minutes=12,
    ),
    Recipe(
        "masked-language-model", 3, "pre-training of a small BERT: guess the hidden word pieces",
        dict(SMALL_BERT, task="mlm", epochs=6, batch_size=32, lr=1e-3, max_length=64),
        full=dict(layers=6, hidden_size=256, heads=8, intermediate_size=1024, vocab_size=8000, epochs=20),
        minutes=15, seeds=(0,),
    ),
    Recipe(
        "small-bert-pretrained", 3, "the small BERT, fine-tuned after its pre-training",
        dict(SST, weights="run:masked-language-model", lr=3e-4, batch_size=32),
        smoke=dict(weights="run:masked-language-model", init="pretrained"),
        minutes=2, needs="masked-language-model",
    ),
    Recipe(
        "small-bert-random", 3, "the small BERT's shape and vocabulary, trained from random weights",
        dict(SST, weights="run:masked-language-model", init="random", lr=3e-4, batch_size=32),
        smoke=dict(weights="run:masked-language-model"),
        minutes=2, needs="masked-language-model",
    ),
    Recipe(
        "optimizer-adamw", 4, "one epoch of sentiment with our AdamW: PyTorch's form",
        ONE_EPOCH,
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "optimizer-course", 4, "the same with AdamW in the course's form: decay last, ε not corrected",
        dict(ONE_EPOCH, optimizer="adamw-course"),
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "optimizer-adam-l2", 4, "the same with Adam and an L2 penalty: the decay goes through the gradient",
        dict(ONE_EPOCH, optimizer="adam-l2"),
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "optimizer-uncorrected", 4, "the same without bias correction, as in Google's BERT",
        dict(ONE_EPOCH, optimizer="adamw-uncorrected"),
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "optimizer-no-warmup", 4, "the same with our AdamW and the full rate from the first step",
        dict(ONE_EPOCH, warmup=0.0),
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "optimizer-uncorrected-no-warmup", 4, "neither bias correction nor warm-up",
        dict(ONE_EPOCH, optimizer="adamw-uncorrected", warmup=0.0),
        full=ONE_EPOCH_FULL, minutes=3,
    ),
    Recipe(
        "first-finetune", 5, "MiniLM on the book's own film sentences: the first fine-tuning",
        dict(task="sst", data="builtin", epochs=4, lr=1e-4, batch_size=8),
        full=dict(weights="bert-base-uncased"),
        minutes=1.5,
    ),
    Recipe(
        "sst-full", 5, "sentiment with every weight trained",
        dict(SST, freeze="none"),
        full=SST_FULL, minutes=12,
        published=(("S0", "dev", "fine-tuned", "sst"), ("S1", "dev", "lr-3e-5", "sst")),
        differs="the reports use BERT-base and 10 epochs; S0 also lr 1e-5 and hidden dropout .3",
    ),
    Recipe(
        "sst-frozen", 5, "sentiment with the encoder frozen: only the classifier learns",
        dict(SST, freeze="full"),
        full=SST_FULL, minutes=4,
        published=(("S0", "dev", "frozen", "sst"),),
        differs="the report uses BERT-base, 10 epochs, lr 1e-5 and hidden dropout .3",
    ),
    Recipe(
        "sst-partial", 5, "sentiment with the embeddings and the lower two thirds of the layers frozen",
        dict(SST, freeze="partial", freeze_layers=4),
        full=dict(SST_FULL, freeze_layers=8), smoke=dict(freeze_layers=1),
        minutes=7,
    ),
    # One factor at a time around sst-full: learning rate, batch size (S1's study, with the batch size isolated).
    Recipe(
        "sst-lr-1e-5", 5, "sentiment with a third of the learning rate",
        dict(SST, lr=1e-5),
        full=SST_FULL, minutes=12,
        published=(("S1", "dev", "baseline", "sst"),),
        differs="the report uses BERT-base and 10 epochs",
    ),
    Recipe(
        "sst-lr-1e-4", 5, "sentiment with three times the learning rate",
        dict(SST, lr=1e-4),
        full=SST_FULL, minutes=12,
    ),
    Recipe(
        "sst-batch-32", 5, "sentiment with 32 sentences a step",
        dict(SST, batch_size=32),
        full=SST_FULL, smoke=dict(batch_size=32), minutes=7, seeds=(0, 1, 2, 3, 4),
        differs="the report's row changes nothing but the batch, and repeats another row's numbers",
    ),
    Recipe(
        "sst-layerwise", 5, "sentiment with a smaller learning rate at each layer down from the head",
        dict(SST, rates="layerwise"),
        full=SST_FULL, minutes=12,
        differs="report S3 has three tiers (rates tiers), with no values; ours is ELECTRA's layer by layer",
    ),
    Recipe(
        "cfimdb-full", 5, "whole film reviews, positive or negative, with every weight trained",
        dict(task="cfimdb", data="hub", epochs=3, lr=3e-5, batch_size=8, max_length=512),
        full=SST_FULL, smoke=dict(task="sst"), minutes=20,
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


def nearest(word: str, known, what: str) -> str:
    """One line for an unknown word: what is unknown, and the nearest of the known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"unknown {what} {word!r}; {hint}"


def find(name: str) -> Recipe:
    """The recipe of that name.  Raises RecipeError, with the nearest name."""
    if name not in RECIPES:
        raise RecipeError(nearest(name, RECIPES, "recipe") + " ('minbert recipes' lists them)")
    return RECIPES[name]


def resolve(name: str, size: str = "small", **overrides) -> Config:
    """The full configuration of a recipe at a size.

    `overrides` are Config fields; those that are None are ignored, so that options not given can be passed through.
    Raises RecipeError for an unknown recipe, size, field or value.
    """
    recipe = find(name)
    if size not in SIZES:
        raise RecipeError(nearest(size, SIZES, "size"))
    settings = dict(recipe.settings)
    if size == "smoke":
        settings.update(SMOKE)
    settings.update(getattr(recipe, size))
    settings.update({key: value for key, value in overrides.items() if value is not None})
    return make(recipe=name, size=size, **settings)


def make(**settings) -> Config:
    """A Config from keywords, with every value looked at.  Raises RecipeError."""
    known = [f.name for f in dataclasses.fields(Config)]
    for key, value in settings.items():
        if key not in known:
            raise RecipeError(nearest(key, known, "setting"))
        if key in CHOICES and value not in CHOICES[key]:
            raise RecipeError(nearest(str(value), CHOICES[key], key))
    config = Config(**settings)
    for key in ("epochs", "batch_size", "bucket", "max_length"):
        if getattr(config, key) < 1:
            raise RecipeError(f"{key} must be at least 1, not {getattr(config, key)}")
    for key in ("dropout", "head_dropout", "warmup", "mask_rate"):
        if not 0 <= getattr(config, key) <= 1:
            raise RecipeError(f"{key} must be between 0 and 1, not {getattr(config, key)}")
    for key in ("lr", "weight_decay", "clip", "steps_per_epoch", "freeze_layers"):
        if not getattr(config, key) >= 0:              # written so that NaN fails too
            raise RecipeError(f"{key} must not be negative, not {getattr(config, key)}")
    if not 0 < config.rate_decay <= 1:
        raise RecipeError(f"rate_decay must be above 0 and at most 1, not {config.rate_decay}")
    if config.task == "mlm" and not config.mask_rate > 0:
        raise RecipeError("mask_rate must be above 0: with nothing hidden there is nothing to guess")
    if config.encoder != "bert" and config.init == "pretrained":
        raise RecipeError(f"encoder {config.encoder!r} has no pre-trained weights: choose --init random")
    for key in ("last_layer", "embedding_rows"):
        if getattr(config, key) != "all" and (config.encoder != "bert" or config.task == "mlm"):
            raise RecipeError(f"{key} {getattr(config, key)!r} is for a BERT that classifies sentences: leave it at 'all'")
    if config.weights == "scratch" and config.init == "pretrained":
        raise RecipeError("weights 'scratch' are random: choose --init random, or another --model")
    for key in own_sizes(config):
        if getattr(config, key) < 1:
            raise RecipeError(f"{key} must be at least 1 for a model from nothing, not {getattr(config, key)}")
    return config


def own_sizes(config: Config) -> tuple:
    """The sizes that a model takes from its configuration; one with weights of its own has them from there."""
    vocabulary = ("vocab_size",) if config.weights == "scratch" else ()
    if config.encoder == "bert":
        return vocabulary and (*vocabulary, "hidden_size", "heads", "intermediate_size")
    return (*vocabulary, "hidden_size", *(("heads",) if config.encoder == "attention" else ()))


# ---- names that may be written down: no path of the machine -------------------------------------------------------

def source_name(source: str) -> str:
    """A name for weights or data: a directory's own name without the path to it; any other name as it is."""
    source = str(source)
    looks_local = os.path.isdir(os.path.expanduser(source)) or source.startswith(("/", ".", "~", "\\"))
    if looks_local:
        return os.path.basename(os.path.abspath(os.path.expanduser(source)))
    return source


def slug(name: str) -> str:
    """A name fit for a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-") or "unnamed"


def model_name(config: Config) -> str:
    """What a file's name calls the model: the encoder of chapters 1 and 2, else the weights."""
    if config.encoder != "bert":
        return config.encoder
    return slug(source_name(config.weights).removeprefix("run:"))


def run_name(config: Config) -> str:
    """<size>-<model>-<data>-<precision>-<seed>: the name of a run's record and of its directory."""
    return f"{config.size}-{model_name(config)}-{slug(source_name(config.data))}-{config.precision}-{config.seed}"


def public(config: Config) -> dict:
    """The configuration as it is written down: paths are replaced by the last part of their names."""
    settings = dataclasses.asdict(config)
    settings["weights"] = source_name(config.weights)
    settings["data"] = source_name(config.data)
    return settings


def differences(old: dict, new: dict) -> list[str]:
    """Settings that alter results and differ between two public configurations, as "lr: 3e-05 → 1e-05".

    A setting that an old configuration did not have yet counts as its default.
    """
    missing = dataclasses.asdict(Config())
    keys = [*missing, *sorted((set(old) | set(new)) - set(missing))]
    pairs = [(key, old.get(key, missing.get(key)), new.get(key, missing.get(key))) for key in keys if key not in LABELS]
    return [f"{key}: {before} → {after}" for key, before, after in pairs if before != after]
