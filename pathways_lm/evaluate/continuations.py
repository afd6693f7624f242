"""Texts that are said after others, so that they fit the context."""

from collections.abc import Sequence

from pathways_lm.data.vocabulary import Vocabulary
from pathways_lm.decode.form import Form
from pathways_lm.errors import DataError
from pathways_lm.evaluate.scoring import Window, after, cut_left, length
from pathways_lm.evaluate.trained import Trained


def encode_pair(vocabulary: Vocabulary, form: Form, context: str, continuation: str) -> Window:
    """A window of texts, tokenized as lm-evaluation-harness does it.

    White space at the context's end goes to the continuation. An encoder's text is tokenized by itself; a decoder's
    two as one, of which the continuation's tokens are those beyond the context's: so no token differs from those that
    the model saw in training. Where nothing is beyond, the two are tokenized apart.
    """
    kept = context.rstrip()
    context, continuation = kept, context[len(kept) :] + continuation
    read = vocabulary.encode(context)
    said = vocabulary.encode(context + continuation)[len(read) :] if context and not form.encoder else []
    return after(form, read, said or vocabulary.encode(continuation))


def check_room(form: Form, windows: Sequence[Window], places: Sequence[str], context: int, cut: bool) -> list[Window]:
    """The windows, cut on their left where that is asked for. Raises DataError naming the place of one too long."""
    fitting = []
    for window, place in zip(windows, places, strict=True):
        if not window.said:
            raise DataError(f"{place}: there is no token to score")
        if length(form, window) > context and not cut:
            raise DataError(
                f"{place}: {length(form, window)} tokens are more than the context of {context} holds; "
                "--truncate leaves out what is furthest to the left"
            )
        try:
            fitting.append(cut_left(form, window, context))
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
    return fitting


def fit_prompts(
    trained: Trained, prompts: Sequence[str], places: Sequence[str], num_tokens: int, context: int, cut: bool
) -> list[str]:
    """Prompts that leave room for so many tokens in the context, cut on their left where that is asked for.

    Raises DataError naming the place of one too long.
    """
    fitting = []
    for prompt, place in zip(prompts, places, strict=True):
        ids = trained.vocabulary.encode(prompt)
        room = context - len(trained.form.read([])) - (0 if trained.form.encoder else num_tokens)
        if len(ids) > room and (not cut or room < 1):
            raise DataError(
                f"{place}: a prompt of {len(ids)} tokens leaves no room for {num_tokens} more "
                f"in the context of {context}"
            )
        fitting.append(prompt if len(ids) <= room else trained.vocabulary.decode(ids[-room:]))
    return fitting
