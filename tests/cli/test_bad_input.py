"""Every mistake is told in one line that names it, with exit code 2, before anything is compiled."""

import pytest

from pathways_lm.cli import main

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.num_layer=3", ["model.num_layer'", "did you mean 'num_layers'"]),
        ("modle.num_layers=3", ["modle.num_layers", "did you mean 'model'"]),
        ("num_layers=3", ["num_layers"]),
        ("model.num_layers", ["model.num_layers", "section.field=value"]),
        ("model.num_layers=two", ["model.num_layers", "whole number", "'two'"]),
        ("model.num_layers=2.5", ["model.num_layers", "whole number", "2.5"]),
        ("model.num_layers=True", ["model.num_layers", "whole number", "True"]),
        ("model.num_layers=0", ["model.num_layers", "at least 1"]),
        ("model.embed_dim=-16", ["model.embed_dim", "at least 1", "-16"]),
        ("model.head_dim=3", ["model.head_dim=3", "even"]),
        ("model.rope_base=nan", ["model.rope_base", "finite", "nan"]),
        ("model.norm_epsilon=0", ["model.norm_epsilon", "above 0"]),
        ("model.remat=all", ["model.remat", "'all'", "block"]),
        ("optimizer.learning_rate=nan", ["optimizer.learning_rate", "finite"]),
        ("optimizer.learning_rate=inf", ["optimizer.learning_rate", "finite"]),
        ("optimizer.learning_rate=0", ["optimizer.learning_rate", "above 0"]),
        ("optimizer.learning_rate=-1e-3", ["optimizer.learning_rate", "above 0"]),
        ("optimizer.learning_rate=fast", ["optimizer.learning_rate", "a number", "'fast'"]),
        ("optimizer.name=adanw", ["optimizer.name", "did you mean 'adamw'"]),
        ("optimizer.name=adam", ["optimizer.weight_decay=1.0", "'adamw'"]),
        ("optimizer.warmup_steps=1000", ["optimizer.warmup_steps=1000", "train.num_steps"]),
        ("optimizer.warmup_tokens=1000000000", ["optimizer.warmup_tokens=1000000000", "train.num_steps"]),
        ("optimizer.schedule=wsd", ["optimizer.decay_steps", "'wsd'"]),
        ("optimizer.final_fraction=1.5", ["optimizer.final_fraction", "at most 1"]),
        ("optimizer.rates=embeding=0.1", ["optimizer.rates", "'embeding'", "embedding"]),
        ("optimizer.rates=embedding", ["optimizer.rates", "'embedding'", "factor"]),
        ("optimizer.undecayed=router", ["optimizer.undecayed", "'router'", "embedding"]),
        ("train.num_steps=0", ["train.num_steps", "at least 1"]),
        ("train.seed=-1", ["train.seed", "at least 0"]),
        ("train.microbatches=3", ["train.microbatches=3", "data.batch_size=8"]),
        ("train.precision=fp8", ["train.precision", "'fp8'"]),
        ("train.checkpoints_kept=1", ["train.checkpoints_kept", "at least 2"]),
        ("data.batch_size=0", ["data.batch_size", "at least 1"]),
        ("data.validation_fraction=nan", ["data.validation_fraction", "finite"]),
        ("sample.top_p=0", ["sample.top_p", "above 0"]),
        ("name=a/b", ["name", "'a/b'"]),
        ("mesh.rules=palm_2", ["mesh.rules", "did you mean 'palm_2d'"]),
        ("mesh.rules=zzz", ["mesh.rules", "fsdp", "palm_2d", "tensor_parallel"]),
        ("mesh.data=0", ["mesh.data", "above 0"]),
        ("mesh.tensor=16", ["mesh.tensor=16", "16 devices", "there are 8"]),
        ("data.mixture=python_tex", ["did you mean 'python_text'"]),
        ("mixing.rule=loss_ratio", ["mixing.rule='loss_ratio'", "'files' is the only one", "'proportional'"]),
    ],
)
def test_settings(micro, refused, tmp_path, setting, words):
    files = ["--set=data.files="] if setting.startswith("data.mixture") else []
    message = refused(*micro.train(tmp_path / "run", setting), *files)
    assert all(word in message for word in words), message
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        # 8 heads over 3 devices: 6 or 9 heads would do.
        (["mesh.tensor=3"], ["model.embed_dim=16", "mesh.tensor=3", "15 or 18"]),
        (["mesh.tensor=8", "model.num_heads=6"], ["model.num_heads=6", "mesh.tensor=8", "8 would be"]),
        (["mesh.tensor=8", "model.num_heads=12"], ["model.num_heads=12", "'heads'", "mesh.tensor=8", "8 or 16"]),
        (["mesh.tensor=8", "model.mlp_dim=36"], ["model.mlp_dim=36", "mesh.tensor=8", "32 or 40"]),
        (["mesh.tensor=8", "model.vocab_size=511"], ["model.vocab_size=511", "mesh.tensor=8", "504 or 512"]),
        (["mesh.rules=fsdp", "mesh.tensor=8", "data.batch_size=4"], ["data.batch_size", "=4", "8 would be"]),
        (["mesh.rules=fsdp", "mesh.tensor=8", "train.microbatches=2"], ["train.microbatches", "=4", "8 would be"]),
        (["mesh.context=8", "data.sequence_length=72"], ["data.sequence_length=72", "2 x mesh.context=8", "64 or 80"]),
        (
            ["mesh.rules=sequence_parallel", "mesh.context=2", "mesh.tensor=4", "data.sequence_length=60"],
            ["data.sequence_length=60", "mesh.context=2 x mesh.tensor=4", "56 or 64"],
        ),
        (
            ["mesh.context=2", "mesh.context_attention=ring", "model.dropout=0.1"],
            ["mesh.context_attention='ring'", "model.dropout=0.1", "'gather'"],
        ),
    ],
)
def test_meshes_that_do_not_divide(micro, refused, tmp_path, settings, words):
    message = refused(*micro.train(tmp_path / "run", *settings))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.attention=splash"], ["model.attention='splash'", "TPUs", "cpu"]),
        (["model.attention=blocked", "model.dropout=0.1"], ["model.attention='blocked'", "model.dropout"]),
        (["model.attention=flash"], ["model.attention", "'flash'", "splash"]),
    ],
)
def test_attention_that_cannot_serve(micro, refused, tmp_path, settings, words):
    message = refused(*micro.train(tmp_path / "run", *settings))
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["top_k=5"], ["model.moe.top_k=5", "model.moe.num_experts=4"]),
        (["capacity_factor=0"], ["model.moe.capacity_factor", "above 0"]),
        (["capacity_factor=-1"], ["model.moe.capacity_factor", "above 0", "-1"]),
        (["eval_capacity_factor=0"], ["model.moe.eval_capacity_factor", "above 0"]),
        (["router=expert_choice"], ["model.moe.router='expert_choice'", "later tokens"]),
        (["router=top_two"], ["model.moe.router", "'top_two'"]),
        (["dispatch=sparse"], ["model.moe.dispatch", "'sparse'", "all_to_all"]),
        (["every=3"], ["model.num_layers=2", "model.moe.every=3"]),
        (["every=2", "offset=2"], ["model.moe.offset=2", "model.moe.every=2"]),
        (["mlp_dim=-1"], ["model.moe.mlp_dim", "at least 0"]),
    ],
)
def test_experts(micro, refused, tmp_path, settings, words):
    settings = [f"model.moe.{setting}" for setting in ("num_experts=4", *settings)]
    message = refused(*micro.train(tmp_path / "run", *settings))
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.moe.num_experts=6", "mesh.expert=4"], ["model.moe.num_experts=6", "mesh.expert=4", "4 or 8"]),
        (["model.moe.num_experts=2", "mesh.expert=8"], ["model.moe.num_experts=2", "mesh.expert=8", "8 would be"]),
    ],
)
def test_experts_that_do_not_divide(micro, refused, tmp_path, settings, words):
    message = refused(*micro.train(tmp_path / "run", *settings))
    assert all(word in message for word in words), message


