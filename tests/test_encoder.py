"""The encoder against Hugging Face's BertModel, with every parameter random, and its dropout exactly."""

import pytest
import torch

from minbert.attention import MultiHeadAttention, OneAttentionLayer, attention, mask_bias, merge_heads, split_heads
from minbert.bert import BertConfig, BertLayer, BertModel
from minbert.checks.engine import randomise
from minbert.embeddings import BertEmbeddings, mean_pool
from minbert.fast import fast_attention, use_fast
from minbert.pretrained import hf_name, load_pretrained, load_state
from minbert.tokens import encode, pad

TINY = BertConfig(
    vocab_size=50, hidden_size=24, layers=3, heads=4, intermediate_size=40, max_positions=16,
    hidden_dropout=0.0, attention_dropout=0.0,
)  # fmt: skip


def hugging_face(config, **options):
    transformers = pytest.importorskip("transformers")
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=config.vocab_size, hidden_size=config.hidden_size, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions, hidden_dropout_prob=config.hidden_dropout,
            attention_probs_dropout_prob=config.attention_dropout, **options,
        )
    ).double()  # fmt: skip


@pytest.fixture
def batch():
    """Rows of 9, 5 and 1 tokens, both token types in each."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(1, TINY.vocab_size, (3, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 5, 1])[:, None]).long()
    types = (torch.arange(9) >= torch.tensor([4, 2, 0])[:, None]).long()
    return input_ids * mask, mask, types


def twins(seed=0, implementation="eager"):
    """Our model and Hugging Face's with the same random weights, float64."""
    ours = randomise(BertModel(TINY), seed).train()
    theirs = hugging_face(TINY, attn_implementation=implementation).train()
    missing = theirs.load_state_dict({hf_name(n): p for n, p in ours.named_parameters()}, strict=False)
    assert not missing.unexpected_keys and not [k for k in missing.missing_keys if "position_ids" not in k]
    return ours, theirs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forward_and_every_gradient_equal_hugging_face(seed, batch):
    ours, theirs = twins(seed)
    ids, mask, types = batch
    hidden, pooled = ours(ids, mask, types)
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types)
    real = mask.bool()
    assert torch.allclose(hidden[real], expected.last_hidden_state[real], atol=1e-9, rtol=0)
    assert torch.allclose(pooled, expected.pooler_output, atol=1e-9, rtol=0)

    weights = torch.randn(hidden.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    ((hidden * weights)[real].sum() + pooled.square().sum()).backward()
    ((expected.last_hidden_state * weights)[real].sum() + expected.pooler_output.square().sum()).backward()
    theirs_grad = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.allclose(parameter.grad, theirs_grad[hf_name(name)], atol=1e-9, rtol=1e-9), name


def test_the_comparison_would_notice_a_tanh_gelu_and_swapped_norms(batch, monkeypatch):
    # The witness of the witness: with default values both changes stay small or invisible; with random ones they don't.
    ids, mask, types = batch
    ours, theirs = twins()
    expected = theirs(input_ids=ids, attention_mask=mask, token_type_ids=types).pooler_output
    for layer in ours.layers:
        layer.attention_norm, layer.output_norm = layer.output_norm, layer.attention_norm
    assert (ours(ids, mask, types)[1] - expected).abs().max() > 1e-3
    ours, _ = twins()
    gelu = torch.nn.functional.gelu
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: gelu(x, approximate="tanh"))
    assert (ours(ids, mask, types)[1] - expected).abs().max() > 1e-6


def test_the_plain_and_the_fast_model_are_equal(batch):
    ids, mask, types = batch
    plain = randomise(BertModel(TINY)).eval()
    expected = plain(ids, mask, types)
    fast = use_fast(plain)
    assert all(layer.attention.attend is fast_attention for layer in fast.layers)
    for got, want in zip(fast(ids, mask, types), expected):
        assert torch.allclose(got, want, atol=1e-12, rtol=0)
    assert all(layer.attention.attend is attention for layer in use_fast(fast, on=False).layers)
    fast.layers[1].attention.keep_probabilities = True   # for a picture: the fused kernel has none to keep
    use_fast(fast)(ids, mask, types)
    assert fast.layers[1].attention.probabilities.shape == (3, 4, 9, 9) and fast.layers[0].attention.probabilities is None


