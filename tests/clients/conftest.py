import pytest
from openai import OpenAI

from server import PATIENCE, Server


@pytest.fixture(scope="session")
def server():
    """One server for all tests that do not end it."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def client(server):
    # No retries: an error must be seen.
    return OpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE, max_retries=0)


@pytest.fixture(scope="session")
def model(client):
    return client.models.list().data[0].id
