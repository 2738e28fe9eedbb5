"""The classifier, freezing, the masked-language-model head, the optimizer's seam and the scores."""

import numpy as np
import pytest
import torch

from minbert import metrics
from minbert.bert import BertConfig, BertModel
from minbert.checks.engine import randomise
from minbert.classify import SentenceClassifier, freeze, trainable
from minbert.embeddings import BagOfEmbeddings, nearest_pieces
from minbert.mlm import MaskedLanguageModel, mask_tokens
from minbert.optim import make_optimizer
from minbert.pretrained import hf_name

TINY = BertConfig(50, 24, 3, 4, 40, max_positions=16, hidden_dropout=0.5, attention_dropout=0.5)


def classifier():
    torch.manual_seed(0)
    return SentenceClassifier(BertModel(TINY), classes=5, dropout=0.5)


def steps(model, n=3):
    """A few real training steps."""
    torch.manual_seed(1)
    optimizer = make_optimizer(model, lr=0.01, weight_decay=0.1)
    model.train()
    for _ in range(n):
        ids = torch.randint(1, 50, (4, 7))
        loss = torch.nn.functional.cross_entropy(model(ids, torch.ones_like(ids)), torch.randint(5, (4,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_classifier_equals_hugging_face():
    transformers = pytest.importorskip("transformers")
    model = randomise(classifier()).eval()
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
                                intermediate_size=40, max_position_embeddings=16, num_labels=5)
    ).double().eval()  # fmt: skip
    state = {"bert." + hf_name(name): p for name, p in model.encoder.named_parameters()}
    state |= {"classifier.weight": model.head.weight, "classifier.bias": model.head.bias}
    theirs.load_state_dict(state, strict=False)
    ids = torch.tensor([[3, 4, 5], [6, 7, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    assert torch.allclose(model(ids, mask), theirs(input_ids=ids, attention_mask=mask).logits, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "mode, layers, learns",
    [
        ("none", 0, {"embeddings", "layers.0", "layers.1", "layers.2", "pooler", "head"}),
        ("partial", 2, {"layers.2", "pooler", "head"}),
        ("partial", 0, {"layers.0", "layers.1", "layers.2", "pooler", "head"}),
        ("full", 0, {"head"}),
        ("embeddings", 0, {"layers.0", "layers.1", "layers.2", "pooler", "head"}),
        ("head", 0, {"embeddings", "layers.0", "layers.1", "layers.2", "pooler"}),
    ],
)
def test_what_is_frozen_stays_bit_identical_and_the_rest_learns(mode, layers, learns):
    model = freeze(classifier(), mode, layers)
    before = {name: p.clone() for name, p in model.named_parameters()}
    steps(model)
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    parts = {".".join(name.removeprefix("encoder.").split(".")[: 2 if "layers" in name else 1]) for name in changed}
    assert parts == learns
    assert {name for name, _ in trainable(model)} >= changed


def test_frozen_parts_have_no_dropout_in_training():
    model = freeze(classifier(), "full").train()
    ids = torch.randint(1, 50, (2, 6))
    mask = torch.ones_like(ids)
    assert torch.equal(model.encoder(ids, mask)[1], model.encoder(ids, mask)[1])
    assert model.dropout.training
    model = freeze(model, "all")  # for evaluation: nothing is random, not even in training mode
    assert torch.equal(model(ids, mask), model(ids, mask)) and not trainable(model)
    model = freeze(model, "embeddings")
    assert not model.encoder.embeddings.training and model.encoder.layers[0].training and model.dropout.training
    model = freeze(model, "head")
    assert model.encoder.embeddings.training and not model.head.training and not model.head.weight.requires_grad
    model = freeze(model, "partial", layers=1)
    assert not model.encoder.layers[0].training and model.encoder.layers[1].training
    model = freeze(model, "full", frozen_dropout=True)
    assert model.encoder.layers[0].training
    assert not torch.equal(model.encoder(ids, mask)[1], model.encoder(ids, mask)[1])


def test_freezing_is_undone_by_none():
    model = freeze(freeze(classifier(), "full"), "none").train()
    assert len(trainable(model)) == len(list(model.parameters()))
    assert model.encoder.training


def test_freezing_refuses_what_it_can_not_do():
    with pytest.raises(ValueError, match="'half' is none of none, embeddings, partial, full, head, all"):
        freeze(classifier(), "half")
    for layers in (4, -1):                               # -1 as an index would freeze all but the last
        with pytest.raises(ValueError, match=f"{layers} layers asked for, the encoder has 3"):
            freeze(classifier(), "partial", layers)
    bag = SentenceClassifier(BagOfEmbeddings(50, 8), 2)
    for mode, part in [("partial", "layers"), ("embeddings", "embeddings")]:
        with pytest.raises(ValueError, match=f"BagOfEmbeddings has no {part}"):
            freeze(bag, mode)


def test_every_parameter_is_in_one_group_and_only_matrices_decay():
    model = freeze(classifier(), "partial", 1)
    groups = make_optimizer(model, weight_decay=0.25).param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert len(ids) == len(set(ids)) and set(ids) == {id(p) for _, p in trainable(model)}
    for group in groups:
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.25}
    with pytest.raises(ValueError, match="nothing to train"):
        for parameter in model.parameters():
            parameter.requires_grad = False
        make_optimizer(model)
    with pytest.raises(ValueError, match="none of adamw-torch"):
        make_optimizer(classifier(), "adam")


def test_the_masked_language_model_equals_hugging_face():
    transformers = pytest.importorskip("transformers")
    model = randomise(MaskedLanguageModel(BertModel(TINY))).eval()
    theirs = transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=3, num_attention_heads=4,
                                intermediate_size=40, max_position_embeddings=16)
    ).double().eval()  # fmt: skip
    state = {"bert." + hf_name(n): p for n, p in model.bert.named_parameters() if not n.startswith("pooler")}
    head = "cls.predictions."
    state |= {head + "transform.dense.weight": model.dense.weight, head + "transform.dense.bias": model.dense.bias,
              head + "transform.LayerNorm.weight": model.norm.weight, head + "transform.LayerNorm.bias": model.norm.bias,
              head + "bias": model.bias, head + "decoder.bias": model.bias,
              head + "decoder.weight": model.bert.embeddings.word.weight}  # fmt: skip
    result = theirs.load_state_dict(state, strict=False)
    assert not result.unexpected_keys
    ids, mask = torch.tensor([[3, 4, 5, 9], [6, 7, 8, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[-100, 8, -100, 2], [11, -100, -100, -100]])
    expected = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.allclose(model(ids, mask)[mask.bool()], expected.logits[mask.bool()], atol=1e-9, rtol=0)
    assert torch.allclose(model.loss(ids, mask, labels), expected.loss, atol=1e-9, rtol=0)
    with pytest.raises(ValueError, match="no token was masked"):
        model.loss(ids, mask, torch.full_like(labels, -100))


def test_masking_follows_the_80_10_10_rule_and_spares_special_tokens():
    ids = torch.randint(5, 1000, (400, 100), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1], ids[:, 60] = 2, 3, 0
    before = ids.clone()
    masked, labels = mask_tokens(ids, {0, 2, 3}, 4, 1000, torch.Generator().manual_seed(1))
    again, _ = mask_tokens(ids, {0, 2, 3}, 4, 1000, torch.Generator().manual_seed(1))
    assert torch.equal(masked, again) and torch.equal(ids, before)
    chosen = labels != -100
    assert torch.equal(labels[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])
    assert not chosen[:, [0, -1, 60]].any()
    assert abs(chosen.sum().item() / (400 * 97) - 0.15) < 0.005
    hidden = (masked == 4)[chosen].double().mean().item()
    kept = (masked == ids)[chosen].double().mean().item()
    assert abs(hidden - 0.8) < 0.02 and abs(kept - 0.1) < 0.02


def test_scores_by_hand():
    labels, predictions = [0, 0, 1, 2], [0, 1, 1, 1]
    assert metrics.accuracy(predictions, labels) == 0.5
    assert metrics.confusion_matrix(predictions, labels, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    # F1: class 0 2·1/(2+1) = 2/3, class 1 2·1/(2+2) = 1/2, class 2 0.
    assert metrics.macro_f1(predictions, labels, 3) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert metrics.majority_share(labels) == 0.5


def test_scores_equal_the_definition_on_random_labels():
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 5, (2, 300))
    f1 = []
    for k in range(5):
        hits = ((labels == k) & (predictions == k)).sum()
        precision, recall = hits / (predictions == k).sum(), hits / (labels == k).sum()
        f1.append(2 * precision * recall / (precision + recall))
    assert metrics.macro_f1(predictions, labels, 5) == pytest.approx(np.mean(f1))


def test_scores_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        metrics.accuracy([], [])
    with pytest.raises(ValueError, match="3 predictions for 2 labels"):
        metrics.accuracy([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match=r"two lists \(N,\), not the shapes \(3, 1\) and \(3,\)"):
        metrics.accuracy([[1], [2], [3]], [1, 2, 3])


@pytest.mark.parametrize("predictions, labels, odd", [([0, 1], [-1, 1], "-1"), ([0, 3], [0, 1], "3"), ([0.0, 1.0], [0, 1], "0.0")])
def test_what_is_no_class_is_refused_and_not_counted_as_another(predictions, labels, odd):
    for score in (metrics.confusion_matrix, metrics.macro_f1):
        with pytest.raises(ValueError, match=f"{odd} is no class: they are whole numbers from 0 to 2"):
            score(predictions, labels, 3)
    with pytest.raises(ValueError, match="is no class"):
        metrics.binary_f1(predictions, labels)


def test_neighbours_by_hand():
    table = torch.tensor([[1.0, 0.0], [0.2, 0.01], [3.0, 4.0], [-1.0, 0.0], [0.0, 0.0]])     # long vectors are not nearer
    found = nearest_pieces(table, 0)                     # fewer than k: all but the piece itself
    assert [number for number, _ in found] == [1, 2, 4, 3]
    assert [cosine for _, cosine in found] == pytest.approx([20 / 401**0.5, 0.6, 0.0, -1.0])
    assert nearest_pieces(table, 0, k=2) == found[:2]


def test_a_bag_of_embeddings_is_the_mean_of_its_words_in_any_order():
    bag = BagOfEmbeddings(20, 4, dropout=1.0).eval()
    ids, mask = torch.tensor([[3, 5, 9], [9, 3, 5], [7, 0, 0]]), torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0]])
    hidden, pooled = bag(ids, mask)
    assert torch.equal(hidden, bag.word(ids))
    assert torch.allclose(pooled[0], bag.word.weight[[3, 5, 9]].mean(dim=0)) and torch.allclose(pooled[0], pooled[1])
    assert torch.equal(pooled[2], bag.word.weight[7])
    assert not bag.train()(ids, mask)[1].any()           # everything is dropped: in training only


def test_the_classifiers_dropout_is_on_the_sentence_vector_and_in_training_only():
    model = classifier().double()
    model.dropout.p = 1.0
    ids, mask = torch.tensor([[3, 4, 5]]), torch.ones(1, 3)
    assert torch.equal(model.train()(ids, mask), model.head.bias[None])
    assert not torch.equal(model.eval()(ids, mask), model.head.bias[None])
