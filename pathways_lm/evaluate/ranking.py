"""Answers chosen by their likelihood, and answers that are written, over the examples of a file."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathways_lm.decode.sampling import Sampler
from pathways_lm.evaluate.answers import exact_match, f1
from pathways_lm.evaluate.continuations import check_room, encode_pair, fit_prompts
from pathways_lm.evaluate.few_shot import Question, Template
from pathways_lm.evaluate.scoring import Scored
from pathways_lm.evaluate.trained import Trained


def rank(
    trained: Trained, template: Template, questions: Sequence[Question], prompts: Sequence[str], cut: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The share of questions whose right choice is the likeliest, by several measures, and what each was told.

    - `acc`: by log-likelihood; `acc_norm`: by that over the choice's characters; `acc_bytes`: over its bytes. These
      have the names and definitions of lm-evaluation-harness.
    - `acc_tokens`: by log-likelihood per token (GPT-3, arXiv:2005.14165, section 2.4; GLaM).
    - `acc_mutual_info`, where the template says `unconditional`: by log P(choice | prompt) - log P(choice | that).

    Of equal ones the first counts. Raises DataError, before anything is compiled, for what is too long.
    """
    given = _likelihoods(trained, questions, prompts, cut)
    alone = None
    if template.unconditional is not None:
        alone = _likelihoods(trained, questions, [template.unconditional] * len(questions), cut)
    told = []
    for number, question in enumerate(questions):
        by = _measures(question, given[number], alone[number] if alone else None)
        chosen = {name: question.choices[int(np.argmax(values))] for name, values in by.items()}
        log_probs = by["acc"].tolist()
        told.append({"place": question.place, "log_probs": log_probs, "chosen": chosen, "right": question.answers[0]})
    names = told[0]["chosen"]
    figures = {name: float(np.mean([each["chosen"][name] == each["right"] for each in told])) for name in names}
    return {**figures, "examples": len(told)}, told


def _likelihoods(
    trained: Trained, questions: Sequence[Question], contexts: Sequence[str], cut: bool
) -> list[list[Scored]]:
    """Of each question's choices after its context."""
    windows, places = [], []
    for question, context in zip(questions, contexts, strict=True):
        for choice in question.choices:
            windows.append(encode_pair(trained.vocabulary, trained.form, context, f"{question.delimiter}{choice}"))
            places.append(question.place)
    scored = iter(trained.log_likelihoods(check_room(trained.form, windows, places, trained.context, cut)))
    return [[next(scored) for _ in question.choices] for question in questions]


def _measures(question: Question, given: list[Scored], alone: list[Scored] | None) -> dict[str, np.ndarray]:
    """Of each choice, by each measure; the largest wins."""
    log_p = np.array([found.total for found in given])
    by = {
        "acc": log_p,
        "acc_norm": log_p / [max(len(choice), 1) for choice in question.choices],
        "acc_bytes": log_p / [max(len(choice.encode()), 1) for choice in question.choices],
        "acc_tokens": log_p / [len(found.log_probs) for found in given],
    }
    return by if alone is None else {**by, "acc_mutual_info": log_p - [found.total for found in alone]}


def write(
    trained: Trained,
    template: Template,
    questions: Sequence[Question],
    prompts: Sequence[str],
    num_tokens: int,
    cut: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """`exact_match` and `f1` of greedily written answers, each 0 to 1, in SQuAD's normal form; and what was written.

    An answer ends at the template's separator or a line's end. Of several right answers the best counts.

    Raises DataError, before anything is compiled, for a prompt that is too long.
    """
    places = [question.place for question in questions]
    prompts = fit_prompts(trained, prompts, places, num_tokens, trained.context, cut)
    stop = ("\n",) if "\n" in template.separator else ("\n", template.separator)
    written = trained.generate(prompts, Sampler(temperature=0.0), num_tokens, stop, 0)
    told = [
        {
            "place": question.place,
            "written": continuation.text.strip(),
            "right": list(question.answers),
            "exact_match": max(exact_match(continuation.text, answer) for answer in question.answers),
            "f1": max(f1(continuation.text, answer) for answer in question.answers),
        }
        for question, continuation in zip(questions, written, strict=True)
    ]
    figures = {name: float(np.mean([each[name] for each in told])) for name in ("exact_match", "f1")}
    return {**figures, "examples": len(told)}, told
