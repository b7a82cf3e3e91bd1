"""The encoded split on disk: it holds exactly what the codec gives, and is built once for the same texts and codec."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_models import frozen, frozen_encoder
from latent_models.codec import ModelError, find_model
from latent_models.latent_cache import cache_folder, encoded
from latent_models.seq2seq_codec import Seq2SeqCodec
from latent_models.statistics import LatentStatistics

ROOT = Path(__file__).parents[2]
# Another process may share its products out over its threads in another way, and round otherwise.
OTHER_THREADS = {"rtol": 1e-5, "atol": 1e-6}
FILES = ("states.npy", "offsets.npy", "meta.json")
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


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_a_batch_is_what_a_loop_over_its_texts_gives(codec, tmp_path, dtype):
    cache = encoded(codec, TEXTS, tmp_path, "train", dtype)
    everything = torch.cat(list(cache.pieces()))
    for indices in ([3, 2, 0], np.array([5]), np.arange(6), [1, 1]):
        states, valid = cache.batch(indices)
        for i, own, kept in zip(indices, states, valid, strict=True):
            length = cache.lengths[i]
            assert kept.tolist() == [True] * length + [False] * (len(own) - length)
            assert torch.equal(own[:length], everything[cache.offsets[i] : cache.offsets[i + 1]])
            assert (own[length:] == 0).all()
        assert states.dtype == torch.float32
        assert states.shape[1] == valid.sum(1).max()


def test_bf16_takes_half_the_room_and_rounds_to_the_nearest(codec, tmp_path):
    exact, short = (encoded(codec, TEXTS, tmp_path, "train", dtype) for dtype in ("float32", "bf16"))
    assert short.states.nbytes * 2 == exact.states.nbytes
    assert np.array_equal(short.offsets, exact.offsets)
    wanted, found = (torch.cat(list(cache.pieces())) for cache in (exact, short))
    assert torch.equal(found, wanted.to(torch.bfloat16).float())
    relative = ((found - wanted) / wanted).abs().max()
    assert 2**-9 < relative <= 2**-8  # half a unit in the last of 8 binary digits
    metas = [json.loads((place / "meta.json").read_text())["dtype"] for place in tmp_path.iterdir()]
    assert sorted(metas) == ["bf16", "float32"]


def test_statistics_are_those_of_what_is_stored(codec, tmp_path):
    cache = encoded(codec, TEXTS, tmp_path, "train", "bf16")
    stored = torch.cat(list(cache.pieces())).double()
    fitted = LatentStatistics.fit(cache.pieces(), cache.lengths)
    assert torch.allclose(fitted.mean.double(), stored.mean(0), rtol=1e-6)
    assert torch.allclose(fitted.scale.double(), stored.var(0, correction=0).mean().sqrt(), rtol=1e-6)


def test_a_codec_that_pads_at_the_left_has_the_same_states_kept(codec, folder, tmp_path):
    other = Seq2SeqCodec.load(folder, max_length=32)
    other.tokenizer.padding_side = "left"
    cache = encoded(other, TEXTS, tmp_path, "train", batch_size=len(TEXTS))
    batch = other.encode(TEXTS)
    assert not batch.valid[0, 0]
    assert torch.allclose(cache.batch([0])[0][0], batch.x0[0][batch.valid[0]], atol=1e-5)


def test_texts_are_tokenised_some_at_a_time(codec, tmp_path, monkeypatch):
    whole = codec.token_lengths(TEXTS)
    sizes, encoder, tokenizer = [], codec.encoder, codec.tokenizer
    monkeypatch.setattr(frozen_encoder, "CHUNK", 4)
    monkeypatch.setattr(encoder, "tokenizer", lambda texts, **how: sizes.append(len(texts)) or tokenizer(texts, **how))
    assert codec.token_lengths(TEXTS) == whole
    assert sizes == [4, 2]


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
    variants = [
        TEXTS, TEXTS[:-1], TEXTS[::-1], [*TEXTS[:-1], "Juniper is a café."], [TEXTS[0] + TEXTS[1], *TEXTS[2:]],
        ["ab", "c"], ["a", "bc"], ["abc"], ["a\0b"], ["a", "b"],
    ]  # fmt: skip
    for texts in [*variants, list(TEXTS)]:
        assert len(encoded(codec, texts, tmp_path, "train").lengths) == len(texts)
    assert len(list(tmp_path.iterdir())) == len(variants)


def copied(folder, place):
    """A copy of the codec's folder whose files can be written to."""
    return shutil.copytree(folder, place, copy_function=shutil.copyfile)


def edited(path, find, replace):
    content = path.read_text()
    assert find in content
    path.write_text(content.replace(find, replace, 1))


