"""Distil a small CLIP in your own loop: python examples/image_text.py. A few epochs of one seed compare nothing."""

import torch

from limbeck import ContrastiveDivergenceLoss, contrastive_cross_entropy
from limbeck.config import DataOptions, ModelOptions
from limbeck.data import Order, build_data
from limbeck.measures.image_text import class_features, nearest
from limbeck.models import build_model

TEMPLATES = ("{}", "{}, {group}", "{group}: {}")
torch.set_num_threads(1)
data = build_data(DataOptions(name="emoji", image_size=16, captions={"templates": TEMPLATES}))
augment = DataOptions(augment={"resized_crop": (0.6, 1.0)}).augment


def towers(width, seed):
    """Your networks: whatever returns features of images and texts at unit length, and a scale."""
    shape = data.image_shape
    return build_model(ModelOptions(name="image_text", width=width), image_shape=shape, num_classes=8, seed=seed)


def train(student, epochs, teacher=None, divergence=None):
    """Return the student after some epochs of the contrastive loss, and of a divergence from a teacher."""
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=0.05)
    stream = data.train.open(Order(augment, batch_size=64, drop_last=True, seed=0))
    for epoch in range(1, epochs + 1):
        for batch in stream.batches(epoch):
            ours = student(batch.images, batch.labels)
            loss = contrastive_cross_entropy(ours.images, ours.texts, logit_scale=ours.scale)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(batch.images, batch.labels)
                scales = {"logit_scale": ours.scale, "target_logit_scale": target.scale}
                loss = loss + divergence(*ours[:2], *target[:2], **scales)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student.eval()


@torch.no_grad()
def zero_shot(model):
    """Return how many held-out emoji are nearest to the name of their group."""
    images = torch.cat([model.encode_images(batch) for batch in data.test.batches(256)])
    return (nearest(images, class_features(model, data.test.prompts)) == data.test.labels).float().mean().item()


teacher = train(towers(16, seed=1), epochs=10)
kl = ContrastiveDivergenceLoss(divergence="kl", temperature=2.0, scale_by_t2=True, tile=1024)
print(f"teacher {zero_shot(teacher):.3f}, student alone {zero_shot(train(towers(8, seed=0), 5)):.3f}", end=", ")
print(f"student beside its teacher {zero_shot(train(towers(8, seed=0), 5, teacher, kl)):.3f}")
