"""What `generate` can be told, apart from what it does: the command line must not wait for JAX."""

import argparse

SAMPLING = {
    "repetition_penalty": (1.0, "above 1 makes tokens that were there before less likely (default %(default)s)"),
    "presence_penalty": (0.0, "taken off the logits of tokens that were written"),
    "frequency_penalty": (0.0, "the same for each time they were"),
    "no_repeat_ngram": (0, "no N tokens come twice; 0 lets them"),
    "temperature": (0.7, "0 is greedy (default %(default)s)"),
    "top_k": (0, "keep the k likeliest tokens; 0 keeps all"),
    "top_p": (0.95, "keep the likeliest that add up to this (default %(default)s)"),
    "min_p": (0.0, "keep those at least this times as likely as the likeliest"),
    "typical_p": (1.0, "keep the most typical that add up to this (default %(default)s)"),
}
"""Fields of `Sampler`: what the command takes where it is not told, and what it says of them."""

BEAMS = {
    "length_penalty": "length_penalty",
    "penalty_form": "form",
    "beam_groups": "groups",
    "diversity": "diversity",
    "early_stopping": "early_stopping",
    "num_return": "num_return",
}
"""Flags of a beam search, and the fields of `Beams` that they set where they are told."""
GOES_WITH = {**dict.fromkeys(BEAMS, "beams"), "ahead": "draft", "key": "file", "split": "task"}
"""Flags that say nothing without another."""


def add_generate(parser: argparse.ArgumentParser) -> None:
    """The flags of `generate`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", help="text to continue; repeat for several")
    source.add_argument("--file", metavar="FILE", help="JSON lines, or one prompt a line; answers go to --out")
    source.add_argument("--task", metavar="NAME", help="the inputs of a task of pairs; answers go to --out")
    source.add_argument("--chat", action="store_true", help="answer what is typed, remembering what was said")
    parser.add_argument("--key", help="of the JSON lines (default prompt)")
    parser.add_argument("--split", help="of the task (default validation)")
    parser.add_argument("--out", metavar="FILE", help="JSON lines, one an answer; goes on where it was interrupted")
    parser.add_argument("--num-tokens", type=int, default=200, help="most tokens to write (default %(default)s)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this; repeatable")
    parser.add_argument("--truncate", action="store_true", help="leave out the beginning of prompts that are too long")
    parser.add_argument("--regex", default="", help="a regular expression that the whole continuation matches")
    parser.add_argument("--json-schema", metavar="FILE", help="of the JSON value that is to be written")
    parser.add_argument("--best-of", type=int, default=1, metavar="N", help="write N, show the likeliest")
    parser.add_argument("--beams", type=int, metavar="N", help="beam search with N hypotheses")
    parser.add_argument("--length-penalty", type=float, metavar="A", help="of beams (default 1)")
    parser.add_argument("--penalty-form", choices=("length", "gnmt"), help="length^A, ((5+length)/6)^A")
    parser.add_argument("--beam-groups", type=int, metavar="G", help="that search apart from each other (default 1)")
    parser.add_argument("--diversity", type=float, metavar="D", help="off what an earlier group took")
    # None, not False, where it is not told, as the others.
    parser.add_argument(
        "--early-stopping", action="store_const", const=True, help="end beams with the first N that end"
    )
    parser.add_argument("--num-return", type=int, metavar="N", help="hypotheses shown (default 1)")
    parser.add_argument(
        "--contrastive", type=float, metavar="A", help="contrastive search among --top-k, 4 if not told"
    )
    parser.add_argument("--draft", metavar="RUN", help="a small run that writes ahead; needs the same vocabulary")
    parser.add_argument("--ahead", type=int, metavar="N", help="by so many tokens (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    for name, (usual, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(usual), default=usual, help=text)
