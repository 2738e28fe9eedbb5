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
    task: str = "sst"                # one of TASKS, or several: "sst+quora+sts"
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
    # sentence pairs (chapter 7)
    pair_head: str = "joined"        # how a pair is read and what is on top, see `minbert.pairs.HEADS`
    paraphrase: str = "ce2"          # the objective of quora: "ce2" · "bce"
    similarity: str = "classes"      # the objective of sts: "classes" · "mse" · "huber" · "cosine"
    pooling: str = "pooler"          # of a sentence that is read alone: "pooler" · "mean"
    projection: int = 0              # size of a linear layer on that vector; 0: none
    quora_limit: int = 0             # the most question pairs to train on; 0: all
    # questions on a passage (chapter 11), see `minbert.run.windows`; all in word pieces
    window_length: int = 384
    question_length: int = 64
    window_step: int = 128
    answer_length: int = 30
    # low-rank adapters, one for each task, on a frozen encoder (chapter 6)
    adapt: str = "none"              # "none" · "lora"
    lora_r: int = 16
    lora_alpha: float = 16.0
    lora_scaling: str = "alpha/r"    # "alpha/r" · "alpha"
    lora_feed_forward: bool = False
    # many tasks in one model (chapter 9)
    sampling: str = "annealed"       # "sequential" · "phases" · "round-robin" · "proportional" · "square-root" · "annealed"
    stop: str = "shortest"           # a round robin ends with the "shortest" task or with the "longest"
    step_form: str = "per_batch"     # a step is one batch, or "summed": one batch of each task
    trained: str = ""                # the tasks that are trained, joined by "+", the others are only scored; "": all
    freeze_task: str = ""            # whose head --freeze head freezes
    cosine_every: int = 0            # look at the tasks' gradients every so many steps; 0: never


# They may differ between two runs that are called the same.  Names alter nothing; the micro-batch alters the rounding
# (and, with dropout, which random numbers are drawn), so that a run out of memory can go on with a smaller one.  A look at
# the gradients leaves everything as it was.
LABELS = ("recipe", "size", "micro_batch", "cosine_every")
# Chosen at the command line, apart from the recipe.  A record keeps its own values of these.
CHOSEN_APART = ("size", "weights", "data", "precision", "seed")

# What can be learned: five classes of sentiment, two, hidden word pieces (pre-training), paraphrase, similarity, answers in
# a passage, and report S3's two readings of sst: its sign, and its value as a score.
TASKS = ("sst", "cfimdb", "mlm", "quora", "sts", "squad", "sign", "score")
PAIRS = ("quora", "sts")

CHOICES = {
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
    "pair_head": ("joined", "joined-deep", "cosine-fixed", "cosine-learned", "cosine", "vector", "additive", "cross-printed",
                  "cross-standard", "cross-both"),
    "paraphrase": ("ce2", "bce"),
    "similarity": ("classes", "mse", "huber", "cosine"),
    "pooling": ("pooler", "mean"),
    "adapt": ("none", "lora"),
    "lora_scaling": ("alpha/r", "alpha"),
    "sampling": ("sequential", "phases", "round-robin", "proportional", "square-root", "annealed"),
    "stop": ("shortest", "longest"),
    "step_form": ("per_batch", "summed"),
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
             vocab_size=500, epochs=2, batch_size=8, steps_per_epoch=4, lr=1e-3, window_length=128, question_length=32, window_step=32)

# The field's usual setting for SST, shared by the three runs that chapter 5 compares.
SST = dict(task="sst", data="hub", epochs=3, lr=3e-5, batch_size=8)
SST_FULL = dict(weights="bert-base-uncased", epochs=10)

# The small BERT that a reader can pre-train over a cup of tea (chapter 3).
SMALL_BERT = dict(weights="scratch", init="random", vocab_size=4000, layers=4, hidden_size=128, heads=4,
                  intermediate_size=512)

# Chapter 4: one epoch, at a rate at which optimizers differ. Ours in each of its forms; one factor at a time.
ONE_EPOCH = dict(SST, optimizer="adamw", epochs=1, lr=1e-4, batch_size=32)
ONE_EPOCH_FULL = dict(weights="bert-base-uncased")