def test_mesh_larger_than_the_devices(micro, tmp_path, capfd):
    assert main(micro.train(tmp_path / "run", "mesh.data=4", "mesh.tensor=4")) == 2
    message = capfd.readouterr().err
    assert all(word in message for word in ("mesh.data=4", "mesh.tensor=4", "16 devices", "there are 8"))
    assert main(micro.train(tmp_path / "run", "mesh.tensor=3")) == 2
    assert "not a multiple of 3" in capfd.readouterr().err


def files(folder, **content: bytes):
    for name, data in content.items():
        (folder / f"{name}.txt").write_bytes(data)
    return f"data.files={folder}/*.txt"


WORDS = b"Some words of English, one line after the other.\n" * 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, ["data.files", "matches no file"]),
        ({"a": WORDS, "empty": b""}, ["empty.txt", "no text"]),
        ({"a": WORDS, "latin": b"one line\nna\xefve\n"}, ["latin.txt", "line 2", "UTF-8"]),
        ({"a": b"One word."}, ["too small"]),
        ({"a": b"One word.", "b": b"Another word."}, ["too"]),
    ],
)
def test_data_files(micro, refused, tmp_path, content, words):
    message = refused(*micro.train(tmp_path / "run", files(tmp_path, **content)))
    assert all(word in message for word in words), message


