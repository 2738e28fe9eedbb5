"""Pairs: how two sentences become one input, the heads by hand and against PyTorch, the losses, what does not fit."""

import pytest
import torch
from torch import nn

from minbert import pairs
from minbert.bert import BertConfig, BertModel

TINY = BertConfig(vocab_size=60, hidden_size=16, layers=2, heads=2, intermediate_size=32, max_positions=32,
                  hidden_dropout=0.0, attention_dropout=0.0)


def encoder():
    torch.manual_seed(0)
    model = BertModel(TINY).double().eval()
    for parameter in model.parameters():             # fresh weights hide mistakes
        nn.init.normal_(parameter, std=0.3)
    return model


def batch(rows=3, length=6, seed=1):
    """2B rows: the first B are the first sentences. Some are padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (2 * rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, 4:] = mask[rows + 1, 3:] = 0
    return ids * mask, mask


# ---- joined pairs ------------------------------------------------------------------------------------------------

def test_a_joined_pair_by_hand():
    assert pairs.joined_ids([2, 11, 12, 3], [2, 21, 3], 128) == ([2, 11, 12, 3, 21, 3], [0, 0, 0, 0, 1, 1], False)


@pytest.mark.parametrize("most, wanted", [
    (7, [2, 11, 12, 13, 3, 21, 3]),
    (6, [2, 11, 12, 3, 21, 3]),
    (5, [2, 11, 3, 21, 3]),
])
def test_the_longer_side_is_cut_and_both_keep_their_separator(most, wanted):
    ids, types, cut = pairs.joined_ids([2, 11, 12, 13, 14, 3], [2, 21, 3], most)
    assert ids == wanted and cut and len(types) == len(ids) and types[-1] == 1
    assert types.index(1) == ids.index(3) + 1


def test_a_joined_pair_equals_the_tokenizers_own():
    from minbert.pretrained import load_pretrained

    tokenizer = load_pretrained("minilm")[1]
    a, b = "How do I learn to swim?", "What is the best way of learning to swim as an adult?"
    joined = tokenizer.encode(a, b)
    ids, types, cut = pairs.joined_ids(tokenizer.encode(a).ids, tokenizer.encode(b).ids)
    assert (ids, types, cut) == (joined.ids, joined.type_ids, False)


def test_a_joined_model_sees_the_token_types():
    model = pairs.JoinedPairs(encoder(), 2, dropout=0.0).double().eval()
    ids, mask = batch()
    types = torch.zeros_like(ids)
    types[:, 3:] = 1
    assert not torch.allclose(model(ids, mask, types), model(ids, mask, torch.zeros_like(ids)), atol=1e-3)


# ---- apart -------------------------------------------------------------------------------------------------------

def test_both_sides_go_through_one_encoder_as_if_alone():
    model = pairs.ApartPairs(encoder(), pairs.CosineScore(), pooling="mean", dropout=0.0).eval()
    ids, mask = batch()
    one = torch.cat([model.embed(ids[i:i + 1, : mask[i].sum()], mask[i:i + 1, : mask[i].sum()]) for i in range(6)])
    assert torch.allclose(model.embed(ids, mask), one, atol=1e-12)      # padding does not leak
    expected = nn.functional.cosine_similarity(one[:3], one[3:])
    assert torch.allclose(model(ids, mask)[:, 0], expected, atol=1e-12)
    with pytest.raises(ValueError, match="3 sentences are no pairs"):      # 2 against 1 would be compared by broadcasting
        model(ids[:3], mask[:3])


def test_vector_pooling_is_u_v_and_the_size_of_their_difference():
    head = pairs.VectorHead(2, 1)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0, 0.5, 0.25]]))
        head.linear.bias.zero_()
    u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -2.0]])
    # 1 + 20 + 300 - 2000 + .5 · |1 - 3| + .25 · |2 + 2|
    assert head(u, v).tolist() == [[1 + 20 + 300 - 2000 + 1 + 1]]


def test_the_additive_head_can_not_compare():
    """For any weights, score(a, b) + score(c, d) = score(a, d) + score(c, b): the pairing makes no difference."""
    torch.manual_seed(0)
    head = pairs.AdditiveHead(8, 3).double()
    a, b, c, d = torch.randn(4, 5, 8, dtype=torch.float64)
    assert torch.allclose(head(a, b) + head(c, d), head(a, d) + head(c, b), atol=1e-12)
    compare = pairs.VectorHead(8, 3).double()
    assert not torch.allclose(compare(a, b) + compare(c, d), compare(a, d) + compare(c, b), atol=1e-3)


@pytest.mark.parametrize("cosine, wanted", [
    (1.0, [0.0, -0.2, 0.1, 0.4, 0.7, 1.0]), (0.0, [1.0, 0.8, 0.9, 0.6, 0.3, 0.0]), (0.4, [0.6, 0.4, 0.7, 1.0, 0.7, 0.4]),
])
def test_the_fixed_cosine_logits_by_hand(cosine, wanted):
    assert pairs.cosine_logits(torch.tensor([cosine]), 6)[0].tolist() == pytest.approx(wanted, abs=1e-6)
    assert pairs.cosine_logits(torch.tensor([cosine]), 2)[0].tolist() == pytest.approx([1 - cosine, cosine])


def test_the_fixed_map_never_says_one_and_is_never_sure_of_a_paraphrase():
    cosine = torch.linspace(-1, 1, 4001)
    assert set(pairs.cosine_logits(cosine, 6).argmax(-1).tolist()) == {0, 2, 3, 4, 5}
    assert pairs.cosine_logits(cosine, 2).softmax(-1)[:, 1].max().item() == pytest.approx(0.7311, abs=1e-4)


def test_the_learned_map_begins_as_the_fixed_one_and_can_say_one():
    torch.manual_seed(0)
    u, v = torch.randn(2, 50, 8)
    fixed, learned = pairs.CosineHead(6), pairs.CosineHead(6, learned=True)
    assert torch.equal(fixed(u, v), learned(u, v))
    with torch.no_grad():
        learned.shift[1] += 0.5
    assert 1 in learned(u, v).argmax(-1).tolist()


# ---- cross-attention ---------------------------------------------------------------------------------------------

def cross(form):
    torch.manual_seed(3)
    module = pairs.CrossAttention(16, 2, dropout=0.0, form=form).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@pytest.mark.parametrize("form", ["standard", "printed"])
def test_cross_attention_equals_pytorchs(form):
    module = cross(form)
    oracle = nn.MultiheadAttention(16, 2, batch_first=True).double()
    with torch.no_grad():
        oracle.in_proj_weight.copy_(torch.cat([module.query.weight, module.key.weight, module.value.weight]))
        oracle.in_proj_bias.copy_(torch.cat([module.query.bias, module.key.bias, module.value.bias]))
        oracle.out_proj.weight.copy_(module.output.weight)
        oracle.out_proj.bias.copy_(module.output.bias)
    first, second = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    keys = second if form == "standard" else first
    expected, _ = oracle(first, keys, second, key_padding_mask=mask == 0)
    assert torch.allclose(module(first, second, mask), expected, atol=1e-9)


def test_permuting_sentence_two_changes_the_printed_form_only():
    first, second = torch.randn(2, 3, 5, 16, dtype=torch.float64)
    mask, order = torch.ones(3, 5, dtype=torch.long), torch.tensor([3, 0, 4, 1, 2])
    standard, printed = cross("standard"), cross("printed")
    assert torch.allclose(standard(first, second, mask), standard(first, second[:, order], mask), atol=1e-12)
    assert not torch.allclose(printed(first, second, mask), printed(first, second[:, order], mask), atol=1e-3)


def test_the_standard_form_takes_sentences_of_unequal_length_and_the_printed_form_says_no():
    first, second = torch.randn(2, 4, 16, dtype=torch.float64), torch.randn(2, 7, 16, dtype=torch.float64)
    assert cross("standard")(first, second, torch.ones(2, 7)).shape == (2, 4, 16)
    with pytest.raises(ValueError, match="pad both to one length .here 4 and 7"):
        cross("printed")(first, second, torch.ones(2, 7))


@pytest.mark.parametrize("form", pairs.CROSS_FORMS)
def test_padding_does_not_leak_into_a_cross_pair(form):
    model = pairs.CrossPairs(encoder(), 2, form, dropout=0.0).double().eval()
    ids, mask = batch()
    longer = nn.functional.pad(ids, (0, 4)), nn.functional.pad(mask, (0, 4))
    assert torch.allclose(model(ids, mask), model(*longer), atol=1e-10)


def test_both_directions_read_both_sentences():
    model = pairs.CrossPairs(encoder(), 2, "both", dropout=0.0).double().eval()
    assert model.head.in_features == 32
    ids, mask = batch()
    model(ids, mask).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.back.parameters() if p.ndim > 1)


@pytest.mark.parametrize("form", pairs.CROSS_FORMS)
def test_a_cross_pair_is_residual_plus_attention_averaged_over_the_asking_sentence(form):
    """Pair by pair and without padding, from the parts; only the printed form needs both at one length."""
    model = pairs.CrossPairs(encoder(), 2, form, dropout=0.0).double().eval()
    ids, mask = batch()
    mask[0, 4:], mask[4, 3:] = 0, 0                      # of two pairs, one side each is shorter
    for i in range(3):
        (a, b), (n, m) = model.encoder(ids[[i, i + 3]], mask[[i, i + 3]])[0], mask[[i, i + 3]].sum(dim=1).tolist()
        a, b = a[None], b[None]
        if form == "printed":
            asked = a + model.cross(a, b, mask[[i + 3]])
        else:
            asked = a[:, :n] + model.cross(a[:, :n], b[:, :m], torch.ones(1, m))
        vectors = [asked[0, :n].mean(dim=0)]
        if form == "both":
            vectors.append((b[:, :m] + model.back(b[:, :m], a[:, :n], torch.ones(1, n)))[0].mean(dim=0))
        assert torch.allclose(model(ids, mask)[i], model.head(torch.cat(vectors)), atol=1e-10)


@pytest.mark.parametrize("make", [
    lambda: pairs.JoinedPairs(encoder(), 2, dropout=1.0), lambda: pairs.JoinedPairs(encoder(), 2, hidden=8, dropout=1.0),
    lambda: pairs.ApartPairs(encoder(), pairs.VectorHead(16, 2), dropout=1.0),
    lambda: pairs.CrossPairs(encoder(), 2, "both", dropout=1.0),
    lambda: pairs.ProjectedHeads(encoder(), {"sign": 2}, 8, dropout=1.0),
], ids=["joined", "joined-deep", "apart", "cross", "projected"])
def test_dropout_stands_before_the_head_and_in_training_only(make):
    model = make().double()
    ids, mask = batch()
    more = {"JoinedPairs": (torch.zeros_like(ids),), "ProjectedHeads": ("sign",)}.get(type(model).__name__, ())
    bias = [p for name, p in model.named_parameters() if name.endswith("bias") and p.shape == (2,)][-1]
    assert (model.train()(ids, mask, *more) == bias).all()       # with p = 1 nothing but the bias of the last layer is left
    assert not (model.eval()(ids, mask, *more) == bias).any()


def test_a_deeper_head_is_two_hidden_layers_with_relu():
    head = pairs.head_layers(3, 2, hidden=4, dropout=0.0).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    first, second, last = (layer for layer in head if isinstance(layer, nn.Linear))
    assert [layer.weight.shape for layer in (first, second, last)] == [(4, 3), (4, 4), (2, 4)]
    assert torch.allclose(head(x), last(second(first(x).clamp(min=0)).clamp(min=0)), atol=1e-12)
    assert isinstance(pairs.head_layers(3, 2), nn.Linear)


@pytest.mark.parametrize("make", [
    lambda pooling: pairs.ApartPairs(encoder(), pairs.VectorHead(5, 2), pooling, projection=5),
    lambda pooling: pairs.ProjectedHeads(encoder(), {"sign": 2}, 5, pooling),
], ids=["apart", "projected"])
def test_the_projection_is_on_the_pooled_or_on_the_mean_vector(make):
    ids, mask = batch()
    for pooling in ("pooler", "mean"):
        model = make(pooling).double().eval()
        hidden, pooled = model.encoder(ids, mask)
        mean = torch.stack([row[:n].mean(dim=0) for row, n in zip(hidden, mask.sum(dim=1))])
        expected = model.projection({"pooler": pooled, "mean": mean}[pooling])
        assert expected.shape == (6, 5) and torch.allclose(model.embed(ids, mask), expected, atol=1e-12)
    with pytest.raises(ValueError, match="pooling: 'max' is none of pooler, mean"):
        make("max")


def test_s3s_projection_has_two_heads_on_256_numbers():
    model = pairs.ProjectedHeads(encoder(), {"sign": 2, "score": 1}, dropout=0.0).double().eval()
    ids, mask = batch()
    assert model.embed(ids, mask).shape == (6, 256)
    assert model(ids, mask, "sign").shape == (6, 2) and model(ids, mask, "score").shape == (6, 1)


# ---- losses ------------------------------------------------------------------------------------------------------

LABELS = torch.tensor([0.0, 1.0, 1.0])
SCORES = torch.tensor([0.4, 2.6, 5.0])


@pytest.mark.parametrize("objective, outputs, labels, wanted", [
    ("ce2", torch.tensor([[0.0, 0.0]] * 3), LABELS, 0.693147),
    ("ce2", torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 0.0]]), LABELS, (0.126928 + 2.126928 + 0.693147) / 3),
    ("bce", torch.zeros(3, 1), LABELS, 0.693147),
    ("bce", torch.tensor([[2.0], [2.0], [-1.0]]), LABELS, (2.126928 + 0.126928 + 1.313262) / 3),
    ("classes", torch.zeros(3, 6), SCORES, 1.791759),
    ("classes", 3 * torch.eye(6)[[0, 3, 5]], SCORES, 0.222291),      # 2.6 is class 3: cut off, it would cost 1.22
    ("mse", torch.tensor([[0.4], [1.6], [3.0]]), SCORES, (0 + 1 + 4) / 3),
    ("huber", torch.tensor([[0.4], [2.1], [3.0]]), SCORES, (0 + 0.125 + 1.5) / 3),
    ("cosine", torch.tensor([[0.08], [0.02], [1.0]]), SCORES, 0.25 / 3),
])
def test_every_loss_by_hand(objective, outputs, labels, wanted):
    assert pairs.pair_loss(objective, outputs, labels).item() == pytest.approx(wanted, abs=1e-5)


def test_hubers_loss_is_delta_times_smooth_l1():
    outputs = torch.randn(20, 1, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.linspace(0, 5, 20)
    expected = 0.5 * nn.functional.smooth_l1_loss(outputs[:, 0], labels, beta=0.5)
    assert pairs.pair_loss("huber", outputs, labels, delta=0.5).item() == pytest.approx(expected.item())


def test_labels_are_rounded_and_not_cut_off():
    assert pairs.nearest_class(torch.tensor([0.4, 0.5, 1.8, 2.5, 4.4, 4.6, 5.0])).tolist() == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("objective, width", [("bce", 1), ("mse", 1), ("huber", 1), ("cosine", 1), ("ce2", 2), ("classes", 6)])
def test_a_batch_of_one_works_and_a_wrong_width_is_refused(objective, width):
    assert pairs.pair_loss(objective, torch.zeros(1, width), torch.tensor([1.0])).shape == ()
    with pytest.raises(ValueError, match="needs outputs of shape"):
        pairs.pair_loss(objective, torch.zeros(3, width + 1), torch.zeros(3))
    with pytest.raises(ValueError, match="needs outputs of shape"):
        pairs.pair_loss(objective, torch.zeros(3), torch.zeros(3))      # (B,) against (B,) would hide (B, 1)
    with pytest.raises(ValueError, match=r"needs labels of shape \(B,\), not \(3, 1\)"):
        pairs.pair_loss(objective, torch.zeros(3, width), torch.zeros(3, 1))     # (B,) against (B, 1) is B·B differences


def test_predictions_are_on_the_scale_of_the_labels():
    six = torch.tensor([[0.0, 0.0, 0.0, 0.0, 9.0, 9.5]])
    assert pairs.pair_prediction("classes", six).tolist() == [5]
    assert pairs.pair_prediction("classes", six, expectation=True).item() == pytest.approx(4.6221, abs=2e-3)
    assert pairs.pair_prediction("bce", torch.tensor([[0.1], [-0.1]])).tolist() == [1, 0]
    assert pairs.pair_prediction("ce2", torch.tensor([[0.1, 0.2], [0.2, 0.1]])).tolist() == [1, 0]
    assert pairs.pair_prediction("mse", torch.tensor([[3.5]])).tolist() == [3.5]
    assert pairs.pair_prediction("cosine", torch.tensor([[0.5]])).tolist() == [2.5]
    with pytest.raises(ValueError, match="'cosin' is none of ce2, bce"):
        pairs.pair_prediction("cosin", torch.tensor([[0.5]]))


# ---- what fits ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", pairs.OBJECTIVES)
@pytest.mark.parametrize("head", pairs.HEADS)
def test_whatever_fits_can_be_trained_for_a_step(task, head):
    ids, mask = batch()
    for objective in pairs.OBJECTIVES[task]:
        if objective not in pairs.HEADS[head]:
            continue
        model = pairs.pair_model(encoder(), task, head, objective, dropout=0.0).double()
        inputs = (ids, mask) if model.apart else (ids[:3], mask[:3], torch.zeros_like(ids[:3]))
        loss = pairs.pair_loss(objective, model(*inputs), torch.tensor([0.0, 1.0, 1.0]))
        loss.backward()
        assert loss.isfinite() and model.encoder.layers[0].up.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("head, objective, wanted", [
    ("joined", "mse", pairs.JoinedPairs), ("joined-deep", "mse", pairs.JoinedPairs), ("vector", "mse", pairs.VectorHead),
    ("additive", "mse", pairs.AdditiveHead), ("cosine", "cosine", pairs.CosineScore), ("cosine-fixed", "classes", pairs.CosineHead),
    ("cosine-learned", "classes", pairs.CosineHead), ("cross-standard", "mse", "standard"), ("cross-printed", "mse", "printed"),
    ("cross-both", "mse", "both"),
])
def test_a_name_stands_for_its_head(head, objective, wanted):
    model = pairs.pair_model(encoder(), "similarity", head, objective, pooling="mean", projection=0, dropout=0.3)
    assert model.dropout.p == 0.3
    if isinstance(wanted, str):
        assert type(model) is pairs.CrossPairs and model.form == wanted
        assert model.cross.form == ("printed" if wanted == "printed" else "standard")
    elif wanted is pairs.JoinedPairs:
        assert type(model) is wanted and isinstance(model.head, nn.Sequential) == (head == "joined-deep")
    else:
        assert type(model) is pairs.ApartPairs and type(model.head) is wanted and model.pooling == "mean"
        assert getattr(model.head, "learned", False) == (head == "cosine-learned")


@pytest.mark.parametrize("task, head, objective, message", [
    ("sts", "joined", "mse", "task 'sts' is none of paraphrase, similarity"),
    ("similarity", "joind", "mse", "head 'joind' is none of joined"),
    ("similarity", "joined", "bce", "does not fit the task similarity; it takes classes, mse, huber, cosine"),
    ("similarity", "cosine-fixed", "mse", "it takes classes"),
    ("paraphrase", "cosine", "bce", "heads for it: joined, joined-deep, vector"),
])
def test_what_does_not_fit_is_refused_with_what_would(task, head, objective, message):
    with pytest.raises(ValueError, match=message):
        pairs.pair_model(encoder(), task, head, objective)