# Chapters 6, 7 and 9: sentence pairs, and three tasks together. On a laptop, 6,000 of Quora's question pairs.
PAIR = dict(data="hub", epochs=3, lr=3e-5, batch_size=8, quora_limit=6000, embedding_rows="occurring")
QUORA = dict(PAIR, task="quora")
STS = dict(PAIR, task="sts")
THREE = dict(PAIR, task="sst+quora+sts")
PAIR_FULL = dict(weights="bert-base-uncased", epochs=10, quora_limit=0)
CLS = dict(last_layer="cls")                         # joined pairs and the pooler: nothing else is read
S0 = "the report uses BERT-base, 10 epochs, lr 1e-5, hidden dropout .3 and all question pairs"
S1 = "the report uses BERT-base and 10 epochs, and does not say in which order its tasks come"
S4 = "the report uses BERT-base, 10 epochs, lr 1e-5, dropout .3, and trains all tasks together"


def _pairs(name, summary, settings, row="", report="S0", differs=S0, minutes=8):
    """A recipe of chapter 7; `row` is the row of the report's dev table."""
    column = {"quora": "qqp", "sts": "sts_r"}[settings["task"]]
    published = ((report, "dev", row, column),) if row else ()
    return Recipe(name, 7, summary, settings, full=PAIR_FULL, minutes=minutes, published=published,
                  differs=differs if row else "")


