"""Recipes: every one resolves at every size, nothing unknown passes, and no path of the machine is written down."""

import dataclasses
import json
import subprocess
import sys

import pytest

from minbert import published
from minbert.run import recipes
from minbert.run.cli import HELP
from minbert.run.recipes import Config, RecipeError, make, resolve


@pytest.mark.parametrize("size", recipes.SIZES)
@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_resolves_at_every_size(name, size):
    config = resolve(name, size)
    assert (config.recipe, config.size) == (name, size)
    if size == "smoke":                              # no download, seconds
        assert config.data == "builtin" and config.steps_per_epoch * config.epochs <= 12
        assert config.weights == "scratch" or config.weights == "run:masked-language-model"
    if size == "full" and config.task == "sst":
        assert config.weights in ("bert-base-uncased", "run:masked-language-model")


def test_the_three_sentiment_runs_differ_in_what_is_frozen_and_in_nothing_else():
    full, frozen, partial = (resolve(name) for name in ("sst-full", "sst-frozen", "sst-partial"))
    assert (full.epochs, full.lr, full.batch_size) == (3, 3e-5, 8)
    for other in (frozen, partial):
        changed = {line.split(":")[0] for line in recipes.differences(recipes.public(full), recipes.public(other))}
        assert changed <= {"freeze", "freeze_layers"} and changed


def test_the_two_small_berts_differ_in_their_start_and_in_nothing_else():
    changed = recipes.differences(*(recipes.public(resolve(n)) for n in ("small-bert-pretrained", "small-bert-random")))
    assert [line.split(":")[0] for line in changed] == ["init"]


def test_what_a_recipe_answers_to_is_published():
    for recipe in recipes.RECIPES.values():
        for report, table, row, column in recipe.published:
            assert published.row(report, table, row)[column].startswith(".")


@pytest.mark.parametrize("call, suggestion", [
    (lambda: resolve("sst-ful"), "sst-full"),
    (lambda: resolve("sst-full", "smal"), "small"),
    (lambda: resolve("sst-full", learning_rate=1), "known"),
    (lambda: make(epoch=3), "epochs"),
    (lambda: make(freeze="partially"), "partial"),
    (lambda: make(task="sstt"), "sst"),
    (lambda: make(encoder="bagg"), "bag"),
    (lambda: make(epochs=0), "at least 1"),
    (lambda: make(dropout=1.5), "between 0 and 1"),
    (lambda: make(lr=float("nan")), "negative"),
    (lambda: make(encoder="bag"), "--init random"),
    (lambda: make(weights="scratch"), "--init random"),
    (lambda: resolve("tabel1"), "table1"),
    (lambda: make(freeze_layers=4), "freeze is 'none'"),
    (lambda: make(task="mlm", freeze="full"), "leave freeze at 'none'"),
    (lambda: make(lora_r=4), "--adapt lora"),
    (lambda: make(lora_feed_forward=True), "--adapt lora"),
    (lambda: make(task="mlm", encoder="bag", init="random", hidden_size=8), "for a BERT"),
    (lambda: make(task="sst+quora", encoder="bag", init="random", hidden_size=8, pair_head="cross-both"), "another --pair-head"),
])
def test_what_is_unknown_or_impossible_is_refused_with_a_hint(call, suggestion):
    with pytest.raises(RecipeError) as error:
        call()
    assert suggestion in str(error.value) and "\n" not in str(error.value)


def test_options_that_were_not_given_are_left_to_the_recipe():
    assert resolve("sst-full", data=None, weights=None) == resolve("sst-full")
    assert resolve("sst-full", data="builtin").data == "builtin"


def test_no_directory_is_written_down(tmp_path):
    place = tmp_path / "secret" / "my data"
    place.mkdir(parents=True)
    config = make(weights=str(place), data=str(place), recipe="sst-full", precision="fp32", seed=4)
    assert recipes.run_name(config) == "small-my-data-my-data-fp32-4"
    assert str(tmp_path) not in json.dumps(recipes.public(config)) + recipes.run_name(config)
    assert recipes.public(config)["data"] == "my data"
    assert recipes.source_name("google/bert_uncased_L-2") == "google/bert_uncased_L-2"


def test_differences_name_what_alters_results_and_nothing_else():
    old, new = recipes.public(resolve("sst-full")), recipes.public(resolve("sst-full", lr=1e-5))
    assert recipes.differences(old, new) == ["lr: 3e-05 → 1e-05"]
    assert recipes.differences(old, dict(old, recipe="other", size="full")) == []
    older = {key: value for key, value in old.items() if key != "mask_rate"}    # written before that setting existed
    assert recipes.differences(older, old) == []
    assert recipes.differences(dict(older, mask_rate=0.5), old) == ["mask_rate: 0.5 → 0.15"]


def test_every_setting_is_an_option_with_help():
    assert set(HELP) == {f.name for f in dataclasses.fields(Config)} - {"recipe", "size"}


def test_listing_recipes_needs_no_torch():
    code = ("import sys; from minbert.run import cli; assert cli.main(['recipes', '--json']) == 0;"
            "assert cli.main(['exercises', '--json']) == 0; assert not {'torch', 'numpy', 'transformers'} & set(sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).returncode == 0
