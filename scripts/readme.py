"Render README.md from nbs/index.ipynb (nbdev's own way needs Quarto; this one needs only nbconvert)."

import posixpath
import re
from pathlib import Path

from nbconvert import MarkdownExporter
from nbconvert.preprocessors import RegexRemovePreprocessor
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Made from nbs/index.ipynb by `make readme`: edit there. -->\n\n"


def from_root(
    text: str,  # Markdown whose relative links start in nbs/
) -> str:
    "The same text with its links starting in the repository's root."
    return re.sub(r"\]\((?![a-z]+:|[#/])([^)\s]+)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])}", text)


def render(
    path=ROOT / "nbs" / "index.ipynb",  # the notebook to render
) -> str:  # Markdown; cells marked `#| hide` and empty ones are left out
    "The README's text; figures belong into files that the notebook links, so an embedded one is refused."
    hidden = RegexRemovePreprocessor(patterns=[r"#\|\s*hide\b", r"\s*\Z"])
    config = Config(MarkdownExporter=dict(exclude_input_prompt=True, exclude_output_prompt=True))
    exporter = MarkdownExporter(config=config)
    exporter.register_preprocessor(hidden, enabled=True)
    text, resources = exporter.from_filename(str(path))
    if resources.get("outputs"):
        raise ValueError(f"{path.name} embeds {', '.join(resources['outputs'])}; link a file instead")
    return HEAD + re.sub(r"\n{3,}", "\n\n", from_root(text)).strip() + "\n"


if __name__ == "__main__":
    (ROOT / "README.md").write_text(render(), encoding="utf-8")
