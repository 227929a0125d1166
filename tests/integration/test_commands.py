"""The commands as a person types them: the whole way in small, and what is said when something is wrong."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmsa_dist.evaluate.leaks import shards_of

ROOT = Path(__file__).resolve().parents[2]
MINI = ROOT / "tests" / "fixtures" / "mini.yaml"
SMALL = [
    "prepare.shards=2",
    "prepare.molecules_per_block=4",
    "prepare.val_fraction=0.2",
    "prepare.workers=2",
]


def environment() -> dict[str, str]:
    rooms = os.pathsep.join(str(ROOT / room) for room in (".", "kernels", "shards"))
    return {**os.environ, "PYTHONPATH": rooms, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def command(*words: object) -> list[str]:
    return [sys.executable, "-c", "from mmsa_dist.cli import main; main()", *map(str, words)]


def mmsa(*words: object, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=ROOT, env=environment(), input=stdin, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 chains with an end, one of them twice, and one that is no molecule."""
    ends = ("O", "N", "Cl", "C(=O)O", "c1ccccc1", "C#N")
    lines = [f"{'C' * n}{end} M{n}{end}" for n in range(1, 11) for end in ends]
    file = tmp_path_factory.mktemp("whole") / "molecules.smi"
    file.write_text("\n".join([*lines, "OCC twice", "C(C)(C)(C)(C)C broken", ""]))
    return file


