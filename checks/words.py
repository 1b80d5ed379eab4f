#!/usr/bin/env python3
"""Counts words and sentences that slow a reader down, in Markdown and in comments, and fails when there are more than before.

    checks/words.py          compares each area with its limit
    checks/words.py --list   prints each place

CONTRIBUTING.md says how this project writes. Lower a limit when the count has fallen.
"""

import dataclasses
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Hits per 1,000 words that each area may have.
LIMITS = {"docs": 2.0, "code": 2.0, "tests": 2.0}
# Generated, or a list of other things.
SKIPPED = {"docs/faults.md"}
# Crates that only test.
TESTING = ("crates/chaos/", "crates/testkit/", "loadtest/")
MOST_WORDS = 30

RULES = {
    "name the thing instead of a relative clause": [
        r"^(who|what|whoever|whatever)\b(?!.*\?$)",
        r"\b(by|for|of|to|than|from|with|and|but) (who|what|whoever|whatever)\b",
    ],
    "name the component": [r"\b(whoever|whatever|nobody|somebody|everybody|anybody)\b"],
    "software does not speak or hear": [r"\b(told|tells?|said|says|heard|hears?)\b"],
    "software does not stand, lie, come or go": [r"\b(stands|lies|comes|goes)\b"],
    "plain words": [r"\b(anew|hence|thus|thereof|for ever|meanwhile)\b"],
}


@dataclasses.dataclass
class Sentence:
    file: str
    line: int
    text: str


def prose(path: pathlib.Path):
    """Numbered lines of prose: Markdown without code, or comments."""
    is_code = False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if path.suffix == ".md":
            if line.startswith("```"):
                is_code = not is_code
            elif not is_code:
                yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "X", line)
        else:
            mark = "--" if path.suffix == ".lua" else "//[/!]?"
            if match := re.match(rf"\s*{mark}\s?(.*)", line):
                yield number, re.sub(r"`[^`]*`", "X", match[1])


def sentences(path: pathlib.Path):
    name = str(path.relative_to(ROOT))
    text, first, last = "", 0, 0
    for number, line in [*prose(path), (sys.maxsize, "")]:
        ends = number > last + 1 or not line.strip() or line.lstrip().startswith(("#", "|", "-", "*"))
        if text and ends:
            for sentence in re.split(r"(?<=[.!?:;]) ", text):
                yield Sentence(name, first, sentence.strip(" |-*#"))
            text = ""
        if line.strip():
            first = first if text else number
            text = f"{text} {line.strip()}"
        last = number


def area(name: str) -> str:
    if name.endswith(".md"):
        return "docs"
    return "tests" if "/tests/" in name or name.startswith(TESTING) else "code"


def main() -> int:
    files = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
    for folder in ("crates", "loadtest"):
        for suffix in ("rs", "lua"):
            files += ROOT.glob(f"{folder}/**/*.{suffix}")
    words, hits = dict.fromkeys(LIMITS, 0), dict.fromkeys(LIMITS, 0)
    for path in sorted(files):
        name = str(path.relative_to(ROOT))
        if name in SKIPPED or any(part in ("node_modules", ".venv", "target") for part in path.parts):
            continue
        for sentence in sentences(path):
            count = len(re.findall(r"[A-Za-z']+", sentence.text))
            words[area(name)] += count
            found = [
                advice
                for advice, patterns in RULES.items()
                for pattern in patterns
                for _ in re.findall(pattern, sentence.text, re.IGNORECASE)
            ]
            if count > MOST_WORDS:
                found.append(f"{count} words")
            hits[area(name)] += len(found)
            if found and "--list" in sys.argv:
                print(f"{sentence.file}:{sentence.line}: {', '.join(found)}: {sentence.text}")
    failed = 0
    for name, limit in LIMITS.items():
        rate = 1000 * hits[name] / max(words[name], 1)
        print(f"{name}: {rate:.1f} hits per 1,000 words, at most {limit}", file=sys.stderr)
        failed |= rate > limit
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
