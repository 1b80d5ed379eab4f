#!/usr/bin/env python3
"""Finds cycles of imports between the modules of each crate.

A module and the modules below it count as one where the parent declares them: only imports between siblings, and between
their descendants, are looked at. Exits with 1 if there is a cycle, and prints it.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def modules(source: pathlib.Path) -> dict[tuple[str, ...], str]:
    """The text of each module of a crate, without its tests, by its path."""
    found = {}
    for file in sorted(source.rglob("*.rs")):
        parts = file.relative_to(source).with_suffix("").parts
        if parts[-1] in ("lib", "main", "tests", "simulation", "states") or "bin" in parts:
            continue
        if parts[-1] == "mod":
            parts = parts[:-1]
        text = re.sub(r"//[^\n]*", "", file.read_text())
        found[parts] = re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]
    return found


def paths(text: str) -> set[tuple[str, ...]]:
    """Every path that begins with crate:: or super::, with the names in braces spelled out."""
    found = set()

    def expand(prefix: tuple[str, ...], rest: str) -> None:
        rest = rest.strip()
        if rest.startswith("{"):
            depth, begin = 0, 1
            for at, letter in enumerate(rest):
                depth += {"{": 1, "}": -1}.get(letter, 0)
                if (letter == "," and depth == 1) or depth == 0:
                    expand(prefix, rest[begin:at])
                    begin = at + 1
                if depth == 0:
                    return
        elif match := re.match(r"(\w+)(\s*::\s*)?", rest):
            path = (*prefix, match[1])
            if match[2]:
                expand(path, rest[match.end() :])
            else:
                found.add(path)

    for match in re.finditer(r"\b((?:crate|super)\s*::\s*)(?=[\w{])", text):
        expand((match[1].split("::")[0].strip(),), text[match.end() :])
    return found


def exports(source: pathlib.Path) -> dict[str, tuple[str, ...]]:
    """Which module each name comes from that the crate's root exports."""
    text = re.sub(r"//[^\n]*", "", (source / "lib.rs").read_text())
    modules = "|".join(["self", *re.findall(r"\bmod (\w+);", text)])
    uses = re.findall(rf"\bpub use ((?:{modules})\s*::[^;]*);", text)
    uses = ["crate::" + use.removeprefix("self::") for use in uses]
    return {path[-1]: path[1:] for path in paths(" ".join(uses))}


def imports(
    crate: dict[tuple[str, ...], str], exported: dict[str, tuple[str, ...]]
) -> dict[tuple[str, ...], set[tuple[str, ...]]]:
    graph = {}
    for module, text in crate.items():
        graph[module] = set()
        for path in paths(text):
            base = module
            while path and path[0] in ("super", "crate"):
                base = () if path[0] == "crate" else base[:-1]
                path = path[1:]
            if not base and path:
                path = exported.get(path[0], path)
            target = base + path
            while target and target not in crate:
                target = target[:-1]
            is_family = target == module[: len(target)] or module == target[: len(module)]
            if target and not is_family:
                graph[module].add(target)
    return graph


def cycle(graph: dict[tuple[str, ...], set[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    """The modules of a cycle, or nothing."""
    done, way = set(), []

    def visit(module: tuple[str, ...]) -> list[tuple[str, ...]]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        way.append(module)
        for target in sorted(graph[module]):
            if found := visit(target):
                return found
        way.pop()
        done.add(module)
        return []

    for module in sorted(graph):
        if found := visit(module):
            return found
    return []


def main() -> int:
    failed = 0
    for source in sorted(ROOT.glob("crates/*/src")) + [ROOT / "loadtest/src"]:
        name = source.parent.name
        if found := cycle(imports(modules(source), exports(source))):
            failed = 1
            print(f"{name}: " + " -> ".join("::".join(module) for module in found))
    return failed


if __name__ == "__main__":
    sys.exit(main())
