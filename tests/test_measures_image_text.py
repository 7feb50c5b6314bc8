"""Zero-shot accuracy and retrieval agree with a search of one query after the other."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.data.pairs import Gallery
from limbeck.data.sources import Pixels, Source
from limbeck.data.words import word_tokens
from limbeck.measures import image_text
from limbeck.measures.image_text import as_bytes, class_features, nearest, recalls
from limbeck.models.image_text import SmallImageText
from limbeck.turns import Alone


def features(count, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, width, generator=generator, dtype=torch.float64), dim=-1)


def recall_of_one_after_another(queries, keys, query_groups, key_groups, depth):
    found = 0
    for query, group in zip(queries, query_groups, strict=True):
        similarities = [float(query @ key) for key in keys]
        # From the nearest on; of equals the wrong one first.
        order = sorted(range(len(keys)), key=lambda place: (-similarities[place], key_groups[place] == group))
        found += any(key_groups[place] == group for place in order[:depth])
    return found / len(queries)


@pytest.mark.parametrize("depth", [1, 2, 5, 20])
def test_recall_is_that_of_a_search_of_one_after_another(depth, monkeypatch):
    monkeypatch.setattr(image_text, "ROWS", 7)  # several blocks
    queries, keys = features(31), features(20, seed=1)
    query_groups, key_groups = torch.arange(31) % 8, torch.arange(20) % 8
    expected = recall_of_one_after_another(queries, keys, query_groups, key_groups, depth)
    assert recalls(queries, keys, query_groups, key_groups, (depth,)) == [pytest.approx(expected, abs=1e-12)]


def test_a_network_to_which_all_are_alike_finds_nothing():
    same = torch.ones(5, 3)
    assert recalls(same, same, torch.arange(5), torch.arange(5), (1, 4, 5)) == [0.0, 0.0, 1.0]


def test_a_class_is_the_direction_of_the_mean_over_its_prompts():
    class Words:
        def encode_texts(self, tokens):
            return normalize(tokens.double(), dim=-1)

    prompts = torch.tensor([[[3, 0], [0, 5]], [[1, 0], [2, 0]]])
    found = class_features(Words(), prompts)
    torch.testing.assert_close(found, torch.tensor([[0.5**0.5, 0.5**0.5], [1.0, 0.0]]))
    assert nearest(torch.tensor([[1.0, 0.1], [1.0, 1.0]]), found).tolist() == [1, 0]


@pytest.fixture
def gallery():
    captions = ("cat", "dog", "Cat", "red heart", "blue heart", "sun")  # cat twice
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), generator=generator, dtype=torch.uint8)
    source = Source(images, torch.tensor([0, 0, 0, 1, 1, 2]), Pixels(255, (0.5,) * 3, (0.5,) * 3))
    prompts = torch.stack([word_tokens([f"a {name}", name], 4) for name in ("animal", "heart", "sky")])
    return Gallery(source, prompts, word_tokens(captions, 4), captions, ("animal", "heart", "sky"))


def test_the_judge_counts_equal_captions_as_one(gallery):
    torch.manual_seed(0)
    model = SmallImageText((3, 8, 8), 4, 1, 0.0, (10.0, 0.0)).eval()
    with torch.no_grad():
        metrics, arrays = image_text.judge(model, gallery, None, Alone())
        images, texts = model.encode_images(next(gallery.batches(6))), model.encode_texts(gallery.tokens)
    groups = torch.tensor([0, 1, 0, 2, 3, 4])
    for depth, suffix in ((1, ""), (5, "_5"), (10, "_10")):
        ours = metrics[f"image_to_text{suffix}"], metrics[f"text_to_image{suffix}"]
        twins = [
            recall_of_one_after_another(*pair, groups, groups, depth) for pair in ((images, texts), (texts, images))
        ]
        assert ours == pytest.approx(twins)
    assert metrics["samples"] == 6
    assert int(arrays["confusion"].trace()) == round(6 * metrics["zero_shot"])
    assert arrays["confusion"].sum(1).tolist() == [3, 2, 1]
    shown = [bytes(row.tolist()).rstrip(b"\0").decode() for row in arrays["captions"]]
    assert arrays["retrieved_right"].shape == (len(shown), 5)
    assert set(shown) <= set(gallery.captions)
    places = arrays["caption_places"].tolist()
    assert places == sorted(places)  # from the best found to the worst
    assert [place <= 5 for place in places] == arrays["retrieved_right"].any(1).tolist()


def test_texts_go_into_bytes_and_back():
    assert [bytes(row).rstrip(b"\0").decode() for row in as_bytes(["é", "abc"]).tolist()] == ["é", "abc"]
    assert as_bytes([]).shape == (0, 0)
