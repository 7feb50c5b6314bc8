"""Distil a causal language model without its logits: python examples/causal_lm.py [--quick]. Some minutes on a CPU.

Llamas of transformers from a random start read what ships with Python: the pages of help() and the docstrings of its
modules. One seed and one setting a loss compare nothing; docs/results.md has a comparison.
"""

import ast
import re
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from limbeck.functional import linear_gkl, linear_gkl_normalizer, linear_js, linear_kl

LENGTH, WORDS, IGNORED = 64, 2500, -100


def paragraphs():
    """Return each paragraph of Python's help and docstrings once, as words and signs: a repeated one tests nothing."""
    texts, documented = [topics[name] for name in sorted(topics)], (ast.Module, ast.ClassDef, ast.FunctionDef)
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        nodes = ast.walk(ast.parse(file.read_bytes()))
        texts += [ast.get_docstring(x) or "" for x in nodes if isinstance(x, documented)]
    once = dict.fromkeys(part.strip() for text in texts for part in text.split("\n\n"))
    return [re.findall(r"\w+|[^\w\s]", re.sub(r"[-=+|*_.#]{3,}", " ", part)) for part in once]


def read():
    """Return rows of tokens (N, LENGTH) to train on, to choose by and to test on; 0 pads, 1 is any rarer word."""
    rows = [[]]
    for words in paragraphs():
        for piece in (words[start : start + LENGTH] for start in range(0, len(words), LENGTH)):
            if len(rows[-1]) + len(piece) > LENGTH:
                rows.append([])
            rows[-1] += piece
    part = [number // 25 % 10 for number in range(len(rows))]  # blocks: the text before a test row is mostly test too
    seen = Counter(word for row, place in zip(rows, part, strict=True) if place > 1 for word in row)
    numbers = {word: number for number, (word, _) in enumerate(seen.most_common(WORDS - 2), start=2)}
    tokens = torch.tensor([[numbers.get(w, 1) for w in row] + [0] * (LENGTH - len(row)) for row in rows])
    part = torch.tensor(part)
    return tokens[part > 1], tokens[part == 1], tokens[part == 0]


def llama(width, layers, seed):
    """Return a small causal language model; yours is any that has hidden states and output embeddings."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_attention_heads=4, pad_token_id=0, **sizes))


def hidden_states(model, tokens):
    """Return what predicts the next tokens, (N, LENGTH - 1, D). Padding is on the right, where nobody attends to it."""
    return model.base_model(input_ids=tokens).last_hidden_state[:, :-1]


def next_tokens(tokens):
    """Return the labels (N, LENGTH - 1): the token after each, IGNORED where that is padding."""
    return tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, IGNORED)


def train(model, tokens, loss, *, seed=0, epochs=2, lr=4e-3, rows=32, accumulate=2):
    """Train by `loss(hidden, head, part, batch)`: what the rows `part` add to the mean over the tokens of `batch`."""
    generator, whole = torch.Generator().manual_seed(seed), len(tokens) // rows * rows
    batches = torch.cat([torch.randperm(len(tokens), generator=generator)[:whole] for _ in range(epochs)]).split(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=len(batches) + 1)
    for batch in batches:
        for part in batch.chunk(accumulate):
            loss(hidden_states(model, tokens[part]), model.get_output_embeddings().weight, part, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()


def label_loss(tokens):
    """Return the cross-entropy of the labels, which makes the logits."""
    labels = next_tokens(tokens)
    counts = (labels != IGNORED).sum(1)

    def loss(hidden, head, part, batch):
        logits = (hidden @ head.T).flatten(0, 1)
        summed = cross_entropy(logits, labels[part].flatten(), reduction="sum", ignore_index=IGNORED)
        return summed / counts[batch].sum()

    return loss


class Lessons:
    """What a frozen teacher says of `tokens`, kept as its last hidden states: D numbers a token in place of C."""

    @torch.no_grad()
    def __init__(self, teacher, tokens):
        self.hidden = torch.cat([hidden_states(teacher, rows) for rows in tokens.split(64)])
        self.head, self.labels = teacher.get_output_embeddings().weight.detach(), next_tokens(tokens)
        self.counts = (self.labels != IGNORED).sum(1)

    def class_weights(self):
        """Return the teacher's mean prediction (C,), row by row of text: weights that all tokens share."""
        known = [hidden[labels != IGNORED] for hidden, labels in zip(self.hidden, self.labels, strict=True)]
        return sum(torch.softmax(hidden @ self.head.T, -1).sum(0) for hidden in known) / self.counts.sum()

    def loss(self, divergence, **options):
        """Return a loss for `train`. Micro-batches have unequal numbers of tokens, so each counts by its share.

        GKL's denominator is one of the whole batch, to which each row of text adds. With one vector of class weights
        all tokens add the same, and the share alone is right.
        """
        squares = None
        if divergence is linear_gkl and "prior" not in options:
            power, rows = options["weight_power"], zip(self.hidden, self.labels, strict=True)
            squares = [linear_gkl_normalizer(h, self.head, labels=y, weight_power=power) for h, y in rows]
            squares = torch.stack(squares)

        def loss(hidden, head, part, batch):
            share = self.counts[part].sum() / self.counts[batch].sum()
            given = {**options, "labels": self.labels[part], "ignore_index": IGNORED}
            if squares is not None:
                given["normalizer"] = squares[batch].sum() * share
            return share * divergence(hidden, head, self.hidden[part], self.head, **given)

        return loss


@torch.no_grad()
def measure(model, teacher, tokens):
    """Return the perplexity on other text, and how often the likeliest next token is the teacher's, in percent."""
    surprise, agreed, labels = 0.0, 0, next_tokens(tokens)
    for part in torch.arange(len(tokens)).split(32):
        logits, target = (m.get_output_embeddings()(hidden_states(m, tokens[part])) for m in (model, teacher))
        surprise += cross_entropy(logits.flatten(0, 1), labels[part].flatten(), reduction="sum", ignore_index=IGNORED)
        agreed += ((logits.argmax(-1) == target.argmax(-1)) & (labels[part] != IGNORED)).sum()
    count = (labels != IGNORED).sum()
    return (surprise / count).exp().item(), 100 * (agreed / count).item()


def main(quick=False):
    """Train a teacher, then students from one start, and say what they know of text that none has read."""
    rows, epochs = (100, 1) if quick else (None, 2)
    tokens, _, test = (part[:rows] for part in read())
    print(f"{len(tokens)} rows of up to {LENGTH} tokens, {WORDS} words; {len(test)} rows to test")
    teacher = train(llama(128, 2, seed=1), tokens, label_loss(tokens), lr=2e-3, epochs=2 * epochs).requires_grad_(False)
    print(f"teacher: perplexity {measure(teacher, teacher, test)[0]:.1f}", flush=True)
    lessons = Lessons(teacher, tokens)
    losses = {
        "cross-entropy": label_loss(tokens),
        "linear_kl": lessons.loss(linear_kl),
        "linear_js": lessons.loss(linear_js),
        "linear_gkl, weights of each token": lessons.loss(linear_gkl, weight_power=0.5),
        "linear_gkl, weights of the classes": lessons.loss(linear_gkl, prior=lessons.class_weights(), weight_power=0.5),
    }
    for name, loss in losses.items():
        student = train(llama(64, 1, seed=0), tokens, loss, epochs=epochs)
        perplexity, agreement = measure(student, teacher, test)
        print(f"{name}: perplexity {perplexity:.1f}, the teacher's likeliest word {agreement:.1f}%", flush=True)


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
