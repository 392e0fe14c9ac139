"""An agent framework, unmodified: OpenAI's Agents SDK, over the chat API."""

import asyncio
from typing import Literal

from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI

from server import PATIENCE

set_tracing_disabled(True)


def run(server, model, streamed: bool):
    """The agent must call its tool first, and says something with the result."""
    asked = []

    @function_tool
    def disk_usage(folder: Literal["/home", "/tmp"]) -> str:
        """Tells how full a folder's disk is."""
        asked.append(folder)
        return f"{folder} is 93 % full"

    async def ask():
        async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", timeout=PATIENCE) as client:
            agent = Agent(
                name="janitor",
                instructions="You keep disks tidy.",
                tools=[disk_usage],
                model=OpenAIChatCompletionsModel(model=model, openai_client=client),
                model_settings=ModelSettings(tool_choice="required", max_tokens=60, temperature=0),
            )
            if not streamed:
                return await Runner.run(agent, "How full is the disk?", max_turns=4)
            result = Runner.run_streamed(agent, "How full is the disk?", max_turns=4)
            async for _ in result.stream_events():
                pass
            return result

    result = asyncio.run(ask())
    assert asked and all(folder in ("/home", "/tmp") for folder in asked)
    kinds = [item.type for item in result.new_items]
    assert kinds[:2] == ["tool_call_item", "tool_call_output_item"]
    assert isinstance(result.final_output, str)


def test_an_agent_calls_its_tool_and_goes_on(server, model):
    run(server, model, streamed=False)


def test_an_agent_does_so_over_a_stream(server, model):
    run(server, model, streamed=True)
