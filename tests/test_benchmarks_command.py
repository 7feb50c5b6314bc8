"""The command: tables that fit a terminal, files, parts that may fail, and kernels looked at without a GPU."""

from __future__ import annotations

import ast
import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks import contenders, devices, measure, parts, rows, sweep_picture, tables
from benchmarks.measure import BOTH

ROOT = Path(__file__).resolve().parent.parent
SHAPE = (6, 17)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """One round of one call: what is timed is of no interest."""
    monkeypatch.setattr(measure, "MOST_ROUNDS", 2)
    monkeypatch.setattr(measure, "FEWEST_ROUNDS", 2)
    monkeypatch.setattr(measure, "SAMPLE_SECONDS", 1e-9)


@pytest.fixture
def device():
    return devices.cpu()._replace(copy_bytes=4096, cache_bytes=4096, extra_bytes=lambda step: 0)


# --- kernels without a GPU -------------------------------------------------------------------------------------------

ONE_KERNEL = """
from benchmarks import kernels, parts
parts.usable_kernels = lambda: ("js",)
kernels.SMALL, kernels.SHAPES, kernels.DTYPES = ((2, 5),), ((64, 1024),), {"fp32": kernels.torch.float32}
"""


def run_code(code, interpret):
    environment = {**os.environ, "TRITON_INTERPRET": interpret}
    done = subprocess.run(
        [sys.executable, "-c", ONE_KERNEL + code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_kernels_are_verified_in_the_interpreter_and_a_wrong_one_is_named():
    wrong = "kernels.contenders.exact_js = kernels.contenders.exact_kl; kernels.interpreted()"
    said = run_code(f"kernels.interpreted(); {wrong}", "1")
    assert re.search(r"JS, kernel +frozen +fp32 +\de-0[67] +right", said)
    assert re.search(r"JS, kernel +frozen +fp32 .* WRONG: relative error", said)


@pytest.mark.slow
def test_kernels_are_compiled_for_a_gpu_that_is_not_there():
    code = "kernels.DTYPES['bf16'] = kernels.torch.bfloat16; print(kernels.compiled(quick=True))"
    said = run_code(code, "0")
    found = ast.literal_eval(said.splitlines()[-1])
    assert {row["architecture"] for row in found} == {"sm_90"}
    assert all(row["note"] == "" and row["registers"] > 8 for row in found)


# --- tables, files, the command ------------------------------------------------------------------------------------


def fake_rows(share=0.85, peer=2.0, shapes=parts.TARGETS):
    found = []
    for samples, classes in shapes:
        for dtype in ("bf16", "fp32"):
            base = {"samples": samples, "classes": classes, "dtype": dtype, "how": "graph", "error": 1e-7, "note": ""}
            base |= {"bytes": 1, "gb_s": 2500.0, "wall_us": 12345.6, "extra_bytes": 12345, "waits": True}
            times = {"median_us": 12345.6, "q1_us": 12000.0, "q3_us": 13000.0, "min_us": 11000.0}
            found.append(base | times | {"contender": "copy", "teacher": "", "what": "copy", "share_of_copy": 1.0})
            for name in ("GKL, kernel", "GKL class-wise, kernel", "Liger KL", "Liger JSD"):
                for teacher in ("frozen", "learning"):
                    for what in ("forward", BOTH):
                        scale = peer if name.startswith("Liger") else 1.0
                        mine = times | {"median_us": 12345.6 * scale, "share_of_copy": share}
                        found.append(base | mine | {"contender": name, "teacher": teacher, "what": what})
    return found


def test_tables_fit_a_terminal():
    one = [row for row in fake_rows() if (row["samples"], row["dtype"]) == (8192, "bf16")]
    text = "\n".join([tables.of_shape(one), tables.LEGEND, tables.verdict(fake_rows(), parts.TARGETS)])
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    ("share", "peer", "shares", "times"), [(0.85, 2.0, "met", "met"), (0.7, 0.9, "NOT MET", "NOT MET")]
)
def test_the_verdict_says_what_was_met(share, peer, shares, times):
    lines = tables.verdict(fake_rows(share, peer), parts.TARGETS).splitlines()[2:]
    assert len(lines) == 4 * 6
    assert all(line.endswith(f"  {shares}") for line in lines if "of copy" in line)
    assert all(line.endswith(f"  {times}") for line in lines if "its time" in line)


def test_the_verdict_of_nothing_is_nothing():
    lines = tables.verdict([], parts.TARGETS).splitlines()[2:]
    assert all(line.endswith("-") and "not measured" in line for line in lines)


def test_files_have_the_figures_and_what_they_were_measured_with(device, tmp_path):
    found = measure.measure(device, contenders.plain(), SHAPE, "fp32", seconds=0)
    rows.write_beside(found, tmp_path / "new" / "rows.csv", command.measured_with(device, "abc"))
    with (tmp_path / "new" / "rows.csv").open(encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    wanted = "device torch triton driver commit date samples classes dtype contender teacher what how median_us min_us"
    wanted += " q1_us q3_us bytes gb_s share_of_copy wall_us extra_bytes waits error note"
    assert set(wanted.split()) <= set(read[0])
    assert len(read) == 5


def test_a_folder_without_a_clone_has_an_unknown_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert rows.commit() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert rows.commit() == "unknown"


def test_a_wrong_row_or_a_failed_part_is_told_by_the_exit_status(device, monkeypatch, tmp_path, capsys):
    arguments = command.parser().parse_args(["--quick", "--csv", str(tmp_path), "--only", "sweep", "x"])
    for note, swept, status in (("", [], 0), ("WRONG: by far", [], 1), ("", None, 1)):
        row = {"contender": "x", "samples": 1, "classes": 2, "dtype": "fp32", "note": note}
        answers = {"sweep": swept}
        monkeypatch.setattr(command, "run_part", lambda part, *_, found=answers, row=row: found.get(part.name, [row]))
        assert command.run_all(device, arguments) == status
    said = capsys.readouterr().out
    assert "x (1, 2) fp32: WRONG: by far" in said
    assert "failed: sweep" in said
    assert (tmp_path / "shapes-cpu.csv").exists()


def test_a_part_runs_in_a_process_of_its_own(tmp_path):
    words = [sys.executable, "-m", "benchmarks", "--device", "cpu", "--quick", "--shapes", "8x16", "--only", "8x16"]
    done = subprocess.run([*words, "--csv", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(8, 16) fp32" in done.stdout
    assert "No GPU time was measured" in done.stdout
    with (tmp_path / "shapes-cpu.csv").open(encoding="utf-8") as file:
        assert {row["contender"] for row in csv.DictReader(file)} >= {"copy", "F.kl_div distillation", "GKL, torch"}


def test_a_part_that_fails_leaves_the_next_ones(device, monkeypatch, capsys):
    part = parts.Part("broken", "shapes", 1.0, [sys.executable, "-c", "import sys; sys.exit(3)"])
    assert command.run_part(part, device, None) is None
    writes = "import pathlib, sys; pathlib.Path(sys.argv[2]).write_text('[{}]')"
    assert command.run_part(part._replace(command=[sys.executable, "-c", writes]), device, None) == [{}]
    assert "broken failed: exit status 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--csv", "FILE/rows"], "`--csv` expected a folder to write to"),
        (["--shapes", "0x5"], "expected samples x classes as 4096x32000, got '0x5'"),
        (["--only", "nothing"], "`--only` expected a part's name, got nothing"),
    ],
)
def test_mistakes_end_before_anything_is_measured(words, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "FILE").write_text("")
    monkeypatch.setattr(command, "run_part", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stopped:
        command.main([word.replace("FILE", str(tmp_path / "FILE")) for word in ["--device", "cpu", *words]])
    assert said in f"{stopped.value} {capsys.readouterr().err}"


def test_the_picture_of_a_sweep_is_drawn_or_says_what_is_missing(tmp_path, monkeypatch):
    swept = fake_rows(shapes=((1000, 10), (10, 1000)))
    path = tmp_path / "sub" / "sweep.png"
    assert sweep_picture.write(swept, path, "a device") == f"drawn: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "viz" in sweep_picture.write(swept, path, "a device")


def test_rows_travel_between_processes_as_they_are(device):
    found = measure.measure(device, contenders.plain()[:1], SHAPE, "fp32", seconds=0)
    assert json.loads(json.dumps(found)) == found


def test_names_of_devices_make_names_of_files(device):
    for name, word in (("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA A100-SXM4-40GB", "a100"), ("Tesla T4", "gpu")):
        assert device._replace(kind="cuda", name=name).word == word
    assert device.word == "cpu"
