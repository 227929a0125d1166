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


def faults(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"imports {name}" for name in names if name.split(".")[0] in UNPICKLERS)
        elif isinstance(node, ast.Call):
            yield from faults_of_call(node)


def faults_of_call(call: ast.Call) -> Iterator[str]:
    words = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    name = ast.unparse(call.func)
    if name in FORBIDDEN_NAMES or any(f".{name}".endswith(f".{end}") for end in FORBIDDEN_CALLS):
        yield f"calls {name}"
    if name == "torch.load" and words.get("weights_only") is not True:
        yield "calls torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and words.get("allow_pickle") is not False:
        yield f"calls {name} without allow_pickle=False"
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
    ],
)
def test_the_rule_finds_what_it_is_for(code: str) -> None:
    assert list(faults(code))


def test_the_rule_lets_the_safe_forms_pass() -> None:
    safe = "torch.load(p, weights_only=True); np.load(p, allow_pickle=False); yaml.safe_load(t); model.eval()"
    assert list(faults(safe + "; torch.compile(m); re.compile(p)")) == []
