"""The benchmark verifies before it times, counts bytes, and says what is missing. Times are nobody's claim here."""

from __future__ import annotations

import sys
import types
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from benchmarks import contenders, devices, hidden, measure, peers, tables, traffic, verify
from benchmarks.measure import BOTH
from limbeck import functional

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


def test_rows_beyond_those_of_float64_are_verified_too(monkeypatch):
    def forgetful(s, t, case):
        return contenders.exact_kl(s[:7], t[:7], case)

    monkeypatch.setitem(verify.EXACT_ELEMENTS, "cpu", 7 * 5)
    case = contenders.make_case(8, 5, torch.float32, "cpu", 0, table=False)
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


def test_traffic_counts_what_operations_read_and_write():
    x, y = torch.ones(8, 100), torch.ones(8, 100)
    with traffic.Traffic() as counted:
        x.t().view(100, 8).exp()  # a read and a write
        torch.empty(8, 100).copy_(y)  # likewise: what is overwritten is not read
        y.add_(x)  # two reads and a write
        torch.mul(x, torch.ones(1).expand(8, 100), out=torch.empty(8, 100))  # a write, a read, and one number
    assert (counted.operations, counted.bytes) == (5, 4 * (9 * 800 + 2))


def test_no_form_moves_less_than_the_mathematics_needs():
    case = contenders.make_case(*SHAPE, torch.float32, "cpu", 0, table=False)
    for contender in torch_contenders():
        assert traffic.count(contender, case)[1] > contender.moved(case, backward=True) / case.logits.nbytes


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


# --- the calls of CUDA, on a stand-in for it -----------------------------------------------------------------------


class FakeCuda:
    """Counts bytes and streams as torch.cuda does; a capture refuses what waits for the device."""

    def __init__(self, monkeypatch, capturing=True):
        self.said, self.current, self.capturing, self.pools = [], "default", capturing, []
        self.spoilt = set()
        memory = {"memory_allocated": lambda: 100, "max_memory_allocated": lambda: 100 + 8 * 40}
        calls = {
            "current_device": lambda: 0,
            "get_device_properties": lambda device: types.SimpleNamespace(
                name="NVIDIA H100 80GB HBM3", L2_cache_size=4096
            ),
            "graph_pool_handle": lambda: (0, self.pools.append(True) or len(self.pools)),
            "Stream": lambda: types.SimpleNamespace(name="side", wait_stream=self.say("waits")),
            "current_stream": lambda: types.SimpleNamespace(name=self.current, wait_stream=self.say("waits")),
            "set_stream": lambda stream: setattr(self, "current", stream.name),
            "stream": lambda stream: nullcontext(),
            "synchronize": self.say("synchronize"),
            "reset_peak_memory_stats": self.say("reset"),
            "set_sync_debug_mode": lambda mode: setattr(self, "mode", mode),
            "CUDAGraph": lambda: types.SimpleNamespace(replay=self.say("replay")),
            "graph": self.graph,
            "Event": self.event,
        }
        for name, call in {**memory, **calls}.items():
            monkeypatch.setattr(torch.cuda, name, call)

    def say(self, word):
        return lambda *_: self.said.append(word)

    @contextmanager
    def graph(self, graph, pool):
        self.current = "capture"
        yield
        if not self.capturing or pool in self.spoilt:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.current = "default"

    def event(self, enable_timing):
        return types.SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda end: 3.0)


def on_fake_cuda(monkeypatch, **options):
    fake = FakeCuda(monkeypatch, **options)
    return fake, devices.cuda()._replace(kind="cpu", copy_bytes=4096)


def test_a_gpu_is_timed_by_replays_of_a_graph(monkeypatch):
    fake, gpu = on_fake_cuda(monkeypatch)
    found = measure.measure(gpu, contenders.plain()[:1], SHAPE, "fp32", seconds=0)
    assert [(row["note"], row["how"]) for row in found] == [("", "graph")] * 3
    assert gpu._replace(kind="cuda").word == "h100"
    calls = len(measure.make_cases(gpu, contenders.plain()[:1], SHAPE, torch.float32))
    assert [row["median_us"] for row in found[1:]] == pytest.approx([3000.0 / calls] * 2)
    assert "replay" in fake.said


def test_what_cannot_be_captured_is_timed_eagerly_on_the_stream_from_before(monkeypatch, capsys):
    fake, gpu = on_fake_cuda(monkeypatch, capturing=False)
    call, how = gpu.prepare([lambda: None], nullcontext)
    assert (how, fake.current) == ("eager", "default")
    assert "no CUDA graph (operation not permitted when stream is capturing): eager calls" in capsys.readouterr().out
    call()


