"""Prompts of a few solved examples and one that is not, from records and a template (GPT-3, arXiv:2005.14165, 2.4)."""

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pathways_lm.errors import DataError, nearest
from pathways_lm.evaluate.records import Record, encodable, text_lines


@dataclass(frozen=True)
class Template:
    """How a record becomes a question and its answer. `{field}` stands for a value of the record, `{{` for a brace.

    A file of it is a JSON object with these keys.
    """

    inputs: str
    """The question, up to where the answer begins."""
    target: str
    """The right answer: one of the choices, or the number of one, from 0. Without choices, what should be written; a
    field alone may then hold several right answers."""
    choices: str | tuple[str, ...] = ()
    """What may be answered: texts, or a field alone that holds a list of texts."""
    delimiter: str = " "
    """Between question and answer."""
    separator: str = "\n\n"
    """Between examples, and what ends an answer that is written."""
    description: str = ""
    """Stands before all examples."""
    unconditional: str | None = None
    """What choices are also scored after, by themselves: `""`, or GPT-3's `"Answer:"`. None: they are not."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            texts = value if isinstance(value, tuple) else () if value is None else (value,)
            for text in texts:
                try:
                    list(_fields_of(text))
                except ValueError as error:
                    raise DataError(f"'{item.name}' {error}") from None
        if isinstance(self.choices, str) and _field_alone(self.choices) is None:
            raise DataError(f"'choices' must be a list, or one field as '{{endings}}', not {self.choices!r}")
        if isinstance(self.choices, tuple) and len(self.choices) == 1:
            raise DataError("'choices' must be at least two")
        if self.unconditional is not None and not self.choices:
            raise DataError("'unconditional' is for templates with 'choices'")


@dataclass(frozen=True)
class Question:
    """A record, filled into a template."""

    place: str
    inputs: str
    choices: tuple[str, ...]
    answers: tuple[str, ...]
    """All that are right; of choices, one."""
    delimiter: str

    @property
    def solved(self) -> str:
        """As it stands among the examples."""
        return f"{self.inputs}{self.delimiter}{self.answers[0]}"


def read_template(path: str) -> Template:
    """The template in a file. Raises DataError saying what is wrong with it."""
    text = "\n".join(line for _, line in text_lines(path))
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: must be a JSON object with 'inputs' and 'target'")
    known = [item.name for item in fields(Template)]
    for key, value in values.items():
        if key not in known:
            raise DataError(f"{path}: has no key '{key}'{nearest(key, known)}")
        if key == "choices" and isinstance(value, list) and all(isinstance(choice, str) for choice in value):
            values[key] = tuple(value)
        elif not isinstance(value, str):
            wanted = "a list of texts, or text" if key == "choices" else "text"
            raise DataError(f"{path}: '{key}' must be {wanted}, not {value!r}")
    for key in ("inputs", "target"):
        if key not in values:
            raise DataError(f"{path}: has no '{key}'")
    try:
        return Template(**values)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def fill(template: Template, record: Record) -> Question:
    """The record as a question. Raises DataError naming its place, for a missing field or an answer that is no choice.

    The record's texts are taken as they are; numbers as Python writes them.
    """
    inputs, choices = _filled(template.inputs, record), _choices(template, record)
    right = _value(template.target, record)
    if choices:
        answers: tuple[str, ...] = (_right(choices, right, record.place),)
    else:
        several = right if isinstance(right, list) else [right]
        if not several:
            raise DataError(f"{record.place}: has no answer: '{template.target}' is empty")
        answers = tuple(_text(answer, template.target, record) for answer in several)
    return Question(record.place, inputs, choices, answers, template.delimiter)


def prompts(
    template: Template, questions: Sequence[Question], pool: Sequence[Question], shots: int, seed: int
) -> list[str]:
    """Each question behind `shots` of the pool, solved, in an order drawn for it; never behind itself.

    The choice for a question is a function of `seed` and its number alone.

    Args:
      pool: may be the same as `questions`.

    Raises DataError where the pool is too small.
    """
    if shots < 0:
        raise DataError(f"--shots {shots} must be at least 0")
    texts = []
    for number, question in enumerate(questions):
        others = [other for other in range(len(pool)) if pool[other].place != question.place]
        if len(others) < shots:
            raise DataError(f"{question.place}: there are only {len(others)} other examples for --shots {shots}")
        generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, number])))
        drawn = generator.choice(len(others), shots, replace=False).tolist() if shots else []
        solved = [pool[others[place]].solved for place in drawn]
        texts.append(template.description + template.separator.join([*solved, question.inputs]))
    return texts


def _choices(template: Template, record: Record) -> tuple[str, ...]:
    if isinstance(template.choices, tuple):
        return tuple(_filled(choice, record) for choice in template.choices)
    values = _value(template.choices, record)
    if not isinstance(values, list) or len(values) < 2:
        raise DataError(f"{record.place}: '{template.choices}' must be a list of at least two texts, not {values!r}")
    return tuple(_text(value, template.choices, record) for value in values)


def _right(choices: tuple[str, ...], right: Any, place: str) -> str:
    """The choice that an answer means: by its text, or by its number."""
    if right in choices:
        return str(right)
    number = str(right)
    if number.isdecimal() and int(number) < len(choices):
        return choices[int(number)]
    raise DataError(
        f"{place}: the answer must be one of {list(choices)}, or its number from 0 to {len(choices) - 1}, not {right!r}"
    )


def _value(text: str, record: Record) -> Any:
    """The value of a field that stands alone, else the text filled in."""
    alone = _field_alone(text)
    return _filled(text, record) if alone is None else record[alone]


def _filled(text: str, record: Record) -> str:
    parts = (
        literal + ("" if name is None else _text(record[name], name, record)) for literal, name in _fields_of(text)
    )
    return "".join(parts)


def _text(value: Any, name: str, record: Record) -> str:
    if not isinstance(value, str | int | float):
        raise DataError(f"{record.place}: '{name}' must be text or a number, not {json.dumps(value)[:40]}")
    return encodable(str(value), f"{record.place}: '{name}'")


def _fields_of(text: str) -> Iterator[tuple[str, str | None]]:
    """Each literal part and the field after it. Raises ValueError for braces that are no field."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"has braces that do not match: {error}") from None
    for literal, name, form, conversion in parts:
        if name is not None and (not name or form or conversion or not name.replace("-", "_").isidentifier()):
            raise ValueError(f"must name a field between braces, as in '{{question}}', not {text!r}")
        yield literal, name


def _field_alone(text: str) -> str | None:
    parts: list[tuple[str, str | None]] = list(_fields_of(text))
    return parts[0][1] if len(parts) == 1 and not parts[0][0] else None
