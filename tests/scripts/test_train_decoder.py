"""Decoders trained apart: what they learn to read, what stays as it was, and who is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion.training.files import sums
from diffusion.training.objective import Batch
from latent_models.codec import MODELS_DIR, ModelError
from latent_models.decoders import RECORD
from latent_models.seq2seq_codec import CodecOptions, Seq2SeqCodec
from scripts import train_decoder
from scripts.composition.latent_space import load_codec
from scripts.evaluation.interface import Kind, LatentTexts, estimated
from scripts.sampling.sampling import sample
from scripts.train_decoder import decoder_loss, mixed
from tests.scripts.conftest import SMALL_DECODER, places
from train_text_diffusion import main

BART = MODELS_DIR / "bart-demo"
WHEN = ("before", "after")


def content(folder: Path) -> dict:
    """Checksums of all files of a folder."""
    return sums(folder, (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()))


def figures(folder: Path) -> dict[str, float]:
    """The held-out nats per token, such as `clean_before`."""
    record = json.loads((folder / "training.json").read_text())
    return {key.removeprefix("nats_per_token_"): v for key, v in record.items() if key.startswith("nats_per_token_")}


def test_the_decoder_learns_to_read_noise_and_the_encoder_stays_as_it_was(small_decoder):
    found = figures(small_decoder)
    assert found["noised_after"] < 0.95 * found["noised_before"] and found["clean_after"] - found["clean_before"] < 0.05
    old, new = (Seq2SeqCodec.load(folder).model for folder in (BART, small_decoder))
    encoder, kept = (model.get_encoder().state_dict() for model in (old, new))
    assert encoder.keys() == kept.keys() and all(torch.equal(encoder[name], kept[name]) for name in encoder)
    parts = ("get_decoder", "get_output_embeddings")
    for before, after in ((getattr(model, part)().state_dict() for model in (old, new)) for part in parts):
        assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    assert "bit by bit" in (small_decoder / "README.md").read_text()


def test_the_same_command_gives_the_same_bytes_and_changes_nothing_else(small_decoder, call, data_dir):
    place = small_decoder.parent
    codec, made = content(BART), content(small_decoder)
    small_decoder.rename(place / "aside")
    assert call(train_decoder.main, f"{SMALL_DECODER} {places(data_dir, place)}").status == 0
    assert content(small_decoder) == made
    assert content(BART) == codec


def test_a_run_teaches_what_it_estimates_and_is_not_touched(small_run, small_decoder, call, tmp_path):
    run_dir = small_run("latent")
    before = content(run_dir)
    line = f"--resume_dir {run_dir} --decoder {small_decoder} --output_dir {tmp_path} --steps 4 --batch_size 16"
    outcome = call(train_decoder.main, f"{line} --noise_ratio 4")
    assert outcome.status == 0, outcome.err
    adapted = figures(tmp_path / "bart-demo-adapted")
    assert content(run_dir) == before
    assert adapted.keys() == {f"{kind}_{when}" for kind in ("clean", "noised", "estimated") for when in WHEN}
    assert adapted["clean_before"] == pytest.approx(figures(small_decoder)["clean_after"])  # where it went on from
    assert adapted["noised_before"] == pytest.approx(figures(small_decoder)["noised_after"])
    assert adapted["estimated_after"] < adapted["estimated_before"]
    assert json.loads((tmp_path / "bart-demo-adapted" / RECORD).read_text())["enc_dec_model"] == "bart-demo"


def test_no_gradient_reaches_the_denoiser(small_run, loaded):
    system = loaded(small_run("latent"))
    system.denoiser.requires_grad_(True)
    lessons = LatentTexts.of(system, "train")
    model = train_decoder.trainable_decoder(system.space.codec.model)
    kinds = [Kind(estimated(system), 0, 4)]
    loss = decoder_loss(model, lessons, kinds, 0.3, torch.Generator().manual_seed(0))(torch.arange(6).numpy())
    loss.backward()
    assert all(p.grad is None for p in system.denoiser.parameters())
    assert all(p.grad is None for p in model.get_encoder().parameters())
    assert all(p.grad is not None for p in model.get_decoder().parameters())


@pytest.mark.parametrize("B", [1, 2, 7])
def test_kinds_take_turns_at_noise_up_to_their_own(B):
    batch = Batch(torch.zeros(B, 3, 2), torch.ones(B, 3, dtype=torch.bool))
    seen = []

    def kind(name: float) -> Kind:
        def corruption(part: Batch, ratio, noise):
            seen.append((name, ratio))
            assert part.x0.shape == noise.shape and len(ratio) == len(noise)
            return torch.full_like(noise, name)

        return Kind(corruption, 10**name / 2, 10**name)

    mixture = mixed(batch, [kind(0.0), kind(1.0), kind(2.0)], torch.Generator().manual_seed(0))
    assert mixture[:, 0, 0].tolist() == [i % 3 for i in range(B)]
    assert all((10**name / 2 <= ratio).all() and (ratio < 10**name).all() for name, ratio in seen)


def test_a_decoder_changes_how_samples_are_written_and_nothing_else(small_run, small_decoder, loaded):
    latents, texts = [], []
    for flags in ((), ("--decoder", str(small_decoder)), ("--decoder", "bart-demo")):
        last = {}

        def watch(i: int, n: int, rows: list[int], x, last=last) -> None:
            last.update(zip(rows, x.clone(), strict=True))

        texts.append(sample(loaded(small_run("latent"), *flags), 6, 1, watch=watch).texts)
        latents.append([last[i] for i in range(6)])
    assert all(torch.equal(a, b) for own in latents[1:] for a, b in zip(latents[0], own, strict=True))
    assert texts[0] != texts[1] and texts[0] == texts[2]  # the last: the codec's own decoder


def test_texts_are_encoded_alike_whatever_writes_them(small_decoder):
    options = (CodecOptions("bart-demo"), CodecOptions("bart-demo", decoder=str(small_decoder)))
    own, other = (load_codec(each, torch.device("cpu")) for each in options)
    assert (own.fingerprint, own.identity) == (other.fingerprint, other.identity)
    texts = ["Saffron is a pub in the suburbs.", "A cheap pub."]
    assert torch.equal(own.encode(texts).x0, other.encode(texts).x0)


def changed(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def own(small_decoder, tmp_path) -> Path:
    """A copy of the decoder, to be damaged."""
    return Path(shutil.copytree(small_decoder, tmp_path / "own"))


def test_a_decoder_of_another_codec_is_refused(own):
    codec = Seq2SeqCodec.load(BART)
    codec.with_decoder(own)
    changed(own, "model.encoder.layers.1.fc2.weight")
    with pytest.raises(ModelError, match=r"own: its encoder is not that of the codec \(layers.1.fc2.weight differs\)"):
        codec.with_decoder(own)
    (own / RECORD).write_text('{"codec": "00", "enc_dec_model": "bart-other"}')
    with pytest.raises(ModelError, match="was made from another codec, bart-other") as error:
        codec.with_decoder(own)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("record", [None, "", "{", "[]", '{"codec": "00"}'])
@pytest.mark.parametrize("dry", ["", "--dry_run"])
def test_a_folder_without_a_record_is_no_decoder(own, small_run, complaint, record, dry):
    (own / RECORD).unlink() if record is None else (own / RECORD).write_text(record)
    wanted = complaint(main, f"--eval --resume_dir {small_run('latent')} --decoder {own} {dry}")
    assert f"{own}: no decoder by itself, as it has no readable decoder.json; expected one that" in wanted


@pytest.mark.parametrize("dry", ["", "--dry_run"])
def test_a_decoder_that_is_not_there_or_not_read_is_told_before_anything_is_loaded(small_run, complaint, dry):
    assert "not on this machine: no/decoder" in complaint(
        main, f"--eval --resume_dir {small_run('latent')} --decoder no/decoder {dry}"
    )
    assert "--decoder belongs to --method latent; the method is mdlm" in complaint(
        main, f"--eval --resume_dir {small_run('mdlm')} --decoder no/decoder {dry}"
    )


def test_latents_of_other_statistics_are_warned_of(small_run, own, loaded, capsys):
    loaded(small_run("latent"), "--decoder", str(own))
    assert "other statistics" not in capsys.readouterr().err
    statistics = load_file(own / "latent_statistics.safetensors")
    save_file(statistics | {"scale": 1.2 * statistics["scale"]}, own / "latent_statistics.safetensors")
    loaded(small_run("latent"), "--decoder", str(own))
    assert f"warning: --decoder {own}: was trained on latents of other statistics" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "wanted"),
    {
        "--resume_dir {mdlm}": "a run of --method mdlm, whose texts no decoder writes",
        "--resume_dir {latent} --max_length 30": "--max_length 30: the run {latent} has 24, which is fixed",
        "--resume_dir nowhere": "nowhere/args.json: cannot be read",
        "--dataset_name plain --adapt_until 2": "--adapt_until: is about the run of --resume_dir",
        "--dataset_name plain --steps 0": "--steps 0: expected at least 1",
        "--dataset_name plain --random_seed -1": "--random_seed -1: expected 0 to 4294967295",
        "--dataset_name plain --noise_ratio 0": "--noise_ratio 0.0: expected a number above 0",
        "--dataset_name plain --decoder_token_dropout 1": "--decoder_token_dropout 1.0: expected 0 to below 1",
        "--dataset_name plain --enc_dec_model bart-demo --output_dir {there}": "is there already; choose another",
        "--dataset_name plain --enc_dec_model bart-demo --output_dir {file}": "is a file; expected a folder",
    }.items(),
)
def test_what_cannot_be_trained_is_refused(small_run, small_decoder, complaint, line, wanted):
    known = {"latent": small_run("latent"), "mdlm": small_run("mdlm")}
    line = line.format(**known, there=small_decoder.parent, file=small_decoder / RECORD)
    assert wanted.format(**known) in complaint(train_decoder.main, line)