def other_weights(place):
    weights = load_file(place / "model.safetensors")
    weights[min(weights)] += 1e-3
    save_file(weights, place / "model.safetensors", {"format": "pt"})


CHANGES = {
    "a weight": other_weights,
    "the configuration": lambda place: edited(place / "config.json", '"gelu"', '"relu"'),
    "the tokenizer": lambda place: edited(place / "tokenizer.json", '"trim_offsets": true', '"trim_offsets": false'),
    "the tokenizer's settings": lambda place: edited(
        place / "tokenizer_config.json", "{", '{"truncation_side": "left",'
    ),
    "a vocabulary": lambda place: (place / "vocab.txt").write_text("pub\n"),
    "which weights are read": lambda place: (place / "model.safetensors.index.json").write_text("{}"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_the_key_changes_with_all_that_encoding_reads(codec, folder, tmp_path, what):
    place = copied(folder, tmp_path / "copy")
    assert Seq2SeqCodec.load(place, max_length=32).fingerprint == codec.fingerprint
    CHANGES[what](place)
    assert Seq2SeqCodec.load(place, max_length=32).fingerprint != codec.fingerprint


def test_the_key_changes_with_max_length_and_the_libraries(codec, folder, monkeypatch):
    assert Seq2SeqCodec.load(folder, max_length=33).fingerprint != codec.fingerprint
    monkeypatch.setattr(frozen, "version", lambda library: "0.0")
    assert Seq2SeqCodec.load(folder, max_length=32).fingerprint != codec.fingerprint


def test_the_key_does_not_change_with_what_only_decoding_reads(codec, folder, tmp_path):
    copy = copied(folder, tmp_path / "copy")
    (copy / "README.md").write_text("another card")
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | {"num_beams": 2}))
    assert Seq2SeqCodec.load(copy, max_length=32).fingerprint == codec.fingerprint


# --- processes --------------------------------------------------------------------------------------------------------

# Encodes one text, says so, and encodes the others when the file `go` is there.
BUILDER = """
import json, sys, time
from pathlib import Path
from latent_models.codec import find_model
from latent_models.latent_cache import encoded
from latent_models.seq2seq_codec import Seq2SeqCodec

class Slow(Seq2SeqCodec):
    def encode(self, texts):
        states = super().encode(texts)
        print("encoded", flush=True)
        while not Path(sys.argv[2]).exists():
            time.sleep(0.01)
        return states

codec = Slow.load(find_model("bart-demo"), max_length=32)
encoded(codec, json.loads(sys.argv[1]), Path(sys.argv[3]), "train", batch_size=1)
"""


@pytest.fixture
def building(tmp_path):
    """Another process that is in the middle of a build, in tmp_path/shared; it goes on when tmp_path/go is there."""
    argv = [sys.executable, "-c", BUILDER, json.dumps(TEXTS), tmp_path / "go", tmp_path / "shared"]
    process = subprocess.Popen(argv, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == "encoded\n"
    yield process
    process.kill()
    process.communicate()


def test_a_build_killed_in_the_middle_leaves_nothing_behind_the_next(codec, tmp_path, building):
    building.kill()
    building.wait(timeout=60)
    assert [place.name[0] for place in (tmp_path / "shared").iterdir()] == ["."]
    cache = encoded(codec, TEXTS, tmp_path / "shared", "train")
    again = encoded(codec, TEXTS, tmp_path / "other", "train")
    np.testing.assert_allclose(cache.states, again.states, **OTHER_THREADS)
    assert [place.name for place in (tmp_path / "shared").iterdir()] == [
        place.name for place in (tmp_path / "other").iterdir()
    ]


def test_of_two_processes_one_builds_and_the_other_waits(codec, tmp_path, building, monkeypatch):
    class Terminal(io.StringIO):
        def write(self, text):
            (tmp_path / "go").touch()  # now that this process is about to wait
            return super().write(text)

    forbid_encoding(codec, monkeypatch)
    monkeypatch.setattr(sys, "stderr", Terminal())
    cache = encoded(codec, TEXTS, tmp_path / "shared", "train")
    assert sys.stderr.getvalue() == "train: another process is encoding these texts; waiting for it\n"
    building.communicate(timeout=60)
    assert building.returncode == 0
    monkeypatch.undo()
    alone = encoded(codec, TEXTS, tmp_path / "other", "train", batch_size=1)
    np.testing.assert_allclose(cache.states, alone.states, **OTHER_THREADS)
    assert np.array_equal(cache.offsets, alone.offsets)
    assert len(list((tmp_path / "shared").iterdir())) == 1


# --- memory -----------------------------------------------------------------------------------------------------------

# 300 MB of states, of which statistics and batches may bring 100 MB into the memory of the process at any time.
READER = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from latent_models.latent_cache import STORED, LatentCache
from latent_models.statistics import LatentStatistics

torch.set_num_threads(1)
for name, dtype in STORED.items():
    path = Path(sys.argv[1]) / name
    np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(300_000_000 // (768 * dtype.itemsize), 768))
    states = np.lib.format.open_memmap(path, mode="r")
    cache = LatentCache(states, np.arange(0, len(states), 50), 0)
    with open("/proc/self/status") as status:
        (data,) = [int(line.split()[1]) * 1024 for line in status if line.startswith("VmData")]
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data + 100_000_000, most))  # does not count what is mapped read-only
    LatentStatistics.fit(cache.pieces(), cache.lengths)
    for indices in np.random.default_rng(0).integers(len(cache.lengths), size=(100, 64)):
        cache.batch(indices)
    try:
        np.array(states)
    except MemoryError:
        print(f"{name} within bounds")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the memory of a process")
