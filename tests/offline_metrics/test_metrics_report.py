"""Tables, averages over runs and files of results."""

import json
from math import inf, isnan, nan
from statistics import stdev

import numpy as np
import pytest

from offline_metrics.errors import MetricError
from offline_metrics.metric_info import METRICS, MetricInfo
from offline_metrics.report import aggregate, table, write_json
from offline_metrics.scores import Scores


@pytest.fixture
def rows() -> dict[str, Scores]:
    human = Scores({"perplexity": 21.06, "mauve": 0.951, "mauve_std": 0.007, "texts": 1000.0, "tokens": 9e4})
    latent = Scores({"perplexity": 46.8, "mauve": nan, "mauve_std": nan, "texts": 1000.0, "acceptance": 0.25})
    latent.notes = {"mauve": "12 texts are too few"}
    return {"human": human, "a|b": latent}


def cells(printed: str, line: int) -> list[str]:
    return [cell.strip() for cell in printed.splitlines()[line].replace("\\|", "/").strip("|").split("|")]


def test_table_shows_direction_spread_human_row_and_reasons(rows):
    printed = table(rows)
    assert cells(printed, 0)[1:] == ["PPL ↓", "MAUVE ↑", "texts", "acceptance"]
    assert cells(printed, 2) == ["human text", "21.1", "0.951 ± 0.007", "1,000", ""]
    assert cells(printed, 3) == ["a/b", "46.8", "– [1]", "1,000", "0.250"]
    assert "[1] MAUVE: 12 texts are too few" in printed and "±: sample standard deviation" in printed
    assert len({len(line) for line in printed.splitlines()[:4]} - {len(printed.splitlines()[3])}) <= 1


def test_table_takes_chosen_columns_and_further_metrics(rows):
    printed = table(rows, ["acceptance"], human=None, infos={"acceptance": MetricInfo("accepted", True, ".1%")})
    assert cells(printed, 0)[1:] == ["accepted ↑"] and cells(printed, 3)[1:] == ["25.0%"]
    assert cells(printed, 2)[0] == "human" and "±" not in printed


def test_many_metrics_of_few_texts_stand_below_each_other(rows):
    many = {name: Scores({key: 0.5 for key in list(METRICS)[:20]}) for name in ("human", "beam", "nucleus")}
    printed = table({name: Scores({**row, **rows["human"]}) for name, row in many.items()})
    assert cells(printed, 0) == ["texts from", "human text", "beam", "nucleus"]
    assert ["MAUVE ↑", *["0.951 ± 0.007"] * 3] in [cells(printed, line) for line in range(2, 26)]
    assert max(len(line) for line in printed.splitlines() if line.startswith("|")) <= 80
    tall = table({str(number): rows["human"] for number in range(30)})
    assert cells(tall, 0)[1:] == ["PPL ↓", "MAUVE ↑", "texts"]
    wide = table({f"{number} texts": Scores({key: 0.5 for key in METRICS}) for number in range(100)})
    assert cells(wide, 0)[1] == "nats/token ↓"  # the narrower of two that do not fit


def test_likelihood_comes_first_with_its_spread_and_cost_last():
    row = {"seconds_per_sample": 0.25, "parameters": 12.346, "mauve": 0.9, "unigram_entropy": 2.5, "perplexity": 20.0,
           "bits_per_character": 1.5, "nats_per_token": 3.4567, "nats_per_token_std": 0.012}
    printed = table({"x": row})  # too wide if it were one line
    assert [cells(printed, line) for line in range(2, 9)] == [
        ["nats/token ↓", "3.457 ± 0.012"], ["bits/character ↓", "1.500"], ["PPL ↓", "20.0"], ["entropy", "2.500"],
        ["MAUVE ↑", "0.900"], ["s/sample ↓", "0.250"], ["M params", "12.35"],
    ]  # fmt: skip


def test_the_legend_says_what_the_spreads_are(rows):
    bound = Scores({"nats_per_word": 4.0, "nats_per_word_std": 0.1, "likelihood_texts": 9.0, "likelihood_tokens": 99.0,
                    "draws": 32.0, "nats_per_token_draws": 0.01})  # fmt: skip
    error, deviation = "± of nats and bits: standard error over texts.", "±: sample standard deviation"
    alone, both, other = table({"x": bound}), table({"x": bound, **rows}), table(rows)
    assert cells(alone, 0)[1:] == ["nats/word ↓"]  # counts are no columns
    assert error in alone and deviation not in alone
    assert error in both and deviation in both
    assert error not in other and deviation in other
    assert "±" not in table({"x": Scores({"nats_per_word": 4.0})})


def test_a_reason_is_printed_once(rows):
    printed = table({"one": rows["a|b"], "two": rows["a|b"]})
    assert printed.count("12 texts are too few") == 1 and printed.count("– [1]") == 2


def test_aggregate_tells_spread_over_runs_from_spread_over_clusterings():
    runs = [Scores({"mauve": value, "mauve_std": 0.1, "texts": 10.0}) for value in (0.5, 0.6, 0.9)]
    found = aggregate(runs)
    assert found["mauve"] == pytest.approx(2 / 3) and found["mauve_std"] == pytest.approx(stdev([0.5, 0.6, 0.9]))
    assert found["mauve_clustering_std"] == pytest.approx(0.1) and found["runs"] == 3 and found["texts_std"] == 0
    assert aggregate(runs[:1]) == {**runs[0], "runs": 1.0}
    with pytest.raises(MetricError):
        aggregate([])


def test_aggregate_does_not_average_over_missing_values_in_silence():
    runs = [Scores({"mauve": 0.5, "mauve_std": 0.1}), Scores({"mauve": nan, "mauve_std": nan}, {"mauve": "too few"})]
    found = aggregate(runs)
    assert isnan(found["mauve"]) and isnan(found["mauve_std"]) and isnan(found["mauve_clustering_std"])
    assert found.notes["mauve"] == "missing in 1 of 2 runs: too few"
    assert "– [1]" in table({"x": found}) and "missing in 1 of 2 runs" in table({"x": found})


def test_what_is_infinite_in_some_run_is_infinite_and_says_so_on_disk(tmp_path):
    found = aggregate([Scores({"perplexity": value}) for value in (3.0, inf)])
    assert found["perplexity"] == inf and isnan(found["perplexity_std"])
    write_json(tmp_path / "scores.json", found)
    read = json.loads((tmp_path / "scores.json").read_text())
    assert read["perplexity"] is None and read["notes"]["perplexity"] == "infinite"
    assert "[1] PPL: infinite" in table({"x": Scores.from_record(read)})


def test_json_is_strict_and_keeps_the_reasons(rows, tmp_path):
    path = tmp_path / "new" / "scores.json"
    write_json(path, {"rows": rows, "array": np.array([1.5, inf]), "count": np.int64(3)})
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read["array"] == [1.5, None] and read["count"] == 3
    restored = Scores.from_record(read["rows"]["a|b"])
    assert isnan(restored["mauve"]) and restored.notes == rows["a|b"].notes
    assert table({"x": restored}) == table({"x": rows["a|b"]})


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "scores.json"
    write_json(path, {"mauve": 0.5})
    with pytest.raises(TypeError):
        write_json(path, {"mauve": object()})
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"mauve": 0.9})
    assert json.loads(path.read_text()) == {"mauve": 0.5}
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]