def _three(name, chapter, summary, settings, row="", report="S0", differs=S0, minutes=12.0, **sizes):
    """A recipe of three tasks in one model."""
    published = ((report, "dev", row, "average"),) if row else ()
    return Recipe(name, chapter, summary, dict(THREE, **settings), full=PAIR_FULL, minutes=minutes, published=published,
                  differs=differs if row else "", **sizes)


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
    # Chapter 6. One encoder, frozen, and an adapter for each of three tasks. lora-r16 is report S0's row.
    *(_three(f"lora-r{r}", 6, f"three tasks by adapters of rank {r} on a frozen encoder",
             dict(CLS, adapt="lora", lora_r=r, lr=lr, embedding_rows="all"), row="lora" if r == 16 else "",
             differs=S0 + "; its adapters are scaled by α, ours by α / r")
      for r, lr in ((1, 1e-3), (4, 1e-3), (16, 1e-3), (64, 1e-3))),
    _three("lora-plain-alpha", 6, "the same at rank 16 with report S0's scaling: α, not α / r",
           dict(CLS, adapt="lora", lora_r=16, lr=1e-3, lora_scaling="alpha", embedding_rows="all"), row="lora"),
    # Chapter 7. Paraphrase and similarity, head by head.
    _pairs("quora-frozen", "paraphrase with the encoder frozen", dict(QUORA, **CLS, freeze="full", embedding_rows="all"),
           "frozen", minutes=4),
    _pairs("quora-joined", "paraphrase, both questions in one sequence", dict(QUORA, **CLS), "fine-tuned"),
    _pairs("quora-joined-bce", "the same with one score and binary cross-entropy", dict(QUORA, **CLS, paraphrase="bce")),
    _pairs("quora-cosine", "paraphrase, two encoders and S0's fixed map of the cosine",
           dict(QUORA, **CLS, pair_head="cosine-fixed"), "siamese-cosine"),
    _pairs("quora-cosine-learned", "the same with a learned scale and shift",
           dict(QUORA, **CLS, pair_head="cosine-learned")),
    _pairs("quora-vector", "paraphrase from u, v and |u - v|", dict(QUORA, **CLS, pair_head="vector"), "siamese-vector"),
    _pairs("quora-vector-mean", "the same with the mean over the tokens: Sentence-BERT's classification objective",
           dict(QUORA, pair_head="vector", pooling="mean")),
    _pairs("quora-additive", "paraphrase from u and v alone", dict(QUORA, **CLS, pair_head="additive", paraphrase="bce"),
           "multi-task", "S4", S4),
    _pairs("quora-cross-printed", "paraphrase by cross-attention as report S0 prints it",
           dict(QUORA, pair_head="cross-printed"), "cross-attention", minutes=9),
    _pairs("quora-cross", "paraphrase by cross-attention in the standard form", dict(QUORA, pair_head="cross-standard"),
           minutes=9),
    _pairs("quora-cross-both", "the same in both directions", dict(QUORA, pair_head="cross-both"), minutes=10),
    _pairs("sts-frozen", "similarity with the encoder frozen", dict(STS, **CLS, freeze="full", embedding_rows="all"),
           "frozen", minutes=4),
    _pairs("sts-joined", "similarity in six classes, both sentences in one sequence", dict(STS, **CLS), "fine-tuned"),
    _pairs("sts-joined-mse", "the same as a number, by mean squared error", dict(STS, **CLS, similarity="mse")),
    _pairs("sts-joined-huber", "the same by Huber's loss", dict(STS, **CLS, similarity="huber")),
    _pairs("sts-cosine", "similarity, two encoders and S0's fixed map of the cosine",
           dict(STS, **CLS, pair_head="cosine-fixed"), "siamese-cosine"),
    _pairs("sts-cosine-learned", "the same with a learned scale and shift", dict(STS, **CLS, pair_head="cosine-learned")),
    _pairs("sts-cosine-regression", "the cosine itself against label / 5: Sentence-BERT's regression objective",
           dict(STS, pair_head="cosine", similarity="cosine", pooling="mean")),
    _pairs("sts-vector", "similarity from u, v and |u - v|, in six classes", dict(STS, **CLS, pair_head="vector"),
           "siamese-vector"),
    _pairs("sts-vector-mean", "the same with the mean over the tokens", dict(STS, pair_head="vector", pooling="mean")),
    _pairs("sts-additive", "similarity from u and v alone, by Huber's loss",
           dict(STS, **CLS, pair_head="additive", similarity="huber"), "multi-task", "S4", S4),
    _pairs("sts-cross-printed", "similarity by cross-attention as report S0 prints it",
           dict(STS, pair_head="cross-printed"), "cross-attention", minutes=9),
    _pairs("sts-cross", "similarity by cross-attention in the standard form", dict(STS, pair_head="cross-standard"),
           minutes=9),
    _pairs("sts-cross-both", "the same in both directions", dict(STS, pair_head="cross-both"), minutes=10),
    Recipe("sign-score", 7, "report S3: a shared projection to 256 numbers, the sign and the score of a sentence",
           dict(PAIR, task="sign+score", projection=256, pooling="mean", sampling="round-robin"), full=PAIR_FULL,
           smoke=dict(projection=16), minutes=15),
    # Report S1's study: what is trained at all, and then the same with only the losses changed.
    _three("s1-sst-only", 7, "S1: only sentiment is trained, the other heads are left as they began",
           dict(CLS, trained="sst"), "lr-3e-5", "S1", S1),
    _three("s1-bce", 7, "S1: sentiment and paraphrase (BCE) are trained", dict(CLS, trained="sst+quora", paraphrase="bce"),
           "bce", "S1", S1),
    _three("s1-mse", 7, "S1: all three are trained (BCE, MSE)", dict(CLS, paraphrase="bce", similarity="mse"),
           "mse", "S1", S1),
    _three("s1-all-ce", 7, "all three are trained, with two classes and six", CLS),
    _three("s1-all-bce", 7, "all three are trained, with BCE and six classes", dict(CLS, paraphrase="bce")),
    # Chapter 9. Three tasks, one model: the order of the batches.
    _three("sequential", 9, "in every epoch the tasks one after another", dict(CLS, sampling="sequential"), "sequential",
           minutes=24),
    _three("phases", 9, "each task in an epoch of its own", dict(CLS, sampling="phases"), minutes=8, smoke=dict(epochs=3)),
    _three("round-robin", 9, "one batch of each task in turn, until the smallest is spent",
           dict(CLS, sampling="round-robin", cosine_every=50), minutes=20),
    _three("round-robin-longest", 9, "one batch of each task in turn, until the largest is spent",
           dict(CLS, sampling="round-robin", stop="longest"), minutes=30),
    _three("round-robin-summed", 9, "each step a batch of each task, the losses added up",
           dict(CLS, sampling="round-robin", step_form="summed"), minutes=20),
    _three("proportional", 9, "tasks drawn in proportion to their size", dict(CLS, sampling="proportional")),
    _three("square-root", 9, "tasks drawn by the square root of their size", dict(CLS, sampling="square-root")),
    _three("annealed", 9, "tasks drawn by their size at first, nearly alike at the end", dict(CLS, cosine_every=50),
           "round-robin-annealed"),
    # Chapter 11. Questions on a passage, alone and as a fourth task.
    # 225 questions: at usual rates, or with few epochs, nothing is learned but silence.
    Recipe(
        "squad", 11, "MiniLM on the book's own passages: answers with their place, or none",
        dict(task="squad", data="builtin", epochs=8, lr=3e-4, batch_size=8, freeze="partial", freeze_layers=2),
        full=dict(weights="bert-base-uncased", lr=5e-5, freeze_layers=4), smoke=dict(freeze_layers=1), minutes=3,
    ),
    # Table 2. At the rate and the epochs of Table 1 the SQuAD part of a small training set learns only to be silent.
    Recipe(
        "squad-alone", 11, "SQuAD 2.0 alone",
        dict(PAIR, task="squad", lr=1e-4, epochs=5), full=dict(PAIR_FULL, lr=3e-5), minutes=40,
        published=(("S0", "squad-dev", "squad-alone", "f1"),),
        differs="the report uses BERT-base, 10 epochs, lr 1e-5 and the whole training set, and scores decoded word pieces",
    ),
    Recipe(
        "annealed-squad-long", 11, "SQuAD 2.0 and the three tasks in one model, with the rate and the epochs of squad-alone",
        dict(PAIR, task="sst+quora+sts+squad", lr=1e-4, epochs=5, cosine_every=50), full=dict(PAIR_FULL, lr=3e-5), minutes=50,
        published=(("S0", "dev", "round-robin-annealed-squad", "average"),
                   ("S0", "squad-dev", "round-robin-annealed-squad", "f1")), differs=S0,
    ),
    # Table 1
    Recipe(
        "annealed-squad", 11, "SQuAD 2.0 as a fourth task beside the three, annealed",
        dict(PAIR, task="sst+quora+sts+squad", cosine_every=50), full=PAIR_FULL, minutes=30,
        published=(("S0", "dev", "round-robin-annealed-squad", "average"),
                   ("S0", "squad-dev", "round-robin-annealed-squad", "f1")), differs=S0,
    ),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _RECIPES}