def test_unreadable_data_file(micro, refused, tmp_path):
    """A plain file under the name of a packed one; for root, all files may be read."""
    (tmp_path / "a.txt.gz").write_bytes(b"not packed")
    message = refused(*micro.train(tmp_path / "run", f"data.files={tmp_path}/*"))
    assert "a.txt.gz" in message


def test_corpus_smaller_than_a_batch(micro, refused, tmp_path):
    message = refused(*micro.train(tmp_path / "run", "data.batch_size=65536"))
    assert "data.batch_size=65536" in message
    assert "too small" in message


@pytest.mark.parametrize("value", ["/nowhere/v.model", "/proc/version"])
def test_vocabulary_file(micro, refused, tmp_path, value):
    assert f"data.vocabulary='{value}'" in refused(*micro.train(tmp_path / "run", f"data.vocabulary={value}"))


def test_cache_that_cannot_be_written(micro, refused, tmp_path):
    assert "data.cache_dir" in refused(*micro.train(tmp_path / "run", "data.cache_dir=/proc/nothing"))


def test_sample_prompt_longer_than_the_context(micro, refused, tmp_path):
    message = refused(*micro.train(tmp_path / "run", f"sample.prompt={'word ' * 40}"))
    assert "prompt of" in message
    assert "at most 30" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "word " * 40], ["prompt of", "at most 30"]),
        (["--prompt", "a", "--prompt", "word " * 40], ["prompt of", "at most 30"]),
        (["--prompt", ""], ["prompt 1 is empty"]),
        (["--prompt", "a", "--prompt", ""], ["prompt 2 is empty"]),
        (["--prompt", "a\udcff"], ["prompt 1 holds half of a surrogate pair"]),
        (["--prompt", "a", "--stop", ""], ["a stop string is empty"]),
        (["--prompt", "a", "--regex", "(a"], ["regular expression '(a'", "unclosed group"]),
        (["--prompt", "a", "--json-schema", "/nowhere.json"], ["/nowhere.json", "cannot be read"]),
        (["--prompt", "a", "--best-of", "0"], ["best_of", "at least 1"]),
        (["--prompt", "a", "--min-p", "2"], ["min_p", "2"]),
        (["--prompt", "a", "--repetition-penalty", "0"], ["repetition_penalty", "0"]),
        (["--prompt", "a", "--draft", "/nowhere"], ["/nowhere", "not a run folder"]),
        (["--file", "/nowhere.jsonl", "--out", "x"], ["/nowhere.jsonl", "cannot be read"]),
        (["--prompt", "a", "--beams", "0"], ["num_beams", "1 or above"]),
        (["--prompt", "a", "--beams", "100000"], ["num_beams", "100000"]),
        (["--prompt", "a", "--beams", "4", "--beam-groups", "3"], ["groups", "divisor of num_beams=4"]),
        (["--prompt", "a", "--beams", "2", "--stop", "x"], ["--stop is not for --beams"]),
        (["--prompt", "a", "--beams", "2", "--contrastive", "0.5"], ["--beams and --contrastive"]),
        (["--prompt", "a", "--beams", "2", "--best-of", "2"], ["--best-of is not for --beams"]),
        (["--chat", "--regex", "a"], ["--regex is not for --chat"]),
        (["--prompt", "a", "--length-penalty", "1"], ["--length-penalty goes with --beams"]),
        (["--prompt", "a", "--penalty-form", "gnmt"], ["--penalty-form goes with --beams"]),
        (["--prompt", "a", "--beam-groups", "2"], ["--beam-groups goes with --beams"]),
        (["--prompt", "a", "--diversity", "0"], ["--diversity goes with --beams"]),
        (["--prompt", "a", "--early-stopping"], ["--early-stopping goes with --beams"]),
        (["--prompt", "a", "--contrastive", "0.5", "--num-return", "2"], ["--num-return goes with --beams"]),
        (["--prompt", "a", "--ahead", "2"], ["--ahead goes with --draft"]),
        (["--prompt", "a", "--key", "text"], ["--key goes with --file"]),
        (["--prompt", "a", "--split", "train"], ["--split goes with --task"]),
        (["--prompt", "a", "--beams", "2", "--temperature", "1"], ["--temperature is not for --beams"]),
        (["--prompt", "a", "--contrastive", "0.5", "--seed", "1"], ["--seed is not for --contrastive"]),
        (["--prompt", "a", "--contrastive", "2"], ["alpha", "2"]),
        (["--file", "x.jsonl"], ["--file or --task goes with --out"]),
        (["--prompt", "a", "--num-tokens", "0"], ["--num-tokens", "at least 1"]),
        (["--prompt", "a", "--seed", "-1"], ["--seed", "-1"]),
        (["--prompt", "a", "--seed", str(2**40)], ["--seed", str(2**40)]),
        (["--prompt", "a", "--num-tokens", "-3"], ["--num-tokens", "-3"]),
        (["--prompt", "a", "--temperature", "-1"], ["temperature", "-1"]),
        (["--prompt", "a", "--temperature", "nan"], ["temperature", "nan"]),
        (["--prompt", "a", "--temperature", "inf"], ["temperature", "inf"]),
        (["--prompt", "a", "--top-k", "-1"], ["top_k", "-1"]),
        (["--prompt", "a", "--top-p", "0"], ["top_p", "0"]),
        (["--prompt", "a", "--top-p", "1.5"], ["top_p", "1.5"]),
        (["--prompt", "a", "--top-p", "nan"], ["top_p", "nan"]),
        (["--prompt", "a", "--set", "mesh.tensor=16"], ["mesh.tensor=16", "16 devices"]),
        (["--prompt", "a", "--set", "mesh.tensor=3"], ["model.embed_dim=16", "mesh.tensor=3"]),
        (["--prompt", "a", "--cpu-devices", "0"], ["--cpu-devices", "at least 1"]),
    ],
)
def test_generate(undisturbed, refused, capfd, arguments, words):
    message = refused("generate", str(undisturbed), *arguments)
    assert all(word in message for word in words), message


