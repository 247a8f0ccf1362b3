"""Hooks of mkdocs: pages outside of docs/ join the site, and links between the two kinds work on both."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/eggs-ptp/eggs-ptp/blob/main"
# Pages of the site whose Markdown is elsewhere in the repository.
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "examples.md": "examples/README.md",
    "training.md": "training/README.md",
    "fuzzing.md": "fuzz/README.md",
}
_LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into links to a page of the site, or to the repository."""
    uri = page.file.src_uri
    source = ROOT / PAGES.get(uri, f"docs/{uri}")

    def rewritten(match: re.Match[str]) -> str:
        target = (source.parent / match[1]).resolve()
        anchor = match[2] or ""
        if not target.exists():
            return match[0]  # mkdocs reports it
        path = target.relative_to(ROOT)
        generated = next((name for name, origin in PAGES.items() if ROOT / origin == target), None)
        if generated is None and path.parts[0] != "docs":
            return f"{REPOSITORY}/{path.as_posix()}{anchor}"
        inside = Path(generated) if generated else path.relative_to("docs")
        up = "../" * (len(Path(uri).parts) - 1)
        return f"{up}{inside.as_posix()}{anchor}"

    return _LINK.sub(rewritten, markdown)