def test_padding_changes_nothing(batch):
    ids, mask, types = batch
    model = randomise(BertModel(TINY)).eval()
    together = model(ids, mask, types)[1]
    for row, length in enumerate([9, 5, 1]):
        alone = model(ids[row : row + 1, :length], mask[row : row + 1, :length], types[row : row + 1, :length])[1]
        assert torch.allclose(together[row], alone[0], atol=1e-12, rtol=0)


def test_real_weights_equal_hugging_face_in_float32():
    transformers = pytest.importorskip("transformers")
    ours, tokenizer, info = load_pretrained("minilm")
    theirs = transformers.BertModel.from_pretrained(info.path).eval()
    ids, mask = pad(encode(tokenizer, ["A slow film, and a moving one.", "No.", "Unwatchable 3/10 🙂"]).ids)
    with torch.no_grad():
        hidden, pooled = ours(ids, mask)
        expected = theirs(input_ids=ids, attention_mask=mask)
    real = mask.bool()
    assert torch.allclose(hidden[real], expected.last_hidden_state[real], atol=1e-5, rtol=0)
    assert torch.allclose(pooled, expected.pooler_output, atol=1e-5, rtol=0)


# Dropout with p = 1 sets everything it acts on to 0, so where it sits can be told exactly.


def test_attention_dropout_acts_on_the_probabilities():
    module = randomise(MultiHeadAttention(8, 2, dropout=1.0)).train()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.equal(module(x), module.output.bias.expand(2, 5, 8))  # context 0, so only the output's bias is left
    assert not torch.equal(module.eval()(x), module.output.bias.expand(2, 5, 8))


def test_hidden_dropout_acts_on_both_sublayers_before_the_residual():
    config = BertConfig(hidden_size=8, heads=2, intermediate_size=16, hidden_dropout=1.0, attention_dropout=0.0)
    layer = randomise(BertLayer(config)).train()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert torch.equal(layer(x), layer.output_norm(layer.attention_norm(x)))


def test_embedding_dropout_acts_after_the_layer_normalisation():
    embeddings = randomise(BertEmbeddings(50, 8, dropout=1.0)).train()
    assert torch.equal(embeddings(torch.tensor([[3, 4]])), torch.zeros(1, 2, 8, dtype=torch.float64))


def test_hidden_and_attention_dropout_come_from_their_own_settings():
    model = BertModel(BertConfig(50, 8, 2, 2, 16, hidden_dropout=0.25, attention_dropout=0.5))
    assert model.embeddings.dropout.p == model.layers[1].dropout.p == 0.25
    assert model.layers[1].attention.dropout == 0.5


# The parts


def test_attention_by_hand():
    # One query (1, 0) and two keys (1, 0), (0, 0) with Dh = 2: scores 1/√2 and 0.
    q, k = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    v = torch.tensor([[[[1.0, 10.0], [3.0, 20.0]]]])
    context, probabilities = attention(q, k, v)
    share = 1 / (1 + 2.718281828459045 ** -(0.5**0.5))
    assert torch.allclose(probabilities, torch.tensor([[[[share, 1 - share]]]]))
    assert torch.allclose(context, torch.tensor([[[[share * 1 + (1 - share) * 3, share * 10 + (1 - share) * 20]]]]))


def test_attention_equals_torch_with_padded_rows():
    q, k, v = torch.randn(3, 2, 4, 7, 6, dtype=torch.float64)
    mask = (torch.arange(7) < torch.tensor([7, 3])[:, None]).long()
    context, probabilities = attention(q, k, v, mask_bias(mask, q.dtype))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None].bool())
    assert torch.allclose(context, expected, atol=1e-12, rtol=0)
    assert torch.equal(probabilities[1, :, :, 3:], torch.zeros(4, 7, 4, dtype=torch.float64))
    assert torch.allclose(fast_attention(q, k, v, mask_bias(mask, q.dtype))[0], expected, atol=1e-12, rtol=0)


