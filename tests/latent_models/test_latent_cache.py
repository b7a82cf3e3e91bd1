"""The encoded split on disk: it holds exactly what the codec gives, and is built once for the same texts and codec."""

import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_models.codec import ModelError, find_model
from latent_models.latent_cache import encoded
from latent_models.seq2seq_codec import Seq2SeqCodec

TEXTS = [
    "Saffron is a pub in the suburbs.",
    "The Little Owl, a Greek café next to the library, costs about the average. Children are welcome and the food is "
    "Greek, and it goes on and on.",
    "Cedar House is a pub.",
    "Near the museum there is an adults-only bistro named Golden Wok.",
    "Saffron is a pub in the suburbs.",
    "Marigold is a cheap pub not far from the old bridge. It has excellent reviews.",
]


@pytest.fixture(scope="module")
def folder():
    return find_model("bart-demo")


@pytest.fixture(scope="module")
def codec(folder):
    return Seq2SeqCodec.load(folder, max_length=32)


def forbid_encoding(codec, monkeypatch) -> None:
    monkeypatch.setattr(codec, "encode", lambda texts: pytest.fail("encoded again"))


def test_states_are_those_of_each_text_alone_in_the_order_given(codec, tmp_path):
    cache = encoded(codec, TEXTS, tmp_path, "train", batch_size=2)
    assert cache.states.dtype == np.float32
    for i, text in enumerate(TEXTS):
        alone = codec.encode([text]).x0[0]
        own = torch.from_numpy(np.array(cache.states[cache.offsets[i] : cache.offsets[i + 1]]))
        assert own.shape == alone.shape
        assert torch.allclose(own, alone, atol=1e-5)


def test_nothing_is_padded_on_disk(codec, tmp_path):
    cache = encoded(codec, TEXTS, tmp_path, "train")
    lengths = [min(32, length) for length in codec.token_lengths(TEXTS)]
    assert cache.lengths.tolist() == lengths
    assert cache.states.shape == (sum(lengths), codec.width)
    assert isinstance(cache.states, np.memmap)


def test_a_batch_is_padded_with_zeros_to_its_longest_text(codec, tmp_path):
    cache = encoded(codec, TEXTS, tmp_path, "train")
    states, valid = cache.batch([3, 2, 0])
    assert valid.sum(1).tolist() == [cache.lengths[3], cache.lengths[2], cache.lengths[0]]
    assert states.shape[1] == max(cache.lengths[[3, 2, 0]]) < max(cache.lengths)
    assert (states[~valid] == 0).all()
    assert torch.allclose(states[1, : cache.lengths[2]], codec.encode([TEXTS[2]]).x0[0], atol=1e-5)
    states += 1  # a trainer may change its batch, the disk stays as it is
    assert (cache.batch([3])[0] != states[:1, : cache.lengths[3]]).all()


def test_the_second_call_reads_what_the_first_one_wrote(codec, tmp_path, monkeypatch):
    first = encoded(codec, TEXTS, tmp_path, "train")
    forbid_encoding(codec, monkeypatch)
    second = encoded(codec, list(TEXTS), tmp_path, "train")
    assert np.array_equal(first.states, second.states)
    assert np.array_equal(first.offsets, second.offsets)
    assert first.truncated == second.truncated == 1


def test_texts_that_were_cut_are_counted(codec, folder, tmp_path):
    assert encoded(codec, TEXTS, tmp_path, "train").truncated == 1
    assert max(codec.token_lengths(TEXTS)) > 32
    roomy = Seq2SeqCodec.load(folder, max_length=64)
    cache = encoded(roomy, TEXTS, tmp_path, "train")
    assert cache.truncated == 0
    assert cache.lengths.tolist() == roomy.token_lengths(TEXTS)


