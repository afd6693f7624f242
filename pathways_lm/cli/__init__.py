"""The command line. Each command is a module of this package, imported when it is called."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from pathways_lm import __version__
from pathways_lm.cli.cpu import keep_memory
from pathways_lm.errors import UserError

COMMANDS = {
    "train": "train a config, or go on where its run folder stands",
    "launch": "train in several processes on this machine, and start again when one is lost",
    "generate": "continue a prompt with a trained run",
    "evaluate": "score a run on its validation text, on texts, questions and tasks",
    "score": "print how likely a run thinks texts are, token by token",
    "harness": "run EleutherAI's lm-evaluation-harness on a run",
    "inspect": "show a prompt's attention and experts as a page",
    "report": "write a run's report.html, or one page that compares several runs",
    "config": "print the resolved experiment of a config",
    "data": "write a config's packed corpus to a folder, show any batch, check the files",
    "plan": "compile a config's step for a TPU or GPU machine that is not here: memory, exchanges, speed",
    "convert": "bring a published checkpoint into a run folder, or a run folder into one",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 for a plan that does not fit, 2 for bad input, or 128 + the stopping signal."""
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and parsed.command == "train":
        keep_memory()
    try:
        return importlib.import_module(f"pathways_lm.cli.{parsed.command}").main(parsed)
    except UserError as error:
        print(f"pathways-lm: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its arguments. Ends the process with code 2 where they are no command's."""
    # What `launch` starts, and what the harness is told, is parsed by itself, where it belongs.
    own, launched = list(arguments), list[str]()
    if own[:1] in (["launch"], ["harness"]) and "--" in own:
        place = own.index("--")
        own, launched = own[:place], own[place + 1 :]
    # `--gin.Name=value` carries the name of a binding in the flag itself, which argparse cannot declare.
    bindings = [text.removeprefix("--gin.") for text in own if text.startswith("--gin.")]
    parsed = _parser().parse_args([text for text in own if not text.startswith("--gin.")])
    parsed.gin_bindings = bindings
    parsed.line = launched
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pathways-lm", description="PaLM and its relatives on any mesh.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {name: commands.add_parser(name, help=text, description=text) for name, text in COMMANDS.items()}

    train = parsers["train"]
    _add_config(train)
    train.add_argument("--run", metavar="FOLDER", help="run folder; default runs/<name of the experiment>")
    train.add_argument("--coordinator", metavar="HOST:PORT", help="of several processes: where the first one listens")
    train.add_argument("--num-processes", type=int, metavar="N", help="of several processes: how many")
    train.add_argument("--process-id", type=int, metavar="I", help="of several processes: which one this is, from 0")

    launch = parsers["launch"]
    launch.epilog = "behind -- stands what each process runs: -- train CONFIG …"
    launch.add_argument("--processes", type=int, required=True, metavar="N", help="how many")
    launch.add_argument("--cpu-devices", type=int, metavar="M", help="virtual devices of all processes together")
    launch.add_argument(
        "--restarts", type=int, default=3, metavar="R", help="start again so often at most (default %(default)s)"
    )
    launch.add_argument("--shrink", action="store_true", help="with fewer processes, where the same one keeps dying")

    generate = parsers["generate"]
    _add_run(generate)
    importlib.import_module("pathways_lm.cli.flags").add_generate(generate)

    _add_evaluate(parsers["evaluate"])
    _add_score(parsers["score"])
    _add_run(parsers["harness"])
    parsers["harness"].epilog = "behind -- stand the harness's own arguments: -- --tasks lambada_openai --limit 100"
    inspect = parsers["inspect"]
    _add_run(inspect)
    inspect.add_argument("--prompt", required=True, help="the text that is read")
    inspect.add_argument("--answer", default="", help="of an encoder-decoder: what its decoder is given to write")
    inspect.add_argument("--out", metavar="FILE", help="the page to write (default: inspect.html in the run folder)")
    report = parsers["report"]
    report.add_argument("runs", metavar="RUN", nargs="+", help="run folder; several are compared on one page")
    report.add_argument(
        "--out", metavar="FILE", help="the page (default: report.html in the run folder; of several, comparison.html)"
    )
    _add_config(parsers["config"])
    parsers["config"].add_argument("--gin", action="store_true", help="print a .gin file that loads to the same")

    _add_data(parsers["data"])
    plan = parsers["plan"]
    _add_config(plan)
    plan.add_argument("--machine", required=True, metavar="M", help="as v5p:8x16x16, v4-3072x2 or h100:64x8")
    plan.add_argument("--out", metavar="FOLDER", help="where what it writes goes; default runs/plans/NAME@MACHINE")
    plan.add_argument("--analytic", action="store_true", help="by formulas, in a second, and not by the compiler")
    plan.add_argument("--search", action="store_true", help="find the layout that suits the machine best")
    plan.add_argument(
        "--compile", type=int, default=3, metavar="N", help="of a search: how many of the best (default %(default)s)"
    )
    plan.add_argument(
        "--decode", metavar="NxL", help="a decoding step of N sequences with L cached tokens, not training"
    )
    plan.add_argument("--price", type=float, metavar="P", help="of a device and hour, for the cost of the run")

    convert = parsers["convert"]
    convert.add_argument("source", metavar="FROM", help="a folder of Hugging Face with safetensors, or a run folder")
    convert.add_argument("target", metavar="TO", help="the folder to write; must not be there")
    convert.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of what is exported")
    convert.add_argument(
        "--pad-vocab", type=int, default=1, metavar="N", help="import: fill rows up to a multiple of N"
    )
    convert.add_argument("--vocab-rows", type=int, metavar="N", help="export: write so many rows of the vocabulary")
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    texts = {
        "cache": "tokenize and pack a config's documents into a folder that data.cache names, in several processes",
        "show": "print the examples of any batch, decoded",
        "check": "read every file of a cache and compare it with its SHA-256",
    }
    cache, show, check = (actions.add_parser(name, help=text, description=text) for name, text in texts.items())
    _add_config(cache)
    cache.add_argument("--out", required=True, metavar="DIR", help="the folder to write, or to go on with")
    cache.add_argument("--workers", type=int, metavar="N", help="processes that write (default: one for each core)")
    show.add_argument("target", metavar="CONFIG|RUN", help="a .py or .gin file, or a run folder")
    show.add_argument("--step", type=int, default=1, metavar="K", help="as in metrics.jsonl, from 1 (the default) on")
    show.add_argument("--rows", type=int, default=4, metavar="N", help="so many of its rows (default %(default)s)")
    _add_overrides(show)
    check.add_argument("folder", metavar="DIR", help="a folder that 'data cache' wrote")


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("--out", metavar="FILE", help="write the figures, and what was found of each example, as JSON")
    add("--perplexity", metavar="FILE", help="of a text, or of the 'text' of each line of a .jsonl file")
    add("--stride", type=int, metavar="N", help="of --perplexity: tokens that each window scores (default: all)")
    add("--wikitext", action="store_true", help="of --perplexity: WikiText, put together before it is scored")
    add("--lambada", metavar="FILE", help="the last words of a file's lines, or of the 'text' of a .jsonl file's")
    add("--task", metavar="NAME", help="a task of inputs and targets, of this project or the t5 package")
    add("--split", metavar="SPLIT", help="of --task: which of its splits (default: validation)")
    add("--file", metavar="FILE", help="questions, one JSON object on each line; needs --template")
    add("--template", metavar="FILE", help="of --file: how records become questions and answers, as JSON")
    add("--shots", type=int, metavar="K", help="of --file: solved examples before each question (default: 0)")
    add("--shots-from", metavar="FILE", help="of --file: where those come from (default: the same file)")
    add("--seed", type=int, metavar="N", help="of --file: which examples are drawn (default: 0)")
    add("--limit", type=int, metavar="N", help="of --task and --file: only the first N examples")
    add("--num-tokens", type=int, metavar="N", help="of --task and --file: most tokens of an answer that is written")
    add("--overlap", type=int, metavar="N", help="also look for the texts' runs of N words in what the run trained on")
    add("--truncate", action="store_true", help="leave out the left of what is longer than the context")


def _add_score(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", action="append", help="a text of any length; repeat for several")
    given.add_argument("--file", metavar="FILE", help="a text on each line, or in the 'text' of each of a .jsonl file")
    parser.add_argument("--context", metavar="TEXT", help="stands before each text and is not scored")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens that each window scores (default: all)")
    parser.add_argument("--tokens", action="store_true", help="a line for each token")
    parser.add_argument("--json", action="store_true", help="JSON lines, with every token")
    parser.add_argument("--truncate", action="store_true", help="leave out the left of a --context that is too long")


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a .py or .gin file, as in configs/")
    parser.epilog = "--gin.Name.field=value binds a parameter of a .gin config"
    _add_overrides(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field"
    )
    parser.add_argument("--cpu-devices", type=int, metavar="N", help="split the CPU into N virtual devices")
