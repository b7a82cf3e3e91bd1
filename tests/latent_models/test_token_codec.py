"""Texts to token ids and back: every rule of the codec, with the demo tokenizers and with characters.

B batch, L positions, V vocabulary, N texts.
"""

import copy
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from latent_models import token_codec
from latent_models.codec import MODELS_DIR, ModelError, find_model
from latent_models.corpora import DataOptions, load_corpus
from latent_models.token_codec import TokenCodec, character_tokenizer, find_tokenizer, word_counts

BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "mill", "is", "a", "pub", ".", "##s"]
UNICODE = "Le café « Ögür » naïve 日本語 🙂 e\u0301 \u200d."


@pytest.fixture(scope="module")
def bart() -> TokenCodec:
    return TokenCodec.load(find_model("bart-demo"), max_length=64)


@pytest.fixture(scope="module")
def gpt2() -> TokenCodec:
    return TokenCodec.load(find_model("gpt2-demo"), max_length=64)


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> TokenCodec:
    """A BERT tokenizer of twelve words, whose mask is in the middle and whose end of text is [SEP]."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    return TokenCodec.load(folder, max_length=8)


TEXTS = ["abba", "b\n\n a", "b"]


@pytest.fixture
def characters() -> TokenCodec:
    """[PAD] [EOS] \\n, space, a, b and an appended mask."""
    return TokenCodec(character_tokenizer(TEXTS), max_length=8)


@pytest.fixture(scope="module")
def demo_texts() -> list[str]:
    return load_corpus(DataOptions("demo")).train.texts


# --- vocabularies -----------------------------------------------------------------------------------------------------


def ids_of(codec: TokenCodec) -> tuple[int, ...]:
    return codec.vocab_size, codec.clean_vocab_size, codec.mask_id, codec.eos_id, codec.pad_id


def test_special_ids_are_the_tokenizers_own_where_it_has_them(bart, gpt2, bert, characters):
    assert ids_of(bart) == (787, 787, 4, 2, 1)
    assert ids_of(gpt2) == (784, 783, 783, 0, 0)  # no mask: the last id; no padding token: the end of text
    assert ids_of(bert) == (12, 12, 4, 3, 0)
    assert ids_of(characters) == (7, 6, 6, 1, 0)


def test_the_given_tokenizer_stays_as_it_was(gpt2):
    assert len(gpt2.tokenizer) == 783
    assert gpt2.tokenizer("a <|endoftext|> b")["input_ids"].count(0) == 1


def test_a_tokenizer_without_end_of_text_is_refused():
    backend = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}))
    with pytest.raises(ModelError, match="no end of text; expected eos_token or sep_token"):
        TokenCodec(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_limit_without_room_is_refused():
    with pytest.raises(ModelError, match="--max_length 1: expected at least 2"):
        TokenCodec(character_tokenizer(TEXTS), max_length=1)


def test_a_folder_without_tokenizer_is_told_in_one_line(tmp_path):
    with pytest.raises(ModelError, match="expected a tokenizer.json") as error:
        TokenCodec.load(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_tokenizer_that_contradicts_itself_is_told_in_one_line(tmp_path):
    """A merge of a token that the vocabulary lacks: found when the tokenizer is copied, by an error of no own kind."""
    folder = Path(shutil.copytree(MODELS_DIR / "bart-demo", tmp_path / "own"))
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"][0] = ["t", "absent"]
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="no tokenizer .*out of vocabulary.*; expected") as error:
        TokenCodec.load(folder)
    assert str(folder) in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_own_tokenizers_file_is_found_and_used(tmp_path):
    """Words at white space, as `tokenizers` saves them, with a hand-written config that names the end of text."""
    backend = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, "the": 2, "pub": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "words"
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "unk_token": "<unk>"}))
    assert find_tokenizer("words", models_dir=tmp_path) == find_tokenizer(str(folder)) == folder
    codec = TokenCodec.load(folder)
    assert not codec.is_characters
    assert ids_of(codec) == (5, 4, 4, 0, 0)
    encoded = codec.encode(["the pub", "pub"])
    assert encoded.x0.tolist() == [[2, 3, 0], [3, 0, 0]]
    assert codec.decode(encoded.x0, encoded.valid) == ["the pub", "pub"]


def test_a_tokenizer_is_looked_up_as_models_are(tmp_path, monkeypatch):
    assert find_tokenizer("bart-demo") == Path("pre_trained_models/bart-demo")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="python -m scripts.cache_models no/such-model$"):
        find_tokenizer("no/such-model")


# --- encoding ---------------------------------------------------------------------------------------------------------


def test_a_text_is_its_tokens_and_the_end_of_text(characters, bert):
    encoded = characters.encode(["ab", "b\n a"])
    assert encoded.x0.dtype == torch.int64
    assert encoded.x0.tolist() == [[4, 5, 1, 0, 0], [5, 2, 3, 4, 1]]
    assert encoded.valid.tolist() == [[True, True, True, False, False], [True] * 5]
    assert bert.encode(["The mills."]).x0.tolist() == [[5, 6, 11, 10, 3]]


def test_running_text_has_no_end_of_text():
    codec = TokenCodec(character_tokenizer(TEXTS), max_length=4, add_eos=False)
    split = codec.encode_split(["abba", "ab"])
    assert split.ids.tolist() == [4, 5, 5, 4, 4, 5]
    assert split.truncated == 0
    assert codec.token_lengths(["abba", "ab"]) == [4, 2]


def test_longer_texts_are_cut_and_counted_and_keep_their_end(characters):
    split = characters.encode_split(["a" * 7, "b" * 8, "ab" * 30])
    assert split.lengths.tolist() == [8, 8, 8]
    assert split.truncated == 2
    x0, _, _ = split.batch([0, 1, 2])
    assert x0.tolist() == [[4] * 7 + [1], [5] * 7 + [1], [4, 5, 4, 5, 4, 5, 4, 1]]
    assert characters.token_lengths(["a" * 7, "b" * 8]) == [8, 9]


@pytest.mark.parametrize("paired", [False, True])
def test_what_is_left_of_cut_texts_is_known(gpt2, paired):
    """The rest of them has the same tokens."""
    codec = TokenCodec(gpt2.tokenizer, max_length=9)
    texts = ["a", "The mill by the river. " * 5, "a cafe, " * 5]
    kept = codec.cut(texts, paired)
    assert kept[0] == "a" and all(text.startswith(part) for text, part in zip(texts, kept, strict=True))
    full, cut = (codec.encode_split(each, texts if paired else None) for each in (texts, kept))
    assert full.ids.tolist() == cut.ids.tolist() and full.truncated == 2 and cut.truncated == 0
    assert full.target_lengths.tolist() == [2] + [codec.target_limit(paired)] * 2
    assert codec.cut(["é" * 20], paired) == ["é" * (2 if paired else 4)]  # two tokens a letter


def test_filling_makes_padding_a_part_of_the_text(characters):
    x0, valid, clamped = characters.encode_split(["ab", "abba"], fill=True).batch([0, 1])
    assert x0.tolist() == [[4, 5, 1, 0, 0, 0, 0, 0], [4, 5, 5, 4, 1, 0, 0, 0]]
    assert valid.all() and clamped is None
    assert characters.decode(x0, valid) == ["ab", "abba"]


def test_a_filled_pair_fills_its_text_only(characters):
    split = characters.encode_split(["a", "bb"], ["ab", "b"], fill=True)
    x0, valid, clamped = split.batch([0, 1])
    assert x0.tolist() == [[4, 5, 1, 4, 1, 0, 0], [5, 1, 5, 5, 1, 0, 0]]
    assert valid.tolist() == [[True] * 7, [True] * 6 + [False]]
    assert split.target_lengths.tolist() == [4, 4]
    assert characters.decode(x0, valid & ~clamped) == ["a", "bb"]


def test_a_pair_is_source_separator_text_and_end(characters):
    x0, valid, clamped = characters.encode_pairs(["ab", "b"], ["b", "aa"])
    assert x0.tolist() == [[4, 5, 1, 5, 1], [5, 1, 4, 4, 1]]
    assert valid.all()
    assert clamped.tolist() == [[True, True, True, False, False], [True, True, False, False, False]]
    assert characters.decode(x0, valid & ~clamped) == ["b", "aa"]


def test_padding_of_pairs_is_neither_valid_nor_clamped(characters):
    x0, valid, clamped = characters.encode_pairs(["ab", "b"], ["bbb", "a"])
    assert x0[1].tolist() == [5, 1, 4, 1, 0, 0, 0]
    assert valid[1].tolist() == [True] * 4 + [False] * 3
    assert clamped[1].tolist() == [True] * 2 + [False] * 5


@pytest.mark.parametrize(("max_length", "source_limit", "target_limit"), [(8, 4, 4), (7, 3, 4), (2, 1, 1)])
def test_source_and_text_of_a_pair_have_half_of_the_positions_each(max_length, source_limit, target_limit):
    codec = TokenCodec(character_tokenizer(TEXTS), max_length)
    assert (codec.target_limit(paired=True), codec.target_limit(paired=False)) == (target_limit, max_length)
    long, fits = "ab" * 20, "a" * (target_limit - 1)
    split = codec.encode_split([long, fits, fits], [long, "b" * (source_limit - 1), long])
    assert split.source_lengths.tolist() == [source_limit] * 3
    assert split.target_lengths.tolist() == [target_limit] * 3
    assert (split.truncated, split.truncated_sources) == (1, 2)
    x0, valid, clamped = split.batch([0])
    kept = ("ab" * 20)[: target_limit - 1]
    assert codec.decode(x0, valid & ~clamped) == [kept]
    assert x0[clamped].tolist() == codec.encode_sources([long])[0]
    assert codec.decode(x0, clamped) == [long[: source_limit - 1]]  # its beginning


def test_every_text_of_a_pair_needs_its_source(characters):
    with pytest.raises(ValueError):
        characters.encode_split(["a", "b"], ["a"])


def test_a_piece_has_no_end_and_is_not_cut(characters, bart):
    assert characters.encode_piece("abba" * 5) == [4, 5, 5, 4] * 5
    text = "Juniper is a Thai pub."
    assert [*bart.encode_piece(text), bart.eos_id] == bart.encode([text]).x0[0].tolist()


@pytest.mark.parametrize(("kind", "texts", "sources"), [("text", ["a", "b", "aé€"], None),
                                                        ("source", ["a"] * 3, ["a", "b", "aé€"])])  # fmt: skip
@pytest.mark.parametrize("chunk", [1, 2, 10])
def test_a_character_that_the_tokenizer_lacks_is_named(characters, monkeypatch, kind, texts, sources, chunk):
    monkeypatch.setattr(token_codec, "CHUNK", chunk)
    with pytest.raises(ModelError, match=rf"^{kind} 3: holds the character '\\xe9'.*; expected .*; remove it") as error:
        characters.encode_split(texts, sources)
    assert len(str(error.value).splitlines()) == 1


def test_the_name_of_a_lacking_line_end_is_one_line_too(characters):
    for character in "\r\u2028\x85":
        with pytest.raises(ModelError, match="^piece 1: ") as error:
            characters.encode_piece(character)
        assert len(str(error.value).splitlines()) == 1


def test_unknown_tokens_of_other_tokenizers_are_counted(bert, bart, gpt2):
    split = bert.encode_split(["the mill", "the café is a bar"])
    assert split.unknown == 2
    assert bert.token_counts(split)[1] == 2
    for codec in (bart, gpt2):
        assert codec.encode_split([UNICODE]).unknown == 0


def test_a_text_without_tokens_is_refused(bert):
    codec = TokenCodec(bert.tokenizer, max_length=8, add_eos=False)
    with pytest.raises(ModelError, match=r"^text 2: no tokens in '\\n\\n'; expected text, remove it$"):
        codec.encode_split(["the mill", "\n\n"])
    assert bert.encode_split(["\n\n"]).ids.tolist() == [bert.eos_id]


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_tokenising_in_chunks_gives_the_same_split(bart, demo_texts, monkeypatch, chunk):
    whole = bart.encode_split(demo_texts[:50])
    monkeypatch.setattr(token_codec, "CHUNK", chunk)
    parts = bart.encode_split(demo_texts[:50])
    assert np.array_equal(parts.ids, whole.ids) and np.array_equal(parts.offsets, whole.offsets)


def test_a_split_gives_any_batch(bart, demo_texts):
    split = bart.encode_split(demo_texts[:50])
    assert split.ids.dtype == np.int32
    for indices in (range(50), [7], np.array([3, 49, 0, 3])):
        x0, valid, clamped = split.batch(indices)
        wanted = bart.encode([demo_texts[i] for i in indices])
        assert torch.equal(x0, wanted.x0) and torch.equal(valid, wanted.valid) and clamped is None
        assert valid.sum(1).tolist() == split.lengths[np.array(indices)].tolist()


def test_hundred_thousand_texts_are_encoded_in_seconds(bart, demo_texts):
    begin = time.process_time()
    assert len(bart.encode_split(demo_texts[:20_000] * 5).lengths) == 100_000
    assert time.process_time() - begin < 20


# --- decoding ---------------------------------------------------------------------------------------------------------


def round_trip(codec: TokenCodec, texts: list[str]) -> list[str]:
    encoded = codec.encode(texts)
    return codec.decode(encoded.x0, encoded.valid, "sample", range(len(texts)))


def test_the_sentences_of_the_demo_corpus_come_back(bart, gpt2, demo_texts):
    for codec in (bart, gpt2):
        assert round_trip(codec, demo_texts[:2000]) == demo_texts[:2000]
        assert round_trip(codec, [UNICODE, "a"]) == [UNICODE, "a"]


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=20), min_size=1, max_size=5))
def test_characters_come_back_exactly(texts):
    codec = TokenCodec(character_tokenizer(texts), max_length=21)
    assert round_trip(codec, texts) == texts
    assert codec.clean_vocab_size == 2 + len(set("".join(texts)))


def test_the_end_of_text_at_the_first_position_begins_a_text_where_one_token_is_both(gpt2, bart):
    for codec, expected in ((gpt2, "The pub."), (bart, "")):
        words = codec.encode_piece("The pub.")
        row = torch.tensor([[codec.eos_id, *words, codec.eos_id, *words]])
        assert codec.decode(row, torch.ones_like(row, dtype=torch.bool)) == [expected]
    ends = torch.full((1, 3), gpt2.eos_id)
    assert gpt2.decode(ends, torch.ones(1, 3, dtype=torch.bool)) == [""]


def test_a_pad_of_its_own_comes_before_the_mask_where_there_is_none(gpt2, bert):
    codec = TokenCodec(copy.deepcopy(gpt2.tokenizer)).with_pad()
    assert ids_of(codec) == (785, 784, 784, 0, 783)
    assert codec.encode(["a"]).x0.tolist() == gpt2.encode(["a"]).x0.tolist()
    assert ids_of(bert.with_pad()) == ids_of(bert)


@pytest.mark.parametrize("text", [" ,a \n\n b .", "[EOS][PAD]", "a[MASK]_b"])
def test_characters_are_neither_stripped_nor_read_as_special_tokens(text):
    assert round_trip(TokenCodec(character_tokenizer([text])), [text]) == [text]


@pytest.mark.parametrize("text", ["a </s> b <mask> <s>", "x<|endoftext|>y", "[SEP] [MASK] [PAD]"])
def test_special_tokens_that_a_text_spells_out_are_its_characters(bart, gpt2, text):
    for codec in (bart, gpt2):
        assert round_trip(codec, [text]) == [text]
        assert not {codec.mask_id, codec.eos_id, codec.pad_id} & set(codec.encode_piece(text))


def test_sentences_are_detokenised_and_stripped_but_running_text_is_not(gpt2):
    text = " Is n't it ,\n a pub ? \n"
    assert round_trip(gpt2, [text]) == ["Isn't it,\n a pub?"]
    assert round_trip(TokenCodec(gpt2.tokenizer, add_eos=False), [text]) == [text]


def test_a_text_ends_at_its_first_end_and_special_tokens_are_dropped(characters):
    x0 = torch.tensor([[4, 6, 0, 5, 1, 4, 1], [4, 5, 4, 5, 4, 5, 4], [1, 4, 4, 4, 4, 4, 4], [4, 4, 1, 5, 5, 1, 4]])
    valid = torch.ones_like(x0, dtype=torch.bool)
    valid[1, 3:] = False
    valid[3, :3] = False  # a clamped source with its separator
    assert characters.decode(x0, valid) == ["ab", "aba", "", "bb"]


def test_special_tokens_of_a_tokenizer_are_dropped(bert, bart):
    x0 = torch.tensor([[2, 5, 1, 6, 4, 11, 0, 3]])
    assert bert.decode(x0, torch.ones_like(x0, dtype=torch.bool)) == ["the mills"]
    x0 = torch.tensor([[0, *bart.encode_piece("a pub"), 3, 4, 1, 2, 9]])
    assert bart.decode(x0, torch.ones_like(x0, dtype=torch.bool)) == ["a pub"]


def test_a_row_is_shown_with_its_masks(characters, bart, gpt2, bert):
    assert characters.show(torch.tensor([4, 6, 2, 6, 5, 1, 0])) == "a_\n_b"
    assert bert.show([5, 4, 11, 7, 4, 3, 0]) == "the [MASK]s is [MASK]"
    for codec, mask in ((bart, "<mask>"), (gpt2, "[MASK]")):
        ids = codec.encode_piece("Juniper is a pub")
        cut = codec.encode_piece("Juniper is a")
        assert codec.show([*ids[: len(cut)], codec.mask_id, codec.mask_id]) == f"Juniper is a{mask}{mask}"
        assert codec.show([codec.mask_id, *codec.encode_piece(" a"), codec.eos_id]) == f"{mask} a"


# --- counts, files, fingerprints --------------------------------------------------------------------------------------


def test_counted_are_the_tokens_of_texts_alone(characters):
    plain = characters.encode_split(["abb", "a\n"])
    assert characters.token_counts(plain).tolist() == [0, 2, 1, 0, 2, 2, 0]
    pairs = characters.encode_split(["abb", "a\n"], ["bbb", "bbb"], fill=True)
    assert torch.equal(characters.token_counts(pairs), characters.token_counts(plain))


def test_words_are_parted_by_white_space():
    assert word_counts(["a  b\nc", "", "don't , stop ."]).tolist() == [3, 0, 4]


def test_characters_survive_the_disk(characters, tmp_path):
    characters.save(tmp_path / "tokenizer")
    loaded = TokenCodec.load(tmp_path / "tokenizer", max_length=8)
    assert ids_of(loaded) == ids_of(characters)
    assert loaded.fingerprint == characters.fingerprint
    assert loaded.is_characters
    assert round_trip(loaded, ["b\n\n a", " a "]) == ["b\n\n a", " a "]
    with pytest.raises(ModelError, match="text 1: holds the character 'z'"):
        loaded.encode(["z"])


def test_the_order_of_the_training_texts_does_not_matter(characters):
    assert TokenCodec(character_tokenizer(TEXTS[::-1]), max_length=8).fingerprint == characters.fingerprint


def test_the_fingerprint_tells_what_encodes_differently(bart, characters, tmp_path):
    folder = shutil.copytree(find_model("bart-demo"), tmp_path / "copy", ignore=shutil.ignore_patterns("*.safetensors"))
    assert TokenCodec.load(folder).fingerprint == bart.fingerprint
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = []
    (folder / "tokenizer.json").write_text(json.dumps(content))
    unmerged = TokenCodec.load(folder)
    assert len(unmerged.encode_piece("a pub")) == 5 > len(bart.encode_piece("a pub"))
    others = [
        unmerged,
        TokenCodec(bart.tokenizer, max_length=63),
        TokenCodec(bart.tokenizer, add_eos=False),
        characters,
        TokenCodec(character_tokenizer(["abc"]), max_length=8),
    ]
    assert len({bart.fingerprint, *(other.fingerprint for other in others)}) == 6
