#!/usr/bin/env python3
"""Holds every crate of Cargo.lock against deny.toml, without the network.

Checks licences (SPDX expressions against the allow list), sources (no git, no path outside the
workspace) and bans. cargo-deny does this and more where it is installed; this needs cargo alone.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def deny_list(section, key):
    """The strings of one array in deny.toml."""
    text = re.sub(r"#.*", "", (ROOT / "deny.toml").read_text())
    body = re.search(rf"^\[{section}\]$(.*?)(?=^\[|\Z)", text, re.M | re.S)
    array = re.search(rf"^{key}\s*=\s*\[(.*?)\]", body.group(1), re.M | re.S)
    return set(re.findall(r'"([^"]+)"', array.group(1)))


def allowed(expression, allow):
    """Whether an SPDX expression can be met with licences of the list."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            token = f"{token} WITH {tokens[1]}"
            del tokens[:2]
        return token in allow

    return either()


def self_check():
    allow = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    assert allowed("MIT/GPL-3.0", allow)
    assert allowed("(GPL-3.0 OR MIT) AND Apache-2.0", allow)
    assert not allowed("MIT AND GPL-3.0", allow)
    assert allowed("Apache-2.0 WITH LLVM-exception", {"Apache-2.0 WITH LLVM-exception"})
    assert not allowed("GPL-3.0 WITH Classpath-exception-2.0", allow)


def main():
    self_check()
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    allow, banned = deny_list("licenses", "allow"), deny_list("bans", "deny")
    problems = []
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        licence = package["license"]
        if licence is None:
            problems.append(f"{name} states no licence")
        elif not allowed(licence, allow):
            problems.append(f"{name} is under {licence}")
        source = package["source"]
        if source is None:
            if not Path(package["manifest_path"]).resolve().is_relative_to(ROOT):
                problems.append(f"{name} lies outside the workspace")
        elif not source.startswith("registry+"):
            problems.append(f"{name} comes from {source}")
        if package["name"] in banned:
            problems.append(f"{name} is banned")
    for problem in problems:
        print(f"licences: {problem}", file=sys.stderr)
    print(f"licences: {len(metadata['packages'])} crates, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