def test_a_pool_that_takes_no_graph_any_more_is_replaced(monkeypatch, capsys):
    fake, gpu = on_fake_cuda(monkeypatch)
    for _ in range(2):
        fake.spoilt = {(0, len(fake.pools))}
        assert gpu.prepare([lambda: None], nullcontext)[1] == "graph"
    assert len(fake.pools) == 3
    assert capsys.readouterr().out == ""


def test_what_fails_while_it_is_timed_loses_its_time_alone(device):
    calls = iter(range(10**6))

    def wall(step):
        if next(calls) == 3:
            raise RuntimeError("out of memory")
        return device.wall(step)

    given = [*contenders.plain(), *contenders.own(learning=False, kernels=())[:1]]
    found = measure.measure(device._replace(wall=wall), given, (5, 3), "fp32", seconds=0)
    assert [row["note"] for row in found] == ["", "", "", "RuntimeError: out of memory", "", "", ""]
    assert [bool(row.get("median_us")) for row in found] == [True] * 3 + [False] + [True] * 3
    assert "brute force, teacher frozen: RuntimeError" in tables.of_shape(found)


def test_the_peak_is_above_what_was_there_less_what_is_returned(monkeypatch):
    fake, gpu = on_fake_cuda(monkeypatch)
    assert gpu.extra_bytes(lambda: (torch.zeros(40),)) == 4 * 40
    assert fake.said[-3:] == ["synchronize", "reset", "synchronize"]


def test_a_step_that_waits_for_the_device_is_noticed(monkeypatch):
    fake, gpu = on_fake_cuda(monkeypatch)
    assert not gpu.waits(lambda: None)
    steps = iter([None, RuntimeError("called a synchronizing CUDA operation"), None, RuntimeError("another")])

    def step():
        if (error := next(steps)) is not None:
            raise error

    assert gpu.waits(step)
    assert fake.mode == "default"
    with pytest.raises(RuntimeError, match="another"):
        gpu.waits(step)


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


class LigerFusedLinearJSD(torch.nn.Module):
    """LigerFusedLinearJSD(jsd_beta)(student_input, student_weight, teacher_input, teacher_weight, shift_labels)."""

    def __init__(self, jsd_beta=0.5, ignore_index=-100, temperature=1.0, accum_dtype=None):
        super().__init__()
        self.beta = jsd_beta

    def forward(self, student_input, student_weight, teacher_input, teacher_weight, shift_labels):
        case = contenders.Case(student_input, teacher_input, None, None)
        exact = contenders.exact_js if self.beta else contenders.exact_kl
        return exact(student_input @ student_weight.T, teacher_input @ teacher_weight.T, case)


class ChunkedDivergenceFunction:
    """The interface of trl 1.16: a value for each token, and an entropy."""

    @staticmethod
    def apply(hidden, head, bias, target_hidden, target_head, target_bias, beta, temperature, *scales_and_caps):
        assert (bias, target_bias, temperature, scales_and_caps) == (None, None, 1.0, (1.0, None, 1.0, None))
        loss = functional.js_divergence if beta else functional.kl_divergence
        return loss(hidden @ head.T, target_hidden @ target_head.T, reduction="none"), None


def test_losses_from_hidden_states_are_verified_and_timed_beside_others(device, monkeypatch, capsys):
    given = {"liger_kernel": [], "liger_kernel.transformers": [LigerFusedLinearJSD]}
    given |= {"trl": [], "trl.kernels": [], "trl.kernels.chunked_divergence": [ChunkedDivergenceFunction]}
    for name, contents in given.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace(name=name)
        for each in contents:
            setattr(module, each.__name__, each)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(hidden, "SIZES", {"cpu": (7, 5, 11)})
    assert [row["note"] for row in hidden.run(device)] == [""] * 10
    monkeypatch.setitem(hidden.LINEAR, "KL", functional.linear_js)
    notes = {row["contender"]: row["note"] for row in hidden.run(device)}
    assert notes.pop("linear_kl").startswith("WRONG")
    assert not any(notes.values())
    assert "linear_kl: WRONG" in capsys.readouterr().out


def test_ligers_question_to_the_host_is_answered_while_a_graph_is_captured():
    gradient = torch.ones(())
    with peers.gradient_is_one():
        assert torch.equal(gradient, torch.tensor(1.0, device="cuda")) is True
    assert torch.tensor(1.0).item() == 1.0
    assert not torch.equal(gradient, torch.zeros(()))
