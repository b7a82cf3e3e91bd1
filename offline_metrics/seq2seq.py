"""Conditional generation: texts against one reference each, and how far several candidates for one source differ.

Words are those between blanks, save where BLEU and ROUGE-L bring their own tokens.
"""

from collections.abc import Iterable, Sequence
from itertools import permutations
from statistics import fmean

import datasets
import evaluate
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from offline_metrics.bleu import sentence_bleu4
from offline_metrics.errors import MetricError
from offline_metrics.tokens import ngrams


def seq2seq(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Quality of texts against their references, one to one; raises MetricError unless equally many, at least one.

    bleu: of the corpus, 0 to 100, sacrebleu's defaults (nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp). sentence_bleu4:
    mean of `sentence_bleu4`. rouge_l: mean F-measure of the longest common subsequence (Lin 2004) of lower-cased words
    of a-z and 0-9, no stemming. dist_1_per_text: mean share of distinct words within a text, 0 for an empty one.
    """
    if not texts or len(texts) != len(references):
        raise MetricError(
            f"seq2seq: {len(texts)} texts and {len(references)} references; expected one reference for each text"
        )
    rouge = RougeScorer(["rougeL"])
    return {
        # `force` only silences a warning about texts whose punctuation stands apart.
        "bleu": sacrebleu.corpus_bleu(texts, [references], force=True).score,
        "sentence_bleu4": fmean(map(sentence_bleu4, texts, references)),
        "rouge_l": fmean(
            rouge.score(reference, text)["rougeL"].fmeasure for text, reference in zip(texts, references, strict=True)
        ),
        "dist_1_per_text": fmean(_distinct_share(text.split()) for text in texts),
    }


def candidate_diversity(candidates: Sequence[Sequence[str]]) -> dict[str, float]:
    """Means over sets of candidates for one source each; raises MetricError unless every set holds two or more.

    div_4: distinct / all 4-grams of a set, 0 if there are none. candidate_self_bleu4: mean `sentence_bleu4` over its
    ordered pairs.
    """
    if not candidates or min(map(len, candidates)) < 2:
        raise MetricError("candidate_diversity: expected one set or more, each of two candidates or more")
    return {
        "div_4": fmean(
            _distinct_share(ngram for text in texts for ngram in ngrams(text.split(), 4)) for texts in candidates
        ),
        "candidate_self_bleu4": fmean(
            fmean(sentence_bleu4(text, other) for text, other in permutations(texts, 2)) for texts in candidates
        ),
    }


def _distinct_share(items: Iterable) -> float:
    items = list(items)
    return len(set(items)) / len(items) if items else 0.0


class Seq2Seq(evaluate.Metric):
    """`compute(predictions=texts, references=texts, candidates=<list of texts per source, optional>)`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU, ROUGE-L and distinct words of texts with references; diversity of sets of candidates.",
            citation="Papineni et al. 2002 (BLEU), Lin 2004 (ROUGE), Gong et al. 2023 (DiffuSeq: div-4, self-BLEU)",
            inputs_description="predictions, references: equally many texts. candidates: a list of texts per source.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(
        self, predictions: list[str], references: list[str], candidates: Sequence[Sequence[str]] | None = None
    ) -> dict[str, float]:
        return seq2seq(predictions, references) | ({} if candidates is None else candidate_diversity(candidates))
