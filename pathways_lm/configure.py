"""Config files, python or gin, and overrides from the command line, into an `Experiment`.

The only file that imports gin.
"""

import ast
import dataclasses
import functools
import importlib.util
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pathways_lm.config import SECTIONS, Experiment, MoEConfig, build, from_dict, to_dict
from pathways_lm.errors import ConfigError, nearest


def load(path: str, overrides: Sequence[str] = (), gin_bindings: Sequence[str] = ()) -> Experiment:
    """The experiment of a `.py` or `.gin` file, with `section.field=value` overrides applied in order.

    Raises ConfigError naming the file, the field, or the binding.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"config file '{path}' does not exist")
    if file.suffix == ".py":
        if gin_bindings:
            raise ConfigError(f"--gin.{gin_bindings[0]} needs a .gin file; for '{path}' use --set")
        experiment = _load_python(file)
    elif file.suffix == ".gin":
        experiment = _load_gin(file, gin_bindings)
    else:
        raise ConfigError(f"config file '{path}' must end in .py or .gin")
    return override(experiment, overrides)


def override(experiment: Experiment, overrides: Sequence[str]) -> Experiment:
    """Applies `section.field=value` (or `name=value`) one after the other, then checks the whole."""
    values = to_dict(experiment)
    for text in overrides:
        target, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text} must read section.field=value")
        *sections, name = target.split(".")
        fields = values
        for section in sections:
            if not isinstance(fields.get(section), dict):
                raise ConfigError(f"--set {text}: no field '{target}'{nearest(section, _sections(fields))}")
            fields = fields[section]
        if name not in fields:
            raise ConfigError(f"--set {text}: no field '{target}'{nearest(name, fields)}")
        if isinstance(fields[name], dict):
            raise ConfigError(f"--set {text}: {target} is a section; name one of its fields: {', '.join(fields[name])}")
        fields[name] = _literal(value, like=fields[name])
    return from_dict(values)


def to_gin(experiment: Experiment) -> str:
    """The experiment as a gin file that loads to an equal one; fields at their defaults are left out."""
    bindings = _bindings(experiment)
    width = max(len(name) for name, _ in bindings)
    return "".join(f"{name.ljust(width)} = {value}\n" for name, value in bindings)


def _bindings(section: Any) -> list[tuple[str, str]]:
    own, nested = [], []
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
        name = f"{type(section).__name__}.{item.name}"
        if dataclasses.is_dataclass(value):
            if value != item.default:
                own.append((name, f"@{type(value).__name__}()"))
                nested += _bindings(value)
        elif value != item.default:
            own.append((name, repr(value)))
    return own + nested


def _sections(fields: dict[str, Any]) -> list[str]:
    return [name for name, value in fields.items() if isinstance(value, dict)]


def _literal(text: str, like: Any) -> Any:
    """A number or boolean where the field holds one; text where it holds text."""
    if isinstance(like, str):
        return text
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return float(text) if text.lower() in ("nan", "inf", "-inf") else text


def _load_python(file: Path) -> Experiment:
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        experiment = module.experiment()
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    except TypeError as error:
        raise ConfigError(f"{file}: {_explain(error)}") from None
    except (AttributeError, ImportError, NameError, SyntaxError) as error:
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from None
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"{file}: experiment() must return an Experiment, not {type(experiment).__name__}")
    return experiment


def _explain(error: TypeError) -> str:
    """A dataclass's complaint about an argument, as this package's own."""
    complaint = re.match(r"(\w+)\.__init__\(\) (.*) keyword(?:-only)? arguments?:? '(\w+)'", str(error))
    if not complaint:
        return str(error)
    kind, what, name = complaint.groups()
    for known in (*SECTIONS.values(), MoEConfig, Experiment):
        if known.__name__ == kind:
            required = {item.name for item in dataclasses.fields(known) if item.default is dataclasses.MISSING}
            given = required - {name} if what.startswith("missing") else {name}
            try:
                build(known, dict.fromkeys(given))
            except ConfigError as explained:
                return str(explained)
    return str(error)


@functools.cache
def _gin() -> Any:
    """gin with the config classes registered by their names.

    Each is registered as a function that builds it: gin would subclass a class, and an instance of
    the subclass would not equal the same experiment from a python file.
    """
    import gin

    def builder(kind: type) -> Callable[..., Any]:
        def construct(**values: Any) -> Any:
            return build(kind, values)

        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=parameter.default)
            for name, parameter in inspect.signature(kind).parameters.items()
        ]
        # Unknown names still arrive, so that the answer can name the nearest one.
        parameters.append(inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD))
        construct.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return construct

    for kind in (*SECTIONS.values(), MoEConfig, Experiment):
        gin.external_configurable(builder(kind), name=kind.__name__, module="pathways_lm.config")
    return gin


def _load_gin(file: Path, bindings: Sequence[str]) -> Experiment:
    gin = _gin()
    gin.clear_config()
    try:
        gin.parse_config_files_and_bindings([str(file)], list(bindings), finalize_config=False)
        return gin.get_configurable("Experiment")()
    except ConfigError as error:
        raise ConfigError(f"{file}: {_first_line(error)}") from None
    except (ValueError, TypeError, SyntaxError, OSError, RuntimeError, ImportError) as error:
        raise ConfigError(f"{file}: {_first_line(error)}") from None
    finally:
        gin.clear_config()


def _first_line(error: Exception) -> str:
    if macro := re.search(r"configurable 'macro' .* in scope '(.+)'", str(error)):
        return f"%{macro.group(1)} is used and not set"
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
