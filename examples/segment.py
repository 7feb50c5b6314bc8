"""GKL between the pixels of two networks, in a loop of your own: intersection over union on scenes never seen.

python examples/segment.py

300 scenes of emoji on photographs for the student, 900 for its teacher, a minute.
"""

import torch
from torch.nn import functional as F

from limbeck import DenseGKLLoss
from limbeck.config import ScenesOptions
from limbeck.data.scenes import CLASSES, render
from limbeck.measures.segmentation import confusion_matrix, mean_iou
from limbeck.models.dense import encoder_decoder

NUM_CLASSES = 1 + len(CLASSES)


def train(images, masks, width, epochs, teacher=None):
    """Train on scenes, drawn to what a teacher says of each pixel if there is one."""
    torch.manual_seed(0)
    model = encoder_decoder(images.shape[1:], NUM_CLASSES, width=width)
    loss = DenseGKLLoss(NUM_CLASSES, weight_power=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(epochs):
        for part in torch.randperm(len(images), generator=torch.Generator().manual_seed(epoch)).split(16):
            logits, labels = model(images[part]), masks[part]
            total = F.cross_entropy(logits, labels, ignore_index=255)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(images[part])
                total = total + loss(logits, target, labels)
                loss.observe(target, labels)  # the class prior: mean predictions over the pixels of each class
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
        loss.refresh()
    return model.eval()


def main(epochs=8, scenes=900):
    """Print the mean intersection over union of the student alone, drawn to the teacher, and of the teacher."""
    options = ScenesOptions(side=32, scale=(0.35, 0.75), train=scenes, test=300)
    (images, masks), (test, truth) = (
        (part.images.float() / 127.5 - 1, part.masks.long())
        for part in (render(options, 0, "train"), render(options, 0, "test"))
    )
    teacher, few = train(images, masks, 24, epochs), slice(scenes // 3)
    students = {"alone": train(images[few], masks[few], 12, epochs)}
    students["GKL"] = train(images[few], masks[few], 12, epochs, teacher)
    for name, model in (*students.items(), ("teacher", teacher)):
        with torch.no_grad():
            share = mean_iou(confusion_matrix(model(test).argmax(1), truth, NUM_CLASSES))
        print(f"{name}: mIoU {share:.1%} of {len(test)} unseen scenes")


if __name__ == "__main__":
    main()
