"""No call that could run what is in a file, read from the code itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("mmsa_dist", "shards", "kernels", "launch", "benchmarks", "docs")
UNPICKLERS = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
#: By the end of the dotted name. Calls of `torch.load` and `numpy.load` have a rule of their own.
FORBIDDEN_CALLS = (
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all", "yaml.full_load_all"),
    *("read_pickle", "load_learner", "extractall", "tar.extract", "unpack_archive", "os.system", "os.popen"),
)
#: Of the built-ins.
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_WORDS = {"allow_pickle": True, "trust_remote_code": True, "weights_only": False, "shell": True}
#: Any function `load` of these packages, wherever within them it lies, is safe with this argument alone.
SAFE_LOADS = {"torch": ("weights_only", True), "numpy": ("allow_pickle", False)}


def faults(code: str) -> Iterator[str]:
    tree = ast.parse(code)
    imported = imports(tree)
    names = {name for names in imported.values() for name in names}
    yield from (f"imports {name}" for name in sorted(names) if unpickles(name) or name.endswith(".*"))
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for name in full_names(node.func, imported):
                yield from faults_of_call(node, name)
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in called:
            for name in full_names(node, imported):
                if is_forbidden(name) or safe_load(name):  # under another name it would be called unseen
                    yield f"passes {name} on"


def imports(tree: ast.Module) -> dict[str, set[str]]:
    """What each name that is imported anywhere in a file may stand for."""
    found: dict[str, set[str]] = {"np": {"numpy"}}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            within = f"{node.module or ''}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                found.setdefault(alias.asname or alias.name, set()).add(within + alias.name)
    return found


def full_names(node: ast.expr, imported: dict[str, set[str]]) -> set[str]:
    """The dotted names that an expression may have, as whatever its module or it itself was imported."""
    head, dot, rest = ast.unparse(node).partition(".")
    return {name + dot + rest for name in imported.get(head, {head})}


def unpickles(name: str) -> bool:
    return not UNPICKLERS.isdisjoint(name.split("."))


def is_forbidden(name: str) -> bool:
    return name in FORBIDDEN_NAMES or unpickles(name) or any(f".{name}".endswith(f".{end}") for end in FORBIDDEN_CALLS)


def safe_load(name: str) -> tuple[str, bool] | None:
    """The argument that makes a `load` safe; None of what is none."""
    within, _, function = name.rpartition(".")
    return SAFE_LOADS.get(within.split(".")[0]) if function == "load" else None


def faults_of_call(call: ast.Call, name: str) -> Iterator[str]:
    words = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    if is_forbidden(name):
        yield f"calls {name}"
    if (needed := safe_load(name)) and words.get(needed[0]) is not needed[1]:
        yield f"calls {name} without {needed[0]}={needed[1]}"
    if name == "importlib.import_module" and unpickles(ast.unparse(call.args[0]).strip("'")):
        yield f"imports by {ast.unparse(call)}"
    yield from (f"calls {name} with {word}={bad}" for word, bad in FORBIDDEN_WORDS.items() if words.get(word) is bad)


def files() -> list[Path]:
    return sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in files()])
def test_nothing_from_a_file_is_run(file: Path) -> None:
    assert list(faults(file.read_text())) == []


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from dill import loads", "import numpy, joblib", "eval('1')", "yaml.load(text)"),
        *("torch.load(path)", "torch.load(path, weights_only=False)", "np.load(path)", "pandas.read_pickle(path)"),
        *("np.load(path, allow_pickle=True)", "tar.extractall('.')", "subprocess.run(words, shell=True)"),
        *("AutoModel.from_pretrained(name, trust_remote_code=True)", "anything(weights_only=False)"),
        *("from torch import load\nload(path)", "from torch import load as read\nread(path, weights_only=False)"),
        *(
            "import torch as t\nt.load(path)",
            "torch.jit.load(path)",
            "from torch.serialization import load\nload(path)",
        ),
        *("import numpy as x\nx.load(path)", "from numpy import load\nload(path)", "from numpy import *\nload(path)"),
        *("import pandas as pd\npd.read_pickle(path)", "from pandas import read_pickle\nread_pickle(path)"),
        *(
            "def f():\n    from joblib import load",
            "from ray import cloudpickle",
            "import dill as json",
            "ray.pickle.loads",
        ),
        *("importlib.import_module('dill')", "from importlib import import_module as f\nf('pickle')"),
        *(
            "from os import system as say\nsay(words)",
            "from yaml import load\nload(text)",
            "import yaml as y\ny.load(text)",
        ),
        *("read = torch.load\nread(path)", "list(map(np.load, paths))", "from numpy import load\nread = load"),
    ],
)
def test_the_rule_finds_what_it_is_for(code: str) -> None:
    assert list(faults(code))


def test_the_rule_lets_the_safe_forms_pass() -> None:
    safe = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); yaml.safe_load(t); model.eval()"
    safe += "; from numpy import load as read; read(p, allow_pickle=False); import safetensors.torch"
    safe += "; safetensors.torch.load(b); json.load(f); from safetensors.torch import load; load(b)"
    assert list(faults(safe + "; torch.compile(m); re.compile(p)")) == []
