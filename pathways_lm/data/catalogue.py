"""The tasks that need no download, as a table: python -m pathways_lm.data.catalogue"""

import platform

from pathways_lm.config import DataConfig
from pathways_lm.data.examples import Example, Pair
from pathways_lm.data.pairs import METRICS
from pathways_lm.data.sources import DOCUMENTS, MIXTURES, TASKS, split

_MOST_CHARACTERS = 70


def catalogue() -> str:
    """Markdown: each task with its examples in training and validation, one of them, and its metrics; the mixtures."""
    lines = ["| task | train | validation | an example: inputs | targets | metrics |", "|---|---:|---:|---|---|---|"]
    for name, make in TASKS.items():
        examples = make()
        train, validation = split(examples, DataConfig.validation_fraction)
        shown = " | ".join(_cell(text) for text in _texts(examples[len(examples) // 3]))
        metrics = ", ".join(METRICS.get(name, ("bits per byte",)))
        lines.append(f"| `{name}` | {len(train):,} | {len(validation):,} | {shown} | {metrics} |")
    lines += ["", "| mixture | tasks |", "|---|---|"]
    lines += [f"| `{name}` | {', '.join(f'`{member}`' for member in members)} |" for name, members in MIXTURES.items()]
    return "\n".join(lines)


def _texts(example: Example) -> tuple[str, str]:
    return (example.inputs, example.targets) if isinstance(example, Pair) else ("", example.text)


def _cell(text: str) -> str:
    line = " ".join(text.split())
    shown = line if len(line) <= _MOST_CHARACTERS else f"{line[:_MOST_CHARACTERS]} …"
    return f"`{shown.replace('|', chr(92) + '|')}`" if shown else ""


if __name__ == "__main__":
    from babel import __version__ as babel_version

    print(f"Python {platform.python_version()}, babel {babel_version}; documents: {', '.join(DOCUMENTS)}\n")
    print(catalogue())
