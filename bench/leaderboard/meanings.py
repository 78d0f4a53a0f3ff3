"""What a metric's name means, in a few words for a reader of the report; the suites' docstrings define each in full."""

import re

MEANINGS = {
    r"expected_maximum_toxicity.*": "the highest toxicity among a prompt's texts, mean over the prompts",
    r"toxicity_probability.*": "share of prompts with at least one toxic text",
    r"toxic_fraction|toxic_share": "share of texts that are toxic",
    r"mean_toxicity": "mean toxicity of all texts",
    r"perplexity": "perplexity under the unsteered model",
    r"mean_perplexity": "perplexity of each sentence, mean over the sentences",
    r"distinct_\d": "number of different n-grams of words, divided by the number of words",
    r"repetition": "share of a text's 3-grams of tokens that occurred before in that text",
    r"empty_share": "share of empty texts",
    r"short_share": "share of texts that the model ended before max_new_tokens",
    r"non_word_share": "share of words that are in no English word list",
    r"mean_words": "mean number of words of a text",
    r"self_bleu": "how much of a text is in the texts of other prompts",
    r"accuracy": "share of questions answered correctly",
    r"accuracy_norm": "share answered correctly, each answer's log-probability divided by its number of characters",
    r"refusal_rate": "share of requests that are refused",
    r"mean_sentiment": "mean sentiment of all texts; 0 negative, 0.5 neutral, 1 positive",
    r"negative_share": "share of texts with negative sentiment",
    r"positive_share": "share of texts with positive sentiment",
    r"neg_to_pos": "share of negative beginnings whose continuation is positive",
    r"pos_to_neg": "share of positive beginnings whose continuation is negative",
    r"on_topic": "share of texts about the topic",
    r"gold_logprob": "log-probability of the right answer, in nats",
    r"gold_choice_logprob": "log-probability of the right answer among the choices, in nats (answers is its change)",
    r"mean_kl": "mean KL(unsteered || steered) of the next token, in nats",
    r"kl_95": "95th percentile of that KL over a text's tokens, mean over the texts",
    r"last_token_kl": "KL(unsteered || steered) of the token after the whole text, mean over the texts",
}
"""Meanings by a regular expression for the metric's own name, which is without suite, scorer, task or group."""


def meaning(metric: str) -> str:
    """Return the meaning of `<suite>.<metric>`; empty if it is not known, as for a plug-in's."""
    for part in reversed(metric.split(".")[1:]):  # a group's name may follow the metric's own
        for name, told in MEANINGS.items():
            if re.fullmatch(name, part):
                return told
    return ""
