"""A comparison's rows are of one network, also where it is called again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import limbeck
from limbeck.errors import UserError


def narrow():
    return nn.Linear(3, 4)


def wide():
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))


def compare(folder, student, losses):
    inputs, labels = torch.arange(24.0).view(8, 3).sin(), torch.arange(8) % 4
    teacher = narrow()
    with torch.no_grad():
        teacher.weight.fill_(1.0), teacher.bias.fill_(0.0)
    options = {"seeds": 1, "epochs": 1, "folder": folder, "progress": False}
    return limbeck.compare(student, teacher, [(inputs, labels)], val=[(inputs, labels)], losses=losses, **options)


def test_rows_of_another_network_are_not_compared_with_those_of_the_call_before(tmp_path):
    compare(tmp_path, narrow, ["ce"])
    with pytest.raises(UserError) as caught:
        compare(tmp_path, wide, ["ce", "kl"])
    line = str(caught.value)
    assert "weights.safetensors: expected weights of `student`, got another network's" in line
    assert "\n" not in line
    assert not (tmp_path / "kl").exists()


def test_rows_are_added_to_those_of_the_call_before(tmp_path):
    for losses in (["ce"], ["ce", "kl"]):
        rows = compare(tmp_path, narrow, losses).rows
    assert [row.name for row in rows] == ["ce", "kl"]
