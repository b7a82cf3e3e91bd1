"""BLEU of one text against one other, the common ground of the seq2seq scores and of minimum Bayes risk."""

from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

SMOOTHING = SmoothingFunction().method4


def sentence_bleu4(hypothesis: str, reference: str) -> float:
    """BLEU-4 in [0, 1] on words between blanks, smoothing method 4 of Chen and Cherry 2014; 0 if either is empty."""
    return float(sentence_bleu([reference.split()], hypothesis.split(), smoothing_function=SMOOTHING))
