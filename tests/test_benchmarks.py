"""The benchmark verifies before it times, says what is missing, and fits a terminal. Times are nobody's claim here."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import types
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import contenders, devices, measure, parts, peers, rows, sweep_picture, tables, verify
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


def torch_contenders():
    return [*contenders.plain(), *(each for each in contenders.own(learning=False, kernels=()) if not each.compiled)]


# --- right before fast ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_contender_of_torch_agrees_with_float64(dtype):
    case = contenders.make_case(*SHAPE, measure.DTYPES[dtype], "cpu", 0, table=True)
    for contender in torch_contenders():
        assert verify.error_of(contender, case) <= verify.tolerance(contender, case.logits.dtype), contender.name


def test_the_float64_forms_have_the_gradients_of_ours():
    case = contenders.make_case(*SHAPE, torch.float64, "cpu", 0, table=True)
    case = case._replace(table=case.table.double())
    pairs = [
        (contenders.gkl("torch"), contenders.exact_gkl),
        (contenders.gkl("torch", class_wise=True), contenders.exact_gkl_of_classes),
        (contenders.kl("torch"), contenders.exact_kl),
        (contenders.js("torch"), contenders.exact_js),
        (contenders.distillation, contenders.exact_distillation),
        (contenders.brute_force, contenders.exact_gkl),
    ]
    for ours, exact in pairs:
        same = contenders.Contender("", ours, exact, learning=ours is not contenders.distillation)
        assert verify.error_of(same, case) < (1e-5 if ours is contenders.brute_force else 1e-12)


@pytest.mark.parametrize("off", [1.001, float("nan")])
def test_a_wrong_result_gets_no_time(device, off):
    wrong = contenders.Contender("off", lambda s, t, case: off * contenders.exact_kl(s, t, case), contenders.exact_kl)
    found = measure.measure(device, [wrong], SHAPE, "fp32", seconds=0)
    (row,) = [row for row in found if row["contender"] == "off"]
    assert row["note"].startswith("WRONG")
    assert "median_us" not in row
    assert "off, teacher frozen: WRONG" in tables.of_shape(found)


def test_a_wrong_gradient_to_one_side_is_found():
    def one_sided(s, t, case):
        return contenders.exact_kl(s, t.detach(), case) + 0 * t.sum()

    case = contenders.make_case(*SHAPE, torch.float32, "cpu", 0, table=False)
    assert verify.error_of(contenders.Contender("", one_sided, contenders.exact_kl), case) < 1e-6
    assert verify.error_of(contenders.Contender("", one_sided, contenders.exact_kl, learning=True), case) == 1.0


def test_rows_beyond_the_first_are_verified_too():
    def forgetful(s, t, case):
        return contenders.exact_kl(s[: verify.ROWS], t[: verify.ROWS], case)

    case = contenders.make_case(verify.ROWS + 1, 5, torch.float32, "cpu", 0, table=False)
    forgets = contenders.Contender("", forgetful, contenders.exact_kl, contenders.kl("torch"))
    assert verify.error_of(replace(forgets, whole=None), case) < 1e-6
    assert verify.error_of(forgets, case) > 1e-3


# --- what is counted -----------------------------------------------------------------------------------------------


def test_bytes_are_two_reads_of_each_side_and_a_write_of_each_gradient():
    case = contenders.make_case(8, 100, torch.bfloat16, "cpu", 0, table=True)
    frozen, learning = (contenders.own(learning=each, kernels=())[0] for each in (False, True))
    one = 8 * 100 * 2
    assert frozen.moved(case, backward=False) == 2 * one
    assert frozen.moved(case, backward=True) == 5 * one
    assert learning.moved(case, backward=True) == 6 * one
    assert replace(frozen, class_rows=True).moved(case, backward=True) == 5 * one + 2 * 8 * 100 * 4


def test_inputs_in_rotation_exceed_the_cache(device):
    cases = measure.make_cases(device._replace(cache_bytes=9000), torch_contenders(), SHAPE, torch.float32)
    assert sum(3 * case.logits.nbytes for case in cases) >= 4 * 9000
    assert not torch.equal(cases[0].logits, cases[1].logits)


def test_steps_return_the_wanted_gradients_alone():
    case = contenders.make_case(*SHAPE, torch.bfloat16, "cpu", 0, table=False)
    for learning in (False, True):
        mine = contenders.own(learning=learning, kernels=())[0]
        found = measure._both(mine, case)()
        assert [each.dtype for each in found] == [torch.bfloat16] * (1 + learning)


def test_memory_is_counted_less_what_is_returned():
    used = devices.cpu().extra_bytes(lambda: (torch.empty(1000).exp() + torch.ones(1000),))
    assert used == 2 * 4000


# --- what is missing or fails --------------------------------------------------------------------------------------


def test_what_is_not_installed_or_does_not_fit_is_one_line_and_the_others_are_timed(device):
    def fails(s, t, case):
        raise RuntimeError("out of memory\nand much more")

    broken = contenders.Contender("broken", fails, contenders.exact_kl)
    absent = contenders.Contender("absent", fails, fails, package="no_such_package")
    large = replace(contenders.plain()[1], name="large")
    found = measure.measure(device, [broken, absent, large, contenders.plain()[0]], (512, 1000), "fp32", seconds=0)
    said = {row["contender"]: row["note"] for row in found}
    assert said["broken"] == "RuntimeError: out of memory"
    assert said["absent"] == "no_such_package is not installed"
    assert said["large"].startswith("one (N, C, C) tensor takes 2.0 GB")
    assert [row["what"] for row in found if row.get("median_us")] == ["copy", "forward", BOTH]


class LigerKL(torch.nn.KLDivLoss):
    """The interface of liger_kernel 0.8.5: KLDivLoss(reduction, log_target) of log-probabilities."""

    def __init__(self, eps=1e-10, *args, **kwargs):
        super().__init__(*args, **kwargs)


class LigerJSD(torch.nn.Module):
    """LigerJSD(beta, ignore_index)(log_q, log_p, shift_labels=None)."""

    def __init__(self, beta=0.5, ignore_index=-100):
        super().__init__()
        self.beta = beta

    def forward(self, log_q, log_p, shift_labels=None):
        log_m = torch.logaddexp(log_q + torch.tensor(1 - self.beta).log(), log_p + torch.tensor(self.beta).log())
        kl = [F.kl_div(log_m, x, reduction="batchmean", log_target=True) for x in (log_p, log_q)]
        return self.beta * kl[0] + (1 - self.beta) * kl[1]


def test_ligers_kernels_are_called_as_their_interface_says(device, monkeypatch):
    module = types.ModuleType("liger_kernel.transformers")
    module.LigerKLDIVLoss, module.LigerJSD = LigerKL, LigerJSD
    package = types.ModuleType("liger_kernel")
    package.__spec__ = types.SimpleNamespace(name="liger_kernel")
    monkeypatch.setitem(sys.modules, "liger_kernel", package)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    ready = [replace(each, while_captured=nullcontext) for each in peers.liger()]
    for dtype in ("fp32", "bf16"):
        found = measure.measure(device, ready, SHAPE, dtype, seconds=0)
        assert [row["note"] for row in found] == [""] * 5


def test_ligers_question_to_the_host_is_answered_while_a_graph_is_captured():
    gradient = torch.ones(())
    with peers.gradient_is_one():
        assert torch.equal(gradient, torch.tensor(1.0, device="cuda")) is True
    assert torch.tensor(1.0).item() == 1.0
    assert not torch.equal(gradient, torch.zeros(()))


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
