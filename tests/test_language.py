"""Search docstrings, comments, messages, test names and documents for words that the style excludes.

The style is in ``CONTRIBUTING.md``. Text in backticks, code blocks, flags (``--name``) and the phrases of ``ALLOWED``
are not searched: names of commands, flags and stored keys are interfaces and keep their spelling.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON_FOLDERS = ("ptycho_torch", "tests", "benchmarks", "scripts", "examples")
SELF = Path(__file__)
"""Excluded from the search, since this file lists the words."""

COUNTED = (
    r"photons|patterns|steps|rows|images|pixels|px|seconds|ms|times|batches|updates|counts|epochs|groups|positions|"
    r"patches|messages|bytes|passes|draws|weights|channels|factor|copies|lines|modes|neighbors|convolutions"
)
PER = r"pattern|epoch|step|row|batch|scan|sweep|second|pixel|position|patch|group|message|block|axis|field"

BRITISH_STEMS = (
    r"initial|optim|regular|synchron|minim|maxim|normal|orthogonal|summar|recogn|organ|visual|general|special|serial|"
    r"quant|local|parametr|discret|factor|penal|vector|local|equal|categor|character|stabil|util|emphas|final"
)

BANNED = {
    "perception or speech": (
        r"told|tells?|telling|said|says?|saying|speaks?|spoken|speaking|knows|knew|looks? at|looked at|looking at|"
        r"asks?|asked|asking"
    ),
    "teaching": r"taught|untaught|teach|teaches|lessons?",
    "illumination": r"lit|unlit",
    "'a' for 'per'": rf"(?:{COUNTED}) an? (?:{PER})",
    "continuation": r"goes on|going on|go on|went on",
    "grammar terms for commands": r"verbs?|nouns?",
    "connectives": r"but for",
    "images": r"pictures?",
    "British spelling": (
        r"(?:de)?centr(?:e|es|ed)|neighbour\w*|colour\w*|behaviour\w*|favour\w*|honour\w*|grey\w*|licence\w*|"
        r"(?:milli|micro|nano|centi)?met(?:re|res)|fibre\w*|artefacts?|analys(?:e|ed|es|ing)|modell(?:ed|ing)|"
        rf"labell(?:ed|ing)|cancell(?:ed|ing)|catalogue|programmes?|judgements?|whilst|(?:re)?(?:{BRITISH_STEMS})is"
        r"(?:e|ed|es|er|ers|ing|ation|ations)"
    ),
}
PATTERNS = {reason: re.compile(rf"(?<![\w-])(?:{words})(?![\w-])", re.IGNORECASE) for reason, words in BANNED.items()}
ANY_PATTERN = re.compile("|".join(BANNED.values()) + "|What ", re.IGNORECASE)
DECLARATIVE_WHAT = re.compile(r"(?:^|[.:;!] )What (?!is the\b.*\?)[^.?!]*(?:[.!]|$)")

ALLOWED = (
    "look-up",
    "look up",
    "a verb and its object",
    "with a verb",
    "noun phrase",
    "pronoun's noun",
    "the figure says nothing about patterns not seen",
    "lessons: 7",
    "origin: centred",
)
"""Phrases that contain an excluded word and are right: a look-up in a table, the grammar of ``CONTRIBUTING.md``, a text
that checkpoints store, and older names of settings."""

IGNORED_MARKUP = re.compile(r"``[^`]*``|`[^`]*`|--[\w-]+|:\w+:|https?://\S+|\w+/[\w/.]+|\w+\.\w+")


def find_banned(text: str) -> Iterator[tuple[str, str]]:
    """Yield the reason and the match of each excluded word in a passage of prose."""
    prose = " ".join(IGNORED_MARKUP.sub(" ", text).split())
    for phrase in ALLOWED:
        prose = prose.replace(phrase, " ")
    for reason, pattern in PATTERNS.items():
        for match in pattern.finditer(prose):
            yield reason, match.group()
    for match in DECLARATIVE_WHAT.finditer(prose):
        yield "declarative What", match.group()[:60]


def list_python_passages(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of docstrings, comments, test names and string literals of more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
            yield node.lineno, node.value


def list_document_passages(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of the paragraphs of a Markdown file, without its code blocks."""
    lines, start, in_code = [], 1, False
    for number, line in enumerate([*source.splitlines(), ""], start=1):
        is_fence = line.lstrip().startswith("```")
        in_code ^= is_fence
        if is_fence or in_code or not line.strip() or (line.startswith("    ") and not lines):
            if lines:
                yield start, "\n".join(lines)
            lines = []
        else:
            start = start if lines else number
            lines.append(line)


def list_sources() -> list[Path]:
    """Return every Python file and document of the project except this test."""
    python = [path for folder in PYTHON_FOLDERS for path in (ROOT / folder).rglob("*.py")]
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("specs/**/*.md")]
    return sorted(path for path in [*python, *documents] if path != SELF)


def find_hits(path: Path) -> list[str]:
    """Return one line per excluded word in a file."""
    source = path.read_text(encoding="utf-8")
    if not ANY_PATTERN.search(" ".join(source.replace("_", " ").replace("#", " ").split())):
        return []  # before the slower split into passages
    passages = list_python_passages(source) if path.suffix == ".py" else list_document_passages(source)
    return [
        f"{path.relative_to(ROOT)}:{line}: {match!r} ({reason})"
        for line, text in passages
        for reason, match in find_banned(text)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "The log says which it was.",
        "photons a pattern",
        "What runtime depends on is measured.",
        "an untaught network",
        "neighbouring positions",
        "a centred window",
        "an optimiser",
    ],
)
def test_excluded_words_are_found(text: str) -> None:
    assert list(find_banned(text))


@pytest.mark.parametrize(
    "text",
    [
        "a look-up table",
        "`--lessons` sets the number",
        "What is R?",
        "photons per pattern",
        "a known probe",
        "a precise rise",
    ],
)
def test_right_words_are_not_found(text: str) -> None:
    assert not list(find_banned(text))


def test_the_project_uses_no_excluded_words() -> None:
    hits = [hit for path in list_sources() for hit in find_hits(path)]
    assert not hits, f"{len(hits)} excluded words:\n" + "\n".join(hits)
