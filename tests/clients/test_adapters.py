"""Adapters by the official `openai` package: named like models, and changed while they are served."""

import subprocess

import openai
import pytest
from openai import OpenAI

from server import PATIENCE, Server, binary

ASK = [{"role": "user", "content": "find all files larger than 100MB"}]
NAME = "seedling:sql"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder with random adapters of the built-in model, large enough to change answers."""
    folder = tmp_path_factory.mktemp("adapters")
    for name, method in [("sql", "lora"), ("prefix", "prefix")]:
        command = [str(binary()), "synth", "--from", "seedling", "--adapter", method]
        command += ["--alpha", "64", "--seed", "3", str(folder / name)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture(scope="module")
def serving(root):
    server = Server("--adapter-root", str(root))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def openai_client(serving):
    return OpenAI(base_url=serving.url + "/v1", api_key="none", timeout=PATIENCE, max_retries=0)


@pytest.fixture
def client(openai_client):
    """With the adapter `sql`, and without it afterwards."""
    add(openai_client, "sql", "sql")
    yield openai_client
    for card in adapters(openai_client):
        openai_client.delete(f"/adapters/{card['id']}", cast_to=object)


def add(client, name, path):
    return client.post("/adapters", body={"name": name, "path": str(path)}, cast_to=object)


def adapters(client):
    return client.get("/adapters", cast_to=object)["data"]


def answer(client, model):
    """Text and log-probabilities of a greedy answer."""
    whole = client.chat.completions.create(model=model, messages=ASK, max_tokens=24, temperature=0, logprobs=True)
    assert whole.model == model
    choice = whole.choices[0]
    return choice.message.content, [token.logprob for token in choice.logprobs.content]


def test_an_adapter_is_a_model_with_a_parent(client):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == ["seedling", NAME]
    found = client.models.retrieve(NAME)
    assert found == listed[NAME] and found.object == "model"
    assert found.parent == "seedling" and found.method == "LoRA" and found.bytes > 0 and found.resident
    assert client.models.retrieve("seedling").parent is None


def test_a_chat_names_it_streamed_or_whole(client):
    text, logprobs = answer(client, NAME)
    assert logprobs != answer(client, "seedling")[1]
    request = dict(model=NAME, messages=ASK, max_tokens=24, temperature=0)
    chunks = list(client.chat.completions.create(**request, stream=True))
    assert {chunk.model for chunk in chunks} == {NAME}
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
    [card] = adapters(client)
    assert card["requests"] == 2 and card["name"] == "sql" and card["model"] == "seedling"


def test_unmerging_gives_back_the_answers_of_before(client):
    text, before = answer(client, NAME)
    merged = client.post(f"/adapters/{NAME}/merge", cast_to=object)
    assert merged["merged"] > 0
    assert client.models.retrieve(NAME).merged == merged["merged"]
    # Merged weights are rounded: near is the same text, of tokens that are about as likely.
    same, near = answer(client, NAME)
    assert same == text and near == pytest.approx(before, abs=0.2)
    assert client.post(f"/adapters/{NAME}/unmerge", cast_to=object)["merged"] is None
    assert answer(client, NAME) == (text, before)
    with pytest.raises(openai.ConflictError) as error:
        client.post(f"/adapters/{NAME}/unmerge", cast_to=object)
    assert error.value.code == "adapter_not_merged"


def test_what_runs_with_a_removed_adapter_ends_with_it(client):
    request = dict(model=NAME, prompt="find", max_tokens=300, extra_body={"ignore_eos": True}, stream=True)
    stream = client.completions.create(**request)
    next(stream)
    gone = client.delete(f"/adapters/{NAME}", cast_to=object)
    assert gone == {"id": NAME, "object": "adapter", "deleted": True}
    assert list(stream)[-1].choices[0].finish_reason == "length"
    for call in [lambda: answer(client, NAME), lambda: client.models.retrieve(NAME)]:
        with pytest.raises(openai.NotFoundError) as error:
            call()
        assert error.value.code == "model_not_found" and "seedling" in error.value.message


def test_what_cannot_be_done_has_a_code(client, root, tmp_path):
    def refused(kind, code, call):
        with pytest.raises(kind) as error:
            call()
        assert error.value.code == code, error.value.message

    refused(openai.ConflictError, "adapter_exists", lambda: add(client, "sql", "sql"))
    refused(openai.BadRequestError, "invalid_value", lambda: add(client, "../x", "sql"))
    refused(openai.BadRequestError, "invalid_value", lambda: add(client, "x", root))
    (root / "link").unlink(missing_ok=True)
    (root / "link").symlink_to(tmp_path)
    for path in [tmp_path, root / "..", "../sql", "/etc", "link", "nowhere"]:
        refused(openai.PermissionDeniedError, "path_not_allowed", lambda: add(client, "x", path))
    refused(openai.NotFoundError, "adapter_not_found", lambda: client.delete("/adapters/seedling:x", cast_to=object))
    card = add(client, "prefix", "prefix")
    assert card["positions"] == 16
    merge = lambda: client.post("/adapters/seedling:prefix/merge", cast_to=object)
    refused(openai.BadRequestError, "adapter_not_mergeable", merge)


def test_metrics_count_it(client, serving):
    before = serving.metric("sedge_adapter_hits_total")
    answer(client, NAME)
    assert serving.metric("sedge_adapters_registered") == 1
    assert serving.metric("sedge_adapter_hits_total") == before + 1


def test_without_a_root_nothing_is_read(server, root):
    client = OpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE, max_retries=0)
    with pytest.raises(openai.PermissionDeniedError) as error:
        add(client, "sql", root / "sql")
    assert "--adapter-root" in error.value.message
