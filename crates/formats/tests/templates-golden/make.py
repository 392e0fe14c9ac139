#!/usr/bin/env python3
"""Renders every template with Python's jinja2 in an environment like transformers' own.

Needs jinja2 (made with 3.1.6). For each template in ../templates writes <name>.json: for each case
the rendered text, or the error, of the messages as the template gets them. Which form of message a
template takes (arguments as object or text, null or empty content, …) is in forms.json, found by hand.
"""
import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2026, 7, 5, 9, 8, 7)  # UTC


class Refused(Exception):
    pass


class Generation(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %}: transparent, as when transformers renders a prompt."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment():
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )

    def raise_exception(message):
        raise Refused(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


def form(case, choice):
    """The case's messages with tool arguments and empty content as the template takes them."""
    case = json.loads(json.dumps(case))
    for message in case["messages"]:
        if "content" in message and message["content"] is None and "empty" in choice:
            message["content"] = ""
        if isinstance(message.get("content"), str) and "parts" in choice:
            message["content"] = [{"type": "text", "text": message["content"]}]
        for call in message.get("tool_calls", []):
            function = call["function"]
            if "text" not in choice:
                function["arguments"] = json.loads(function["arguments"])
    first, *rest = case["messages"]
    if "merge" in choice and first["role"] == "system" and rest[0]["role"] == "user":
        rest[0]["content"] = first["content"] + "\n\n" + rest[0]["content"]
        case["messages"] = rest
    return case


def main():
    cases = json.loads((HERE / "cases.json").read_text())
    forms = json.loads((HERE / "forms.json").read_text())
    for path in sorted((HERE.parent / "templates").glob("*.jinja")):
        out = {}
        template = environment().from_string(path.read_text())
        for name, case in cases.items():
            choice = forms.get(path.stem, [])
            case = form(case, choice)
            if "functions" in choice:
                tools = case.pop("tools", None)
                case["extra"] = case.get("extra", {}) | {
                    "functions": json.dumps(tools, ensure_ascii=False, indent=2) if tools else "",
                    "datetime": NOW.strftime("%b %d %Y %H:%M:%S GMT"),
                }
            try:
                out[name] = {
                    "text": template.render(
                        messages=case["messages"],
                        tools=case.get("tools", [] if "list_tools" in choice else None),
                        documents=None,
                        add_generation_prompt=case["add_generation_prompt"],
                        bos_token="<BOS>",
                        eos_token="<EOS>",
                        **case.get("extra", {}),
                    )
                }
            except Refused as error:
                out[name] = {"refused": str(error)}
            except Exception as error:
                out[name] = {"failed": f"{type(error).__name__}: {error}"}
        golden = HERE / f"{path.stem}.json"
        golden.write_text(json.dumps(out, ensure_ascii=False, indent=1) + "\n")
        print(path.stem, {k: list(v)[0] + ("" if "text" in v else " " + list(v.values())[0][:60]) for k, v in out.items()})


main()