# Several recipes under one name: the rows of report S0's Table 1, each with the recipes that it takes.
TABLE1 = {
    "fine-tuned": ("sst-full", "quora-joined", "sts-joined"),
    "round-robin-annealed": ("annealed",),
    "round-robin-annealed-squad": ("annealed-squad",),
    "lora": ("lora-r16",),
    "sequential": ("sequential",),
    "siamese-cosine": ("sst-full", "quora-cosine", "sts-cosine"),
    "siamese-vector": ("sst-full", "quora-vector", "sts-vector"),
    "cross-attention": ("sst-full", "quora-cross-printed", "sts-cross-printed"),
    "frozen": ("sst-frozen", "quora-frozen", "sts-frozen"),
}
GROUPS = {"table1": tuple(dict.fromkeys(name for names in TABLE1.values() for name in names))}


def nearest(word: str, known, what: str) -> str:
    """One line for an unknown word: what is unknown, and the nearest of the known."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
    return f"unknown {what} {word!r}; {hint}"


def find(name: str) -> Recipe:
    """The recipe of that name.  Raises RecipeError, with the nearest name."""
    if name not in RECIPES:
        raise RecipeError(nearest(name, [*RECIPES, *GROUPS], "recipe") + " ('minbert recipes' lists them)")
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
    check_tasks(config)
    for key in ("epochs", "batch_size", "bucket", "max_length", "window_length", "question_length", "window_step",
                "answer_length"):
        if getattr(config, key) < 1:
            raise RecipeError(f"{key} must be at least 1, not {getattr(config, key)}")
    for key in ("dropout", "head_dropout", "warmup", "mask_rate"):
        if not 0 <= getattr(config, key) <= 1:
            raise RecipeError(f"{key} must be between 0 and 1, not {getattr(config, key)}")
    for key in ("lr", "weight_decay", "clip", "steps_per_epoch", "freeze_layers", "projection",
                "quora_limit", "cosine_every"):
        if not getattr(config, key) >= 0:              # written so that NaN fails too
            raise RecipeError(f"{key} must not be negative, not {getattr(config, key)}")
    if not 0 < config.rate_decay <= 1:
        raise RecipeError(f"rate_decay must be above 0 and at most 1, not {config.rate_decay}")
    if config.task == "mlm" and not config.mask_rate > 0:
        raise RecipeError("mask_rate must be above 0: with nothing hidden there is nothing to guess")
    if config.encoder != "bert" and "mlm" in tasks_of(config):
        raise RecipeError(f"task 'mlm' is for a BERT, not for the encoder {config.encoder!r}")
    if config.encoder != "bert" and config.pair_head.startswith("cross") and set(tasks_of(config)) & set(PAIRS):
        raise RecipeError(f"pair_head {config.pair_head!r} is for a BERT, not for the encoder {config.encoder!r}: "
                          "choose another --pair-head")
    if config.encoder != "bert" and config.init == "pretrained":
        raise RecipeError(f"encoder {config.encoder!r} has no pre-trained weights: choose --init random")
    for key in ("last_layer", "embedding_rows"):
        if getattr(config, key) != "all" and (config.encoder != "bert" or config.task == "mlm"):
            raise RecipeError(f"{key} {getattr(config, key)!r} is for a BERT that classifies sentences: leave it at 'all'")
    if config.last_layer == "cls" and not reads_cls_only(config):
        raise RecipeError("last_layer 'cls' is for tasks that read [CLS] alone, and this one reads every token: "
                          "leave it at 'all'")
    if config.weights == "scratch" and config.init == "pretrained":
        raise RecipeError("weights 'scratch' are random: choose --init random, or another --model")
    for key in own_sizes(config):
        if getattr(config, key) < 1:
            raise RecipeError(f"{key} must be at least 1 for a model from nothing, not {getattr(config, key)}")
    return config


def tasks_of(config: Config) -> list[str]:
    """The names of the tasks of a configuration."""
    return config.task.split("+")


def trained_tasks(config: Config) -> list[str]:
    """Those of them that are trained, in the order of `task`."""
    chosen = config.trained.split("+") if config.trained else tasks_of(config)
    return [name for name in tasks_of(config) if name in chosen]


def reads_cls_only(config: Config) -> bool:
    """True if nothing of the last layer is read but its output for [CLS]."""
    names = tasks_of(config)
    apart = not config.pair_head.startswith("joined") and bool(set(names) & set(PAIRS))
    every_token = config.pair_head.startswith("cross") or config.pooling == "mean"
    return not (set(names) & {"squad", "mlm"} or apart and every_token or config.pooling == "mean"
                and set(names) & {"sign", "score"})


def check_tasks(config: Config) -> None:
    """Refuse tasks, and settings of many tasks or of adapters, that don't fit together.  Raises RecipeError."""
    names = tasks_of(config)
    for name in names:
        if name not in TASKS:
            raise RecipeError(nearest(name, TASKS, "task") + ("; several are joined by +" if len(names) == 1 else ""))
        if names.count(name) > 1:
            raise RecipeError(f"task {name!r} is named twice in {config.task!r}")
    several = len(names) > 1
    if several and "mlm" in names:
        raise RecipeError("task 'mlm' is pre-training and stands alone: leave it out of " + config.task)
    if config.trained:
        for name in config.trained.split("+"):
            if name not in names:
                raise RecipeError(f"trained: {name!r} is none of the tasks {', '.join(names)}")
    if config.step_form == "summed" and config.sampling != "round-robin" and several:
        raise RecipeError("step_form 'summed' takes a batch of every task: choose --sampling round-robin")
    if config.sampling == "phases" and several and config.epochs < len(trained_tasks(config)):
        raise RecipeError(f"sampling 'phases' gives each task epochs of its own: --epochs {config.epochs} is too few")
    if "mlm" in names and config.freeze != "none":
        raise RecipeError("task 'mlm' trains the whole model: leave freeze at 'none'")
    if config.freeze_layers and config.freeze != "partial":
        raise RecipeError(f"freeze_layers is for freeze 'partial', and freeze is {config.freeze!r}")
    for key in ("lora_r", "lora_alpha", "lora_scaling", "lora_feed_forward"):
        if config.adapt == "none" and getattr(config, key) != getattr(Config, key):
            raise RecipeError(f"{key} is for adapt 'lora', and adapt is 'none': choose --adapt lora")
    if config.freeze_task and config.freeze != "head":
        raise RecipeError("freeze_task names the head for --freeze head, and freeze is " + repr(config.freeze))
    if config.freeze == "head" and several and config.freeze_task not in names:
        raise RecipeError(f"freeze 'head' needs --freeze-task, one of {', '.join(names)}")
    if config.cosine_every and (config.adapt != "none" or config.freeze == "full"):
        raise RecipeError("cosine_every compares gradients on the shared encoder, and here it is frozen: leave it at 0")
    if config.adapt == "lora":
        if config.encoder != "bert":
            raise RecipeError(f"adapt 'lora' is for a BERT, not for the encoder {config.encoder!r}")
        if config.freeze != "none" or "mlm" in names:
            raise RecipeError("adapt 'lora' freezes the encoder itself: leave freeze at 'none', and the task is not mlm")
        if config.lora_r < 1 or not config.lora_alpha > 0:
            raise RecipeError("lora_r must be at least 1 and lora_alpha above 0, "
                              f"not {config.lora_r} and {config.lora_alpha}")


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
