"""The report as one page: inline style, embedded images, nothing loaded from anywhere."""

import base64
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bcgd_jax.report.files import dump_json
from bcgd_jax.report.overview import Overview
from bcgd_jax.report.plotting import Picture
from bcgd_jax.report.tables import Column, Table, layer_table

# The page may load nothing: a browser holds to this even if text from a run slipped through.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_CSS = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --line: #d0d7de;
  --ground: #ffffff; --card: #f6f8fa; --accent: #0060a0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9da7b1; --line: #3d444d; --ground: #0d1117; --card: #161b22;
    --accent: #6cb6ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p.lead { margin: 0 0 1.25rem; color: var(--soft); }
dl.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem;
  margin: 0; }
dl.cards div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; }
dl.cards dt { color: var(--soft); font-size: .875rem; }
dl.cards dd { margin: 0; font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
dl.cards dd small { display: block; font-size: .875rem; font-weight: 400; color: var(--soft); }
figure { margin: 0; }
figure .scroll { background: #ffffff; }
figure img { display: block; width: 100%; min-width: 34rem; height: auto; }
figure + .scroll { margin-top: 1rem; }
figcaption, p.note { color: var(--soft); font-size: .875rem; margin-top: .5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .5rem; }
.scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .5rem .6rem; color: var(--soft); }
caption span { display: inline-block; position: sticky; left: .6rem;
  max-width: min(58rem, 100vw - 4rem); }
th, td { padding: .35rem .6rem; text-align: left; white-space: nowrap;
  border-top: 1px solid var(--line); }
thead th { background: var(--card); border-top: 0; }
tbody th { font-weight: 400; }
tfoot th, tfoot td { font-weight: 600; border-top: 2px solid var(--line); }
.num { text-align: right; }
summary { cursor: pointer; color: var(--accent); }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; padding: .75rem 1rem; font-size: .8125rem; line-height: 1.4; }
"""


def report_page(
  overview: Overview,
  *,
  pictures: Sequence[Picture],
  run: Mapping[str, Any] | None,
  config: Mapping[str, Any],
) -> str:
  """The whole page as HTML text; every text out of the run is escaped.

  Args:
    overview: the top of the page.
    pictures: in the order they appear.
    run: as run.json, for the tables of layers and times; None for a run that has not ended.
    config: the resolved configuration.
  """
  title = overview.title
  sections = [
    _section(overview.heading, _table(overview.table, caption=overview.caption)),
    *(_section(picture.title, _figure(picture)) for picture in pictures),
  ]
  if run is not None:
    layers = layer_table(run["layers"], title=_LAYERS_CAPTION)
    sections += [
      _section("Layers", _table(layers, caption=layers.title)),
      _section("Time", _table(_phase_table(run["phase_seconds"]), caption=_TIME_CAPTION)),
    ]
  sections.append(
    _section(
      "Configuration",
      "<details><summary>Every key of this run</summary>"
      f"<pre>{_text(dump_json(config, indent=2))}</pre></details>",
    )
  )
  return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}: training report</title>
<style>{_CSS}</style>
</head>
<body>
<main>
<header>
<h1>{_text(title)}</h1>
<p class="lead">{_text(overview.lead)}</p>
{_cards(overview)}
</header>
{"".join(sections)}
</main>
</body>
</html>
"""


_LAYERS_CAPTION = (
  "Sizes are of the parameters; multiply-accumulates (MACs) are for one example."
  " '-' where a layer has no such quantity."
)
_TIME_CAPTION = "Wall time of each phase."


def _text(value: object) -> str:
  return html.escape(str(value), quote=True)


def _cards(overview: Overview) -> str:
  items = "".join(
    f"<div><dt>{_text(name)}</dt><dd>{_text(value)}"
    + (f"<small>{_text(note)}</small>" if note else "")
    + "</dd></div>"
    for name, value, note in overview.cards
  )
  return f'<dl class="cards">{items}</dl>'


def _phase_table(phase_seconds: Mapping[str, float]) -> Table:
  return Table(
    title=_TIME_CAPTION,
    columns=(Column("Phase"), Column("Seconds", numeric=True)),
    rows=tuple((phase, f"{seconds:,.1f}") for phase, seconds in phase_seconds.items()),
    totals=("Total", f"{sum(phase_seconds.values()):,.1f}"),
  )


def _section(title: str, body: str) -> str:
  return f"<section>\n<h2>{_text(title)}</h2>\n{body}\n</section>\n"


def _figure(picture: Picture) -> str:
  data = base64.b64encode(picture.png).decode("ascii")
  return (
    f'<figure><div class="scroll" role="region" tabindex="0" aria-label="{_text(picture.title)}">'
    f'<img src="data:image/png;base64,{data}" alt="{_text(picture.alt)}"></div>'
    f"<figcaption>{_text(picture.caption)}</figcaption></figure>"
  ) + (_table(picture.table, caption=picture.table.title) if picture.table else "")


def _table(table: Table, *, caption: str) -> str:
  head = "".join(_cell("th", column.header, column, scope="col") for column in table.columns)
  body = "".join(_row(row, table.columns) for row in table.rows)
  foot = f"<tfoot>{_row(table.totals, table.columns)}</tfoot>" if table.totals else ""
  # A wide table scrolls by itself, by keyboard too: hence the tab stop and its name.
  return (
    f'<div class="scroll" role="region" tabindex="0" aria-label="{_text(caption)}"><table>'
    f"<caption><span>{_text(caption)}</span></caption><thead><tr>{head}</tr></thead>"
    f"<tbody>{body}</tbody>{foot}</table></div>"
  )


def _row(row: Sequence[str], columns: Sequence[Column]) -> str:
  first = _cell("th", row[0], columns[0], scope="row")
  rest = (_cell("td", cell, column) for cell, column in zip(row[1:], columns[1:], strict=True))
  return f"<tr>{first}{''.join(rest)}</tr>"


def _cell(tag: str, text: str, column: Column, *, scope: str = "") -> str:
  attributes = (f' scope="{scope}"' if scope else "") + (' class="num"' if column.numeric else "")
  return f"<{tag}{attributes}>{_text(text)}</{tag}>"
