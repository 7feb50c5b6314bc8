"""Losses of transformers' language models from hidden states and output embeddings: those of the models' logits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from limbeck.functional import (
    gkl_divergence,
    js_divergence,
    kl_divergence,
    linear_gkl,
    linear_gkl_normalizer,
    linear_js,
    linear_kl,
)

transformers = pytest.importorskip("transformers")
WORDS, IGNORED = 53, -100
TOKENS = torch.randint(1, WORDS, (3, 9), generator=torch.Generator().manual_seed(0))
LABELS = TOKENS[:, 1:].clone()
LABELS[0, 4:] = LABELS[2, 7:] = IGNORED
PAIRS = [
    pytest.param(linear_kl, kl_divergence, {"temperature": 2.0}, id="kl"),
    pytest.param(linear_js, js_divergence, {"beta": 0.3}, id="js"),
    pytest.param(linear_gkl, gkl_divergence, {"weight_power": 0.5, "mse_weight": 2.0}, id="gkl"),
]


def model_of(name: str, config: str, width: int, **options: object) -> nn.Module:
    """A tiny model from a random start, in float64; its weights are larger than at a start, so that a cap is felt."""
    torch.manual_seed(width)
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": WORDS}
    words = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes, **words, **options)).double().eval()
    model.get_output_embeddings().weight.data.mul_(40)
    return model


def gemma(width: int, cap: float) -> nn.Module:
    sizes = {"intermediate_size": 2 * width, "head_dim": 8, "num_key_value_heads": 1}
    return model_of("Gemma2ForCausalLM", "Gemma2Config", width, final_logit_softcapping=cap, **sizes)


def cohere(width: int, scale: float) -> nn.Module:
    sizes = {"intermediate_size": 2 * width, "num_key_value_heads": 2}
    return model_of("CohereForCausalLM", "CohereConfig", width, logit_scale=scale, **sizes)


def granite(width: int, scale: float) -> nn.Module:
    sizes = {"intermediate_size": 2 * width, "num_key_value_heads": 2}
    return model_of("GraniteForCausalLM", "GraniteConfig", width, logits_scaling=1 / scale, **sizes)


def gpt2(width: int) -> nn.Module:
    return model_of("GPT2LMHeadModel", "GPT2Config", width)


def states(model: nn.Module) -> Tensor:
    """What predicts the next token: the hidden states but for the last token's."""
    return model.base_model(input_ids=TOKENS).last_hidden_state[:, :-1]


def ends(student: nn.Module, teacher: nn.Module) -> tuple[Tensor, ...]:
    """Hidden states and output embeddings of both."""
    return states(student), student.lm_head.weight, states(teacher).detach(), teacher.lm_head.weight.detach()


def kept_logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS).logits[:, :-1][LABELS != IGNORED]


def value_and_gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    value.backward()
    return [value.detach(), *(x.grad for x in model.parameters())]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("linear", "dense", "options"), PAIRS)
def test_soft_caps_give_the_loss_of_gemmas_logits(linear, dense, options):
    student, teacher = gemma(16, cap=3.0), gemma(24, cap=5.0)
    logits, target = kept_logits(student), kept_logits(teacher).detach()
    assert logits.abs().max() > 2  # the caps are felt
    assert target.abs().max() > 3
    caps = {"softcap": 3.0, "target_softcap": 5.0}
    ours = linear(*ends(student, teacher), labels=LABELS, tile=(5, 20), **caps, **options)
    equal(value_and_gradients(ours, student), value_and_gradients(dense(logits, target, **options), student))
    uncapped = linear(*ends(student, teacher), labels=LABELS, **options)
    assert not torch.isclose(uncapped, ours, rtol=1e-2)


@pytest.mark.parametrize("family", [cohere, granite])
@pytest.mark.parametrize(("linear", "dense", "options"), PAIRS)
def test_logit_scales_give_the_loss_of_the_models_logits(linear, dense, options, family):
    student, teacher = family(16, scale=0.25), family(24, scale=0.5)
    logits, target = kept_logits(student), kept_logits(teacher).detach()
    scales = {"logit_scale": 0.25, "target_logit_scale": 0.5}
    ours = linear(*ends(student, teacher), labels=LABELS, tile=(5, 20), **scales, **options)
    equal(value_and_gradients(ours, student), value_and_gradients(dense(logits, target, **options), student))


@pytest.mark.parametrize(("linear", "dense", "options"), PAIRS)
def test_tied_embeddings_receive_the_gradients_of_both_their_uses(linear, dense, options):
    student, teacher = gpt2(16), gpt2(24)
    assert student.lm_head.weight is student.transformer.wte.weight
    ours = linear(*ends(student, teacher), labels=LABELS, tile=(5, 20), **options)
    theirs = dense(kept_logits(student), kept_logits(teacher).detach(), **options)
    equal(value_and_gradients(ours, student), value_and_gradients(theirs, student))


