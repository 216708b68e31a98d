"""Which workers of one revision share a Dynamo namespace: those with the same model card."""

from pathlib import Path

import pytest

from vllmendpoint_worker.model_data.worker_set import worker_set

ARGUMENTS = ("--model", "m", "--max-model-len", "2048")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name, text in (("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "weights")):
        (folder / name).write_text(text)
    return folder


def test_equal_models_and_arguments_are_one_set(model: Path) -> None:
    assert worker_set(model, ARGUMENTS) == worker_set(model, ARGUMENTS)
    assert len(worker_set(model, ARGUMENTS)) == 10


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "vocab.txt"])
def test_a_changed_file_of_the_card_is_another_set(model: Path, name: str) -> None:
    before = worker_set(model, ARGUMENTS)
    (model / name).write_text('{"changed": true}')
    assert worker_set(model, ARGUMENTS) != before


def test_weights_are_not_read(model: Path) -> None:
    before = worker_set(model, ARGUMENTS)
    (model / "model.safetensors").write_text("other weights")
    assert worker_set(model, ARGUMENTS) == before


def test_another_snapshot_of_the_same_files_is_another_set(model: Path) -> None:
    """The card names the folder that it comes from."""
    before = worker_set(model, ARGUMENTS)
    assert worker_set(model.rename(model.with_name("other")), ARGUMENTS) != before


def test_other_arguments_are_another_set(model: Path) -> None:
    assert worker_set(model, ARGUMENTS) != worker_set(model, (*ARGUMENTS[:-1], "1024"))


def test_a_changed_chat_template_outside_the_model_is_another_set(model: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("a")
    before = worker_set(model, ARGUMENTS, template)
    template.write_text("b")
    assert worker_set(model, ARGUMENTS, template) != before


def test_a_model_that_is_not_on_this_machine_has_a_set(tmp_path: Path) -> None:
    assert worker_set(tmp_path / "none", ARGUMENTS, tmp_path / "none.jinja")