def test_configs(micro, refused, tmp_path):
    for name, content, words in (
        ("missing.py", None, ["missing.py", "does not exist"]),
        ("wrong.txt", "", ["wrong.txt", ".py or .gin"]),
        ("empty.py", "", ["empty.py", "experiment"]),
        ("syntax.py", "def experiment(:", ["syntax.py"]),
        ("nothing.py", "def experiment(): pass", ["nothing.py", "Experiment"]),
        ("broken.gin", "ModelConfig.num_layers =", ["broken.gin"]),
        ("field.gin", "ModelConfig.num_layer = 3", ["field.gin"]),
    ):
        if content is not None:
            (tmp_path / name).write_text(content)
        message = refused("config", str(tmp_path / name))
        assert all(word in message for word in words), message
    typo = micro.config.read_text().replace("num_layers", "num_layer")
    (tmp_path / "typo.py").write_text(typo)
    message = refused("train", str(tmp_path / "typo.py"))
    assert "typo.py" in message
    assert "did you mean 'num_layers'" in message
    assert "--gin.ModelConfig.num_layers=3" in refused("config", str(micro.config), "--gin.ModelConfig.num_layers=3")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--coordinator", "localhost:1"], ["--num-processes", "--process-id"]),
        (["--num-processes", "2", "--process-id", "0"], ["--coordinator"]),
        (["--coordinator", "localhost:1", "--num-processes", "2"], ["--process-id"]),
        (["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "2"], ["--process-id 2", "0 to 1"]),
        (["--coordinator", "localhost:1", "--num-processes", "2", "--process-id", "-1"], ["--process-id -1"]),
    ],
)
def test_processes(micro, refused, tmp_path, flags, words):
    message = refused(*micro.train(tmp_path / "run"), *flags)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train"], ["generate", "run"], ["train", "a.py", "--set"]])
def test_words_that_are_not_understood(arguments, capfd):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capfd.readouterr().err