@pytest.mark.parametrize("prior", ["of each token", "of the classes"])
def test_unequal_micro_batches_add_up_to_the_batch(prior):
    student, teacher = gpt2(16), gpt2(24)
    hidden, head, target, target_head = ends(student, teacher)
    vector = torch.softmax(target @ target_head.T, -1).mean((0, 1)) if prior == "of the classes" else None
    options = {"prior": vector, "weight_power": 0.3}
    whole = value_and_gradients(linear_gkl(hidden, head, target, target_head, labels=LABELS, **options), student)
    counts = (LABELS != IGNORED).sum(1)
    squares = linear_gkl_normalizer(target, target_head, labels=LABELS, **options)
    hidden = states(student)
    value = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, 1), slice(1, 3)):
        share = counts[rows].sum() / counts.sum()
        given = {"labels": LABELS[rows], "normalizer": squares * share, **options}
        value = value + share * linear_gkl(hidden[rows], head, target[rows], target_head, **given)
    equal(value_and_gradients(value, student), whole)


def test_what_padding_holds_changes_nothing():
    student, teacher = gpt2(16), gpt2(24)
    hidden, head, target, target_head = ends(student, teacher)
    value = linear_kl(hidden, head, target, target_head, labels=LABELS)
    left_out = (LABELS == IGNORED).unsqueeze(-1)
    poisoned = hidden.masked_fill(left_out, torch.nan), head, target.masked_fill(left_out, torch.nan), target_head
    assert torch.equal(linear_kl(*poisoned, labels=LABELS), value)


def test_another_vocabulary_is_refused_and_the_shared_words_are_compared():
    student, teacher = gpt2(16), gpt2(24)
    hidden, head, target, target_head = ends(student, teacher)
    with pytest.raises(ValueError, match="the same classes, got 53 and 50"):
        linear_kl(hidden, head, target, target_head[:50], labels=LABELS)
    ours = linear_kl(hidden, head[:50], target, target_head[:50], mask=LABELS != IGNORED)
    logits, targets = (kept_logits(model)[:, :50] for model in (student, teacher))
    equal(value_and_gradients(ours, student), value_and_gradients(kl_divergence(logits, targets.detach()), student))


def test_labels_that_were_not_shifted_or_not_left_out_are_refused_with_the_way_out():
    given = ends(gpt2(16), gpt2(24))
    with pytest.raises(ValueError, match="cut off the last state and the first label"):
        linear_kl(*given, labels=TOKENS)
    padded = LABELS.masked_fill(LABELS == IGNORED, -1)
    with pytest.raises(ValueError, match="give their label as `ignore_index`, or use `mask`"):
        linear_kl(*given, labels=padded)
    assert torch.equal(linear_kl(*given, labels=padded, ignore_index=-1), linear_kl(*given, labels=LABELS))


def code_of_the_guide() -> dict[str, object]:
    """What the blocks of the guide define, run from top to bottom."""
    page = Path(__file__).resolve().parent.parent / "docs" / "language-models.md"
    torch.manual_seed(0)
    names: dict[str, object] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    return names


def test_the_labels_loss_of_the_guide_is_the_cross_entropy():
    hidden, head, *_ = ends(gpt2(16), gpt2(24))
    loss = code_of_the_guide()["label_loss"](hidden, head, LABELS, tokens_at_once=5)
    logits = (hidden @ head.T).flatten(0, -2)
    torch.testing.assert_close(loss, cross_entropy(logits, LABELS.flatten(), ignore_index=IGNORED))


def gradients_of_the_guide(rows: slice, wrap: bool) -> list[Tensor]:
    """The student's gradients by the guide's module, of some rows of the text."""
    student, teacher = gpt2(16), gpt2(24)
    module = code_of_the_guide()["Distillation"](student, teacher.lm_head.weight.detach(), weight_power=0.3)
    target = states(teacher).detach()[rows]
    called = DistributedDataParallel(module) if wrap else module
    called(TOKENS[rows], target, LABELS[rows]).backward()
    return [weights.grad for weights in student.parameters()]


def test_a_batch_without_any_label_adds_nothing_by_the_module_of_the_guide():
    student, teacher = gpt2(16), gpt2(24)
    module = code_of_the_guide()["Distillation"](student, teacher.lm_head.weight.detach(), weight_power=0.3)
    value = module(TOKENS, states(teacher).detach(), torch.full_like(LABELS, IGNORED))
    assert value == 0


def rank_of_two(rank: int, folder: str) -> None:
    """One of two ranks, with one row of text and with two, whose tokens that count are 4 and 15."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save(gradients_of_the_guide(slice(0, 1) if rank == 0 else slice(1, 3), wrap=True), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_have_the_gradients_of_one_process(tmp_path):
    mp.spawn(rank_of_two, args=(str(tmp_path),), nprocs=2)
    whole = gradients_of_the_guide(slice(0, 3), wrap=False)
    for rank in (0, 1):
        equal(torch.load(tmp_path / f"{rank}.pt"), whole)