@pytest.mark.parametrize("failing_call", [1, 2])
def test_an_interrupted_build_leaves_nothing_and_the_next_one_works(codec, tmp_path, monkeypatch, failing_call):
    calls, encode = [], codec.encode

    def interrupted(texts):
        calls.append(texts)
        if len(calls) == failing_call:
            raise KeyboardInterrupt
        return encode(texts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(codec, "encode", interrupted)
        encoded(codec, TEXTS, tmp_path, "train", batch_size=2)
    assert len(calls) == failing_call
    assert list(tmp_path.iterdir()) == []
    assert encoded(codec, TEXTS, tmp_path, "train").lengths.tolist()
    assert len(list(tmp_path.iterdir())) == 1


def test_two_builds_of_one_cache_at_once_do_no_harm(codec, tmp_path, monkeypatch):
    """Another run finishes the same cache while this one is encoding."""
    other = tmp_path / "other"
    encoded(codec, TEXTS, other, "train")
    encode, folder = codec.encode, tmp_path / "shared"

    def meanwhile(texts):
        shutil.copytree(other, folder, dirs_exist_ok=True)
        return encode(texts)

    monkeypatch.setattr(codec, "encode", meanwhile)
    cache = encoded(codec, TEXTS, folder, "train")
    assert len(cache.lengths) == len(TEXTS)
    assert [place.name for place in folder.iterdir()] == [place.name for place in other.iterdir()]


def test_the_key_changes_with_the_texts_and_nothing_but_them(codec, tmp_path):
    variants = [TEXTS, TEXTS[:-1], TEXTS[::-1], [*TEXTS[:-1], "Juniper is a café."], [TEXTS[0] + TEXTS[1], *TEXTS[2:]]]
    for texts in [*variants, list(TEXTS)]:
        assert len(encoded(codec, texts, tmp_path, "train").lengths) == len(texts)
    assert len(list(tmp_path.iterdir())) == len(variants)


def copied(folder, place):
    """A copy of the codec's folder whose files can be written to."""
    return shutil.copytree(folder, place, copy_function=shutil.copyfile)


def test_the_key_changes_with_max_length_weights_and_tokenizer_settings(codec, folder, tmp_path):
    same = copied(folder, tmp_path / "same")
    assert Seq2SeqCodec.load(same, max_length=32).fingerprint == codec.fingerprint
    assert Seq2SeqCodec.load(same, max_length=33).fingerprint != codec.fingerprint

    other_weights = copied(folder, tmp_path / "other_weights")
    weights = load_file(other_weights / "model.safetensors")
    weights[min(weights)] += 1e-3
    save_file(weights, other_weights / "model.safetensors", {"format": "pt"})
    assert Seq2SeqCodec.load(other_weights, max_length=32).fingerprint != codec.fingerprint

    cut_at_the_left = copied(folder, tmp_path / "cut_at_the_left")
    settings = (cut_at_the_left / "tokenizer_config.json").read_text()
    (cut_at_the_left / "tokenizer_config.json").write_text(settings.replace("{", '{"truncation_side": "left",', 1))
    left = Seq2SeqCodec.load(cut_at_the_left, max_length=32)
    assert not torch.allclose(left.encode(TEXTS[1:2]).x0, codec.encode(TEXTS[1:2]).x0, atol=1e-2)
    assert left.fingerprint != codec.fingerprint


def test_the_key_does_not_change_with_what_only_decoding_reads(codec, folder, tmp_path):
    copy = copied(folder, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    (copy / "generation_config.json").write_text('{"num_beams": 2}')
    assert Seq2SeqCodec.load(copy, max_length=32).fingerprint == codec.fingerprint


@pytest.mark.parametrize("file", ["states.npy", "offsets.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["cut short", "missing"])
def test_a_damaged_cache_is_told_in_one_line(codec, tmp_path, file, damage):
    encoded(codec, TEXTS, tmp_path, "train")
    (place,) = tmp_path.iterdir()
    if damage == "missing":
        (place / file).unlink()
    else:
        (place / file).write_bytes((place / file).read_bytes()[:-10])
    with pytest.raises(ModelError, match=re.escape(str(place)) + ".*delete the folder") as error:
        encoded(codec, TEXTS, tmp_path, "train")
    assert "\n" not in str(error.value)
