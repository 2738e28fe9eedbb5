"""The comparison with Hugging Face over several seeds: its arithmetic by hand, and its training in a few steps."""

import dataclasses

import pytest

from benchmarks import agreement
from minbert.run import recipes


def test_the_bound_is_two_standard_errors_of_the_difference_by_hand():
    found = agreement.compare([0.48, 0.50, 0.49], [0.47, 0.48, 0.49])     # variances 1e-4 and 1e-4, n = 3 each
    assert found["difference"] == pytest.approx(0.01)
    assert found["bound"] == pytest.approx(2 * (2e-4 / 3) ** 0.5)
    assert found["agree"]
    assert not agreement.compare([0.60, 0.61, 0.62], [0.47, 0.48, 0.49])["agree"]


def test_hugging_face_trains_on_our_batches_and_gives_a_score_an_epoch():
    pytest.importorskip("transformers")
    config = recipes.resolve("sst-batch-32", data="builtin", precision="fp32")
    config = dataclasses.replace(config, epochs=2, steps_per_epoch=2, max_length=32)
    scores = agreement.hugging_face_run(config, seed=0, progress=False)
    assert len(scores) == 2 and all(0.05 < score < 0.6 for score in scores)
    assert scores == agreement.hugging_face_run(config, seed=0, progress=False)      # nothing is left to chance


def test_a_missing_record_is_named_before_any_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MINBERT_RESULTS", str(tmp_path))
    with pytest.raises(SystemExit, match="minbert run sst-batch-32 .* --seeds 3"):
        agreement.recorded("sst-batch-32", "hub", [3])


def test_seeds_that_are_there_are_not_trained_again_and_other_settings_are_refused(tmp_path, monkeypatch):
    import json
    import sys

    trained = []
    monkeypatch.setattr(agreement, "hugging_face_run", lambda config, seed: trained.append(seed) or [0.4, 0.5])
    out = tmp_path / "agreement.json"

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["agreement", "--data", "builtin", "--out", str(out), "--train-only", *more])
        agreement.main()

    run("--seeds", "0", "1")
    run("--seeds", "0", "1", "2")
    assert trained == [0, 1, 2]
    result = json.loads(out.read_text())
    del result["config"]["rates"]                    # written before that setting was there: its default is meant
    out.write_text(json.dumps(result))
    run("--seeds", "0", "1", "2")
    with pytest.raises(SystemExit, match="recipe|lr|batch_size: 32 → 8"):
        run("--seeds", "0", "1", "--recipe", "sst-full")
