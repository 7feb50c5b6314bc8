"""Weights trained here open in the libraries that the names come from, and theirs open here."""

from __future__ import annotations

import pytest
import torch
from folders import write_imagenet
from test_runs import SIDE, recipe

from limbeck.config import ModelOptions
from limbeck.engine.evaluate import open_run
from limbeck.engine.export import export
from limbeck.engine.fit import fit
from limbeck.models import build_model
from limbeck.models.weights import load_weights
from limbeck.network_names import DEEP_MODELS

STUDENTS = ["resnet18", "tv:resnet18", "timm:convnext_atto"]


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_opens_in_its_library_and_has_the_same_logits(name, tmp_path):
    images = write_imagenet(tmp_path / "images", train=2, val=1)
    fit(recipe(images, name), tmp_path / "run")
    export(tmp_path / "run", tmp_path / "student.pth", None)
    if name.startswith("timm"):
        import timm

        theirs = timm.create_model("convnext_atto", num_classes=10)
    else:
        from torchvision.models import resnet18

        theirs = resnet18(num_classes=10)
    theirs.load_state_dict(torch.load(tmp_path / "student.pth"), strict=True)
    opened = open_run(tmp_path / "run", None)
    batch = next(opened.data.test.batches(10))
    assert batch.shape == (10, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(batch), opened.model.eval()(batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DEEP_MODELS)
@torch.no_grad()
def test_torchvisions_own_weights_give_torchvisions_logits_here(name, tmp_path):
    from torchvision.models import get_model, resnet

    if name == "resnext101_32x4d":  # torchvision names wider ones only
        theirs = resnet.ResNet(resnet.Bottleneck, [3, 4, 23, 3], num_classes=7, groups=32, width_per_group=4).eval()
    else:
        theirs = get_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = build_model(ModelOptions(name=name), image_shape=(3, 64, 64), num_classes=7, seed=0)
    load_weights(tmp_path / "theirs.pth", ours, name)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours.eval()(images), theirs(images), rtol=1e-4, atol=1e-4)