def test_multi_head_attention_equals_torch():
    ours = randomise(MultiHeadAttention(12, 3, dropout=0.0))
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key.weight, ours.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key.bias, ours.value.bias]))
        theirs.out_proj.weight.copy_(ours.output.weight)
        theirs.out_proj.bias.copy_(ours.output.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    ours.keep_probabilities = True
    expected, probabilities = theirs(x, x, x, key_padding_mask=mask == 0, average_attn_weights=False)
    assert torch.allclose(ours(x, mask_bias(mask, x.dtype)), expected, atol=1e-12, rtol=0)
    assert torch.allclose(ours.probabilities, probabilities, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_row_of_nothing_but_padding_gives_no_nan(dtype):
    q = torch.randn(1, 1, 3, 4).to(dtype)
    context, probabilities = attention(q, q, q, mask_bias(torch.zeros(1, 3), dtype))
    assert context.isfinite().all()
    assert torch.allclose(probabilities.float(), torch.full((1, 1, 3, 3), 1 / 3), atol=1e-2)


def test_one_attention_layer_is_its_parts_row_by_row(batch):
    ids, mask, types = batch
    model = randomise(OneAttentionLayer(TINY.vocab_size, 12, 3, dropout=0.0))
    hidden, pooled = model(ids, mask, types)
    for row, length in enumerate([9, 5, 1]):             # each row alone, without its padding
        x = model.embeddings(ids[row : row + 1, :length], types[row : row + 1, :length])
        expected = (x + model.attention(x))[0]
        assert torch.allclose(hidden[row, :length], expected, atol=1e-12, rtol=0)
        assert torch.allclose(pooled[row], expected.mean(dim=0), atol=1e-12, rtol=0)
    dropping = OneAttentionLayer(TINY.vocab_size, 12, 3, dropout=0.3)
    assert dropping.embeddings.dropout.p == dropping.attention.dropout == 0.3


def test_heads_are_cut_and_joined_without_mixing_tokens():
    x = torch.arange(2 * 3 * 8).view(2, 3, 8)
    parts = split_heads(x, 4)
    assert parts.shape == (2, 4, 3, 2)
    assert torch.equal(parts[1, 2, 0], x[1, 0, 4:6])  # head 2 of token 0 is its numbers 4 and 5
    assert torch.equal(merge_heads(parts), x)
    with pytest.raises(ValueError, match="8 can't be divided into 3 heads"):
        split_heads(x, 3)
    with pytest.raises(ValueError, match="can't be divided"):
        MultiHeadAttention(8, 3)


def test_mean_pool_leaves_padding_out():
    hidden = torch.tensor([[[1.0], [3.0], [100.0]], [[5.0], [7.0], [9.0]], [[5.0], [7.0], [9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):         # a tiny divisor would be 0 in float16
        assert torch.equal(mean_pool(hidden.to(dtype), mask), torch.tensor([[2.0], [7.0], [0.0]], dtype=dtype))


def test_too_long_an_input_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="17 tokens, but there are only 16 positions.*max_length"):
        BertModel(TINY)(torch.ones(1, 17, dtype=torch.long), torch.ones(1, 17))


def test_first_values_are_berts():
    model = BertModel(BertConfig(vocab_size=2000, hidden_size=64, layers=2, heads=4, intermediate_size=128))
    assert abs(model.embeddings.word.weight.std().item() - 0.02) < 0.001
    assert model.embeddings.word.weight[0].abs().max() == 0  # [PAD]
    assert abs(model.layers[1].up.weight.std().item() - 0.02) < 0.001
    assert model.layers[1].up.bias.abs().max() == 0


def test_load_state_understands_the_older_names():
    source = randomise(BertModel(TINY), seed=3)
    old = {
        "bert." + hf_name(n).replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): p
        for n, p in source.named_parameters()
    }
    target = BertModel(TINY).double()
    load_state(target, old | {"cls.predictions.bias": torch.zeros(50), "bert.embeddings.position_ids": torch.arange(16)})
    for (name, a), b in zip(source.named_parameters(), target.parameters()):
        assert torch.equal(a, b), name
