"""`pathways-lm inspect`: attention maps and router maps of a prompt."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np

from pathways_lm.checkpoint.run_folder import RunFolder
from pathways_lm.cli.devices import prepare_devices
from pathways_lm.config import ModelConfig
from pathways_lm.errors import ConfigError, UserError
from pathways_lm.language_model import LanguageModel, load
from pathways_lm.models.batch import Batch
from pathways_lm.models.block import Out

if TYPE_CHECKING:
    from pathways_lm.report.maps import Looks, Routes

BEGINNING = 0


def main(arguments: argparse.Namespace) -> int:
    """Writes inspect.html and prints where it lies."""
    try:
        from pathways_lm.report.html import write_whole
        from pathways_lm.report.maps import maps_page
    except ModuleNotFoundError as error:
        raise UserError(f"inspect needs {error.name}: pip install 'pathways-lm[report]'") from None
    folder = RunFolder(arguments.run)
    if arguments.answer and folder.experiment().model.shape != "encoder_decoder":
        raise ConfigError("--answer is what a decoder says of what an encoder read; this run has one tower")
    prepare_devices(arguments, folder.experiment().data.cache_dir)
    trained = load(arguments.run, arguments.overrides)
    looks, routes = look(trained, arguments.prompt, arguments.answer)
    path = Path(arguments.out or folder.path / "inspect.html")
    subtitle = f"step {trained.step:,} · {arguments.prompt!r}"
    write_whole(path, maps_page(trained.experiment.name, subtitle, looks, routes))
    print(path)
    return 0


def look(trained: LanguageModel, prompt: str, answer: str) -> tuple[list["Looks"], list["Routes"]]:
    """What every layer tells of the prompt; of an encoder-decoder, also of the answer that it is given to write."""
    from pathways_lm.report.maps import Looks, Routes

    model, vocabulary, shape = trained.model, trained.vocabulary, trained.model.config.shape
    own = vocabulary.encode(answer if shape == "encoder_decoder" else prompt)
    read = [*vocabulary.encode(prompt), vocabulary.eod_id]
    tokens = read if shape == "encoder" else [BEGINNING, *own]
    _check_length(trained, max(len(tokens), len(read)))

    def rows(ids: list[int]) -> jax.Array:
        # As many alike as the mesh has places for.
        rows = np.tile(np.array(ids, np.int32), (model.rules.parts("batch"), 1))
        return jax.device_put(rows, model.rules("batch", None))

    batch = Batch(rows(tokens), rows(tokens))
    if shape == "encoder_decoder":
        batch = batch._replace(encoder_tokens=rows(read))
    output = jax.jit(lambda params, batch: model.bind(params)(batch, show=True)._replace(projection=None))(
        trained.params, batch
    )
    output = jax.device_get(output)
    names = _names(trained)
    towers = {"Encoder": (output.encoder, names(read)), "Decoder": (output.decoder, names(tokens))}
    looks, routes = [], []
    for title, (told, shown) in towers.items():
        if told is None:
            continue
        looks.append(Looks(f"{title}: attention", told.weights_BNTS[:, 0], shown, shown))
        if told.cross_weights_BNTS is not None:
            looks.append(Looks("Decoder: attention to the encoder", told.cross_weights_BNTS[:, 0], shown, names(read)))
        if told.gates_BLE is not None:
            routes.append(Routes(f"{title}: experts", told.gates_BLE[:, 0], _sparse(model.config, told), shown))
    return looks, routes


def _check_length(trained: LanguageModel, length: int) -> None:
    model = trained.model.config
    limit = model.max_length if model.positions == "learned" else trained.experiment.data.sequence_length
    if length > limit:
        raise ConfigError(f"the prompt has {length} tokens with its ends; at most {limit} can be shown")


def _sparse(config: ModelConfig, told: Out) -> list[int]:
    """The numbers of the layers with experts."""
    assert told.gates_BLE is not None
    moe = config.moe
    return [repeat * moe.every + moe.offset % moe.every for repeat in range(len(told.gates_BLE))]


def _names(trained: LanguageModel) -> Callable[[list[int]], list[str]]:
    """Tokens as they may be read: spaces and ends visible."""
    vocabulary = trained.vocabulary

    def name(token: int) -> str:
        if token == BEGINNING:
            return "⟨begin⟩"
        if token == vocabulary.eod_id:
            return "⟨end⟩"
        if token >= vocabulary.size:
            return f"⟨{token}⟩"
        shown = vocabulary.decode_bytes([token]).decode("utf-8", errors="replace")
        return shown.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")

    return lambda tokens: [name(token) for token in tokens]