def test_states_are_never_held_in_memory(tmp_path):
    argv = [sys.executable, "-c", READER, tmp_path]
    result = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout == "float32 within bounds\nbf16 within bounds\n", result.stderr


# --- damage -----------------------------------------------------------------------------------------------------------


def meta(**changed):
    def damage(place):
        content = json.loads((place / "meta.json").read_text()) | changed
        kept = {key: value for key, value in content.items() if value is not None}
        (place / "meta.json").write_text(json.dumps(kept))

    return damage


def array(file, change):
    def damage(place):
        content = change(np.load(place / file))
        (place / file).unlink()
        np.save(place / file, content)

    return damage


def raw(file, change):
    return lambda place: (place / file).write_bytes(change((place / file).read_bytes()))


DAMAGE = {
    **{f"no {file}": lambda place, file=file: (place / file).unlink() for file in FILES},
    **{f"{file} cut short": raw(file, lambda content: content[:-10]) for file in FILES},
    **{f"{file} empty": raw(file, lambda content: b"") for file in FILES},
    **{f"{file} of zeros": raw(file, lambda content: bytes(len(content))) for file in FILES},
    **{f"{file} of text": raw(file, lambda content: b"[1, 2]\n") for file in FILES},
    "header of states garbled": raw("states.npy", lambda content: content.replace(b"{", b"(", 1)),
    "header of offsets garbled": raw("offsets.npy", lambda content: content.replace(b"'shape'", b"'shape\n", 1)),
    "no truncated": meta(truncated=None),
    "no dtype": meta(dtype=None),
    "another dtype": meta(dtype="bf16"),
    "another number of texts": meta(texts=5),
    "truncated is text": meta(truncated="1"),
    "rows too few": array("states.npy", lambda states: states[:-1]),
    "rows too many": array("states.npy", lambda states: np.concatenate([states, states[:1]])),
    "states too narrow": array("states.npy", lambda states: states[:, 1:]),
    "states flat": array("states.npy", lambda states: states.ravel()),
    "states float64": array("states.npy", lambda states: states.astype(np.float64)),
    "states bf16": array("states.npy", lambda states: states.astype(np.uint16)),
    "offsets too few": array("offsets.npy", lambda offsets: offsets[:-1]),
    "offsets not increasing": array("offsets.npy", lambda offsets: offsets[[0, 2, 1, 3, 4, 5, 6]]),
    "offsets shifted": array("offsets.npy", lambda offsets: offsets + 1),
    "offsets float": array("offsets.npy", lambda offsets: offsets.astype(np.float64)),
    "offsets beyond the longest": array("offsets.npy", lambda offsets: offsets * [1, 1, 1, 1, 1, 1, 100]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_cache_is_told_in_one_line(codec, tmp_path, kind):
    encoded(codec, TEXTS, tmp_path, "train")
    (place,) = tmp_path.iterdir()
    DAMAGE[kind](place)
    with pytest.raises(ModelError, match=re.escape(str(place)) + ".*damaged.*delete the folder") as error:
        encoded(codec, TEXTS, tmp_path, "train")
    assert "\n" not in str(error.value)


def test_what_is_no_folder_is_told_before_anything_is_encoded(codec, tmp_path):
    place = cache_folder(codec, TEXTS, tmp_path, "train", "float32")
    for put in (place.touch, lambda: place.symlink_to(tmp_path / "gone")):
        put()
        with pytest.raises(ModelError, match=re.escape(str(place)) + ": not a folder; expected .*move it away"):
            encoded(codec, TEXTS, tmp_path, "train")
        assert list(tmp_path.iterdir()) == [place]
        place.unlink()