def test_the_whole_way(molecules: Path) -> None:
    run = molecules.parent / "run"
    settings = [f"run.dir={run}", *SMALL]

    prepared = mmsa("prepare", molecules, "--config", MINI, *settings)
    assert prepared.returncode == 0, prepared.stderr
    assert "62  records read" in prepared.stdout
    assert "1  duplicates left out" in prepared.stdout
    assert "1    valence" in prepared.stdout

    inspected = mmsa("inspect", run / "shards", "--molecules", 6)
    assert inspected.returncode == 0, inspected.stderr
    assert (run / "shards" / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")

    counted = json.loads(mmsa("inspect", run / "shards", "--json").stdout)
    assert (counted["ledger"]["duplicates"], counted["reject_reasons"]) == (1, {"valence": 1})
    verified = mmsa("inspect", run / "shards", "--verify")
    assert (verified.returncode, verified.stdout.split(", ")[1]) == (0, "60 molecules"), verified.stderr
    spoiled = shutil.copytree(run / "shards", run / "spoiled")
    for name in ("train-00000.tar", "train-00001.tar"):
        (spoiled / name).write_bytes((spoiled / name).read_bytes()[:1000])
    broken = mmsa("inspect", spoiled, "--verify")
    assert broken.returncode == 1
    assert [line.count("train-0000") for line in broken.stdout.splitlines()] == [1, 1]
    assert "is broken in 2 places" in broken.stderr

    trained = mmsa("pretrain", "--config", MINI, *settings)
    assert trained.returncode == 0, trained.stderr
    assert shards_of(run / "model") == str(run / "shards")

    vectors = run / "embeddings"
    embedded = mmsa("embed", molecules, "--model", run / "model", "--out", vectors, "--config", MINI)
    assert embedded.returncode == 0, embedded.stderr
    assert "61 of 62 rows have a vector" in embedded.stdout
    table = pq.read_table(vectors)
    assert table.num_rows == 62
    assert table["ok"].to_pylist() == [True] * 61 + [False]
    assert table["reason"].to_pylist()[-1] == "valence"

    piped = mmsa(
        *("embed", "-", "--model", run / "model", "--out", run / "piped", "--format", "npy", "--config", MINI),
        *("embed.batch_size=auto", "embed.dtype=float32", "embed.readers=1", "embed.standardize=false"),
        stdin=molecules.read_text(),
    )
    assert piped.returncode == 0, piped.stderr
    array = np.load(run / "piped" / "_vectors.npy", mmap_mode="r")
    assert (len(array), int(np.isnan(array).any(axis=1).sum())) == (62, 1)

    flat = ("embed", molecules, "--model", run / "model", "--config", MINI, "embed.pictures=false", "--out")
    again = mmsa(*flat, vectors)
    assert (again.returncode, "(pictures was True, is now False)" in again.stderr) == (2, True), again.stderr
    assert mmsa(*flat, run / "flat").returncode == 0
    assert json.loads((run / "flat" / "_export.json").read_text())["origin"]["pictures"] is False

    for folder in (
        vectors,
        run / "piped",
        run / "flat",
    ):  # the second of molecules as given: the search takes them so too
        found = mmsa("search", folder, "CCO", "--model", run / "model", "-k", 3)
        assert found.returncode == 0, found.stderr
        assert "1.000" in found.stdout
    page = run / "near.html"
    assert mmsa("search", vectors, "--by-id", "M1N", "--html", page, "-k", 3).returncode == 0
    assert page.read_text().count("<svg") == 4, "the molecule of the id and its neighbours"

    assert [
        json.loads((folder / "_export.json").read_text())["origin"]["standardize"]
        for folder in (vectors, run / "piped")
    ] == [True, False]

    report = mmsa("report", run)
    assert report.returncode == 0, report.stderr
    assert "<svg" in (run / "report.html").read_text()

    again = mmsa("prepare", molecules, "--config", MINI, *settings)
    assert again.returncode == 0
    assert "62  records read" in again.stdout


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.smi", b"", "empty.smi is empty"),
        ("table.csv", b"name,mass\naspirin,180\n", "its columns are 'name', 'mass'"),
        ("broken.smi.gz", gzip.compress(b"CCO a\n" * 5000)[:-20], "broken.smi.gz"),
        ("noise.parquet", b"PAR1 this is not a table PAR1", "noise.parquet"),
        ("picture.png", b"\x89PNG", "picture.png is of no kind that can be read"),
        ("nowhere.smi", None, "nowhere.smi"),
    ],
    ids=["empty", "no SMILES column", "truncated", "no Parquet", "unknown kind", "missing"],
)
def test_an_input_that_cannot_be_used_is_named_and_nothing_is_left(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    done = mmsa("prepare", tmp_path / name, "--out", tmp_path / "out", *SMALL)
    assert done.returncode == 2, done.stdout
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    out = tmp_path / "out"
    assert not (out / "manifest.json").exists()
    assert not list(out.glob("*.tar"))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["inspect", "{tmp}/nowhere"], "no manifest.json in"),
        (["embed", "{tmp}/x.smi", "--model", "{tmp}/nowhere", "--out", "{tmp}/v"], "model folder"),
        (["search", "{tmp}", "CCO", "--model", "{tmp}"], "mmsa: "),
        (["search", "{tmp}", "--by-id", "a", "--html", "{tmp}/no/g.html"], "there is no folder {tmp}/no; make it"),
        (["search", "{tmp}", "CCO", "embed.view=gin"], "mmsa search takes no settings (embed.view=gin)"),
        (
            ["embed", "x.smi", "-m", "{tmp}", "-o", "{tmp}/v", "prepare.max_atoms=9", "embed.view=gin", "train.lr=5"],
            "mmsa embed does not use prepare.max_atoms=9, train.lr=5: standardization and the largest molecule are",
        ),
        (["evaluate", "--model", "{tmp}", "--tasks", "toxicity", "--out", "{tmp}/e"], "there is no task 'toxicity'"),
        (
            ["evaluate", "-m", "{tmp}", "--protocol", "finetune", "-o", "{tmp}/e", "model.gin.layers=3", "run.seed=4"],
            "mmsa evaluate --protocol finetune does not use model.gin.layers=3, run.seed=4: only the GIN is tuned",
        ),
        (
            ["evaluate", "--protocol", "finetune", "-o", "{tmp}/e", "model.gin.layers=3", "model.gin.dropout=0.1"],
            "mmsa evaluate --protocol finetune does not use model.gin.dropout=0.1: only the GIN",
        ),
        (
            ["evaluate", "-o", "{tmp}/e", "model.gin.layers=3", "embed.standardize=true", "train.lr=3"],
            "mmsa evaluate --protocol probe does not use embed.standardize=true, train.lr=3: SMILES are used as",
        ),
        (["evaluate", "--out", ""], "--out is empty: name a folder"),
        (["evaluate", "--out", "{tmp}/e", "--split", ""], "--split is empty: name a split, or leave --split out"),
        (["ablate", "--arms", "launch/ablation.yaml", "--out", ""], "--out is empty: name a folder"),
        (["evaluate", "-o", "{tmp}/e", "-m", ""], "--checkpoint is empty: name a folder, or leave --checkpoint out"),
        (["evaluate", "-o", "{tmp}/e", "--metric", "roc_auc"], "without --csv there is no use for --metric: name your"),
        (
            ["ablate", "--arms", "launch/ablation.yaml", "-o", "{tmp}/e", "--label-columns", "y", "--metric", "mae"],
            "without --csv there is no use for --label-columns, --metric: name your file with --csv, or leave",
        ),
        (["embed", "x.smi", "--model", "", "-o", "{tmp}/v"], "--model is empty: name a folder"),
        (["search", "{tmp}", "CCO", "--model", ""], "--model is empty: name a folder"),
        (["report", "{tmp}/nowhere"], "does not exist"),
        (["prepare", "prepare.workers=2"], "no input was named"),
        (
            ["prepare", "nope://x/a.smi", "--out", "{tmp}/s"],
            "cannot reach nope://x/a.smi (Protocol not known: nope): name a path",
        ),
        (
            ["prepare", "a.smi", "--out", "nope://x/s"],
            "cannot reach nope://x/s (Protocol not known: nope): name a path",
        ),
        (["prepare", MINI, "--out", f"{MINI}/x"], f"cannot write to {MINI}/x: [Errno 20] Not a directory"),
        (["prepare", "--repair", "--out", f"{MINI}/x"], "fix that, or name another folder with --out"),
        (["prepare", MINI, "--out", ""], "--out is empty: name a folder, or leave --out out where it may be"),
        (["download", "pubchem", "--from", "1", "--to", "5", "--out", ""], "--out is empty: name a folder"),
        (["inspect", "nope://x/s"], "Protocol not known: nope"),
        (["config", "train.stepz=1"], "did you mean 'steps'"),
        (["pretrain", "steps=1"], "'steps=1' lacks its section: did you mean train.steps=1?"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(tmp_path: Path, command: list[str], words: str) -> None:
    done = mmsa(*[str(word).format(tmp=tmp_path) for word in command])
    assert done.returncode == 2
    assert words.format(tmp=tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_adding_comparing_and_repairing(molecules: Path, tmp_path: Path) -> None:
    (tmp_path / "bace.csv.gz").write_bytes(gzip.compress(b"mol,CID,Class\nOCCCC,B1,1\n"))
    (tmp_path / "mine.csv").write_text("smiles,y\nCCCN,1\n[Na+].CCCCC(=O)[O-],0\nan acid,1\n")
    left_out = ["--exclude", tmp_path / "bace.csv.gz", "--exclude", tmp_path / "mine.csv"]
    out, settings = tmp_path / "shards", [*left_out, *SMALL, "prepare.conformers=none"]
    first = mmsa("prepare", molecules, "--out", out, *settings)
    assert first.returncode == 0, first.stderr
    assert "3  excluded as asked" in first.stdout
    assert "mine.csv cannot be read, so they are not excluded: the first, number 4: " in " ".join(first.stderr.split())
    (tmp_path / "none.smi").write_text("CCCCCCCCCCCCO\n")
    without = mmsa("prepare", tmp_path / "none.smi", "--out", out, *SMALL, "prepare.conformers=none")
    assert (without.returncode, "exclude was" in without.stderr) == (2, True)
    (tmp_path / "more.smi").write_text("CCCOCC ether\nCCO twice-again\n")
    added = mmsa("prepare", tmp_path / "more.smi", "--out", out, *settings)
    assert added.returncode == 0, added.stderr
    assert "+1  molecules" in added.stdout
    assert "+2  records from more.smi" in added.stdout
    assert "rewritten: " in added.stdout
    (earlier,) = (out / "manifests").iterdir()
    compared = mmsa("inspect", out, "--since", earlier.stem)
    assert compared.returncode == 0, compared.stderr
    assert compared.stdout.splitlines() == added.stdout.splitlines()[-len(compared.stdout.splitlines()) :]
    assert json.loads(mmsa("inspect", out, "--since", earlier, "--json").stdout)["molecules"] == 1
    missing = mmsa("inspect", out, "--since", "0123")
    said = f"no 0123.json in {out}/manifests: name one of {earlier.stem}, or name a file"
    assert (missing.returncode, said in missing.stderr) == (2, True)
    nowhere = mmsa("inspect", out, "--sheet", "/proc/x.png")
    said = "cannot draw /proc/x.png (No such file or directory): name another file with --sheet"
    assert (nowhere.returncode, said in nowhere.stderr) == (2, True)
    again = mmsa("prepare", tmp_path / "more.smi", "--out", out, *settings)
    assert "3  shards stay, as the manifests say; `mmsa inspect --verify` reads them" in again.stdout
    (tmp_path / "one.smi").write_text("CCO\n")
    on_a_file = mmsa("prepare", tmp_path / "one.smi", "--out", "/proc/nope", *SMALL)
    said = "cannot write to /proc/nope: [Errno 2] No such file or directory: '/proc/nope'; fix that, or name another"
    assert (on_a_file.returncode, said in on_a_file.stderr) == (2, True)

    job = (out / "job.json").read_bytes()
    (out / "job.json").unlink()
    verified = mmsa("inspect", out, "--verify")
    assert (verified.returncode, verified.stdout.count("\n")) == (1, 1)
    assert "job.json is missing; the shards can be used, but nothing can be added" in verified.stdout
    (out / "job.json").write_bytes(job)

    (out / "train-00000.tar").unlink()
    verified = mmsa("inspect", out, "--verify")
    assert verified.returncode == 1
    assert "mmsa prepare --repair" in verified.stdout
    repaired = mmsa("prepare", "--repair", "--out", out)
    assert repaired.returncode == 0, repaired.stderr
    assert "rebuilt: train-00000.tar" in repaired.stdout
    assert mmsa("inspect", out, "--verify").returncode == 0


def interrupted_while_building(words: list[str], shards: Path, *, after_s: float = 0.0) -> tuple[int, str]:
    """Presses Ctrl-C `after_s` seconds after molecules began to be built; returns the status and what was said."""
    process = subprocess.Popen(command(*words), env=environment(), stderr=subprocess.PIPE, text=True, cwd=ROOT)
    while not (shards / ".work" / "pieces").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(after_s)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_ctrl_c_says_that_the_same_command_goes_on(molecules: Path, tmp_path: Path) -> None:
    words = ["prepare", str(molecules), "--out", str(tmp_path / "shards"), *SMALL]
    status, errors = interrupted_while_building(words, tmp_path / "shards")
    assert status == 130, errors
    assert "interrupted; what is finished is kept, and the same command goes on from it" in errors
    assert "Traceback" not in errors
    assert mmsa(*words).returncode == 0


@pytest.mark.slow
def test_ctrl_c_while_tasks_end(molecules: Path, tmp_path: Path) -> None:
    """Ray aborted the driver in one of three where it was asked to cancel tasks that were just ending."""
    for moment in range(20):
        shards = tmp_path / f"shards{moment}"
        words = ["prepare", str(molecules), "--out", str(shards), *SMALL]
        status, errors = interrupted_while_building(words, shards, after_s=0.02 * moment)
        assert status == 130, errors


def test_help_teaches() -> None:
    text = mmsa("prepare", "--help").stdout
    assert "Example: mmsa prepare" in text
    assert "--exclude" in text
    assert "s3:// and gs:// with mmsa-dist[cloud]" in " ".join(text.replace("│", " ").split())
    assert mmsa("--help").returncode == 0
