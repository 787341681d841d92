"""HTML pages from the package's templates."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from nnscan.artifacts import atomic_path


def write_page(path: str | Path, template: str, **entries: object) -> None:
    """Write an HTML page from one of the package's templates; an entry that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("nnscan", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(entries)
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
