"""One look for every report: a self-contained HTML page that works offline, in light and in dark.

No script, no web font, no request to anywhere. A report builds its body from plain elements and the classes
below; `page` puts them into a document.

| element or class | use |
|---|---|
| `<div class="verdict pass\\|warn\\|fail">` | the answer in words, first on the page: `<h2>` and `<p>` inside |
| `<div class="cards">`, `<div class="card">` | key figures: `<span class="label">`, `<span class="value">`, `<span class="hint">` |
| `<span class="badge pass\\|warn\\|fail\\|info\\|skip">` | a status in a table; always carries a word, never colour alone |
| `<div class="scroll"><table>` | a table; `class="num"` on cells that hold numbers |
| `<figure>` with inline `<svg>` and `<figcaption>` | a chart; colours by class `s1`..`s5`, `muted`, `grid`, `axis`, `good`, `bad` |
| `<span class="bar"><i style="width:42%"></i></span>` | a small bar in a cell; `class="bar bad"` past its limit |
| `<section class="record pass\\|warn\\|fail">` | one step of a chain: `<h2>`, `<dl class="tiles">`, `<p class="links">` |
| `<dl class="tiles">` of `<div>` | short facts side by side, label above value; `class="wide"` takes the whole row |
| `<details><summary>` | what a reader may skip |
| `<code>`, `<p class="note">`, `<dl class="facts">` | names, small print, provenance |
"""

from __future__ import annotations

import math
from html import escape

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --surface: #ffffff; --sunken: #f3f3ef; --ink: #1b1f24; --soft: #59616b; --faint: #868e98;
  --line: #e3e3dd; --accent: #1f6f8b;
  --pass: #1e7a4c; --pass-wash: #e6f4ec; --warn: #8f5f00; --warn-wash: #fcf2d9;
  --fail: #b3261e; --fail-wash: #fcebe9; --info: #2f5f9e; --info-wash: #e8f0fa; --skip-wash: #ededea;
  --s1: #1f6f8b; --s2: #c77d2b; --s3: #6b5b95; --s4: #4f8a5b; --s5: #b4566a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --surface: #1b1f23; --sunken: #22272c; --ink: #e7eaed; --soft: #a7b0b9; --faint: #7d8791;
    --line: #2e343a; --accent: #6cb8d2;
    --pass: #6fcf97; --pass-wash: #16301f; --warn: #e9bd5b; --warn-wash: #352a10;
    --fail: #f28b82; --fail-wash: #3a1b19; --info: #8fb8ec; --info-wash: #18283d; --skip-wash: #2a2f34;
    --s1: #6cb8d2; --s2: #e6a55d; --s3: #a99ad3; --s4: #86c493; --s5: #e08ea0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
.page { max-width: 1080px; margin: 0 auto; padding: 40px 28px 64px; }
header.masthead { margin-bottom: 24px; }
header.masthead .brand {
  font-size: 12px; letter-spacing: .12em; text-transform: uppercase; color: var(--faint); font-weight: 600;
}
h1 { font-size: 27px; line-height: 1.25; letter-spacing: -.012em; margin: 4px 0; font-weight: 650; text-wrap: balance; }
header.masthead .subtitle { color: var(--soft); margin: 0; }
h2 { font-size: 18px; letter-spacing: -.005em; margin: 40px 0 10px; font-weight: 650; }
h3 { font-size: 15px; margin: 24px 0 8px; font-weight: 650; }
p { margin: 0 0 10px; max-width: 74ch; }
a { color: var(--accent); text-underline-offset: 2px; }
code, kbd, pre { font: .88em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", "Liberation Mono", monospace; }
code { overflow-wrap: anywhere; }
pre { background: var(--sunken); border-radius: 8px; padding: 12px 14px; overflow-x: auto; }
.note, figcaption, .hint { color: var(--soft); font-size: 13px; }
.muted-text { color: var(--soft); }

.verdict { border-radius: 12px; padding: 18px 22px; border: 1px solid var(--line); border-left-width: 6px; background: var(--surface); }
.verdict h2 { margin: 0 0 4px; font-size: 21px; }
.verdict p:last-child { margin-bottom: 0; }
.verdict + .note { margin-top: 10px; }
.verdict ul { margin: 8px 0 0; padding-left: 20px; }
.verdict.pass { border-color: var(--pass); background: var(--pass-wash); }
.verdict.warn { border-color: var(--warn); background: var(--warn-wash); }
.verdict.fail { border-color: var(--fail); background: var(--fail-wash); }
.verdict.pass h2 { color: var(--pass); }
.verdict.warn h2 { color: var(--warn); }
.verdict.fail h2 { color: var(--fail); }

.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0 8px; }
.card { background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 12px 16px; min-width: 0; }
.card .label { display: block; color: var(--soft); font-size: 12.5px; }
.card .value {
  display: block; font-size: 24px; line-height: 1.3; font-weight: 620; letter-spacing: -.015em;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
.card .hint { display: block; }

.badge {
  display: inline-block; border-radius: 999px; padding: 1px 9px; font-size: 12px; line-height: 1.6; font-weight: 600;
  white-space: nowrap; background: var(--skip-wash); color: var(--soft);
}
.badge.pass { background: var(--pass-wash); color: var(--pass); }
.badge.warn { background: var(--warn-wash); color: var(--warn); }
.badge.fail { background: var(--fail-wash); color: var(--fail); }
.badge.info { background: var(--info-wash); color: var(--info); }

.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--surface); margin: 8px 0 16px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; vertical-align: top; padding: 9px 14px; border-bottom: 1px solid var(--line); }
tbody tr:last-child td { border-bottom: 0; }
th { font-size: 12.5px; font-weight: 600; color: var(--soft); background: var(--sunken); white-space: nowrap; }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td .note { display: block; line-height: 1.45; margin-top: 2px; }
tr.fail td:first-child { box-shadow: inset 3px 0 0 var(--fail); }
tr.warn td:first-child { box-shadow: inset 3px 0 0 var(--warn); }

.bar { display: block; height: 5px; border-radius: 3px; background: var(--sunken); overflow: hidden; min-width: 72px; margin-top: 6px; }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--s1); }
.bar.good i { background: var(--pass); }
.bar.warn i { background: var(--warn); }
.bar.bad i { background: var(--fail); }

figure { margin: 10px 0 18px; background: var(--surface); border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px 12px; }
figure svg, figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 10px; max-width: 90ch; }
figure h3 { margin: 0 0 8px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 14px; }
.figures figure { margin: 0; }
svg text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; fill: var(--soft); }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .axis { stroke: var(--faint); stroke-width: 1; fill: none; }
svg .limit { stroke: var(--fail); stroke-width: 1; stroke-dasharray: 4 3; fill: none; }
svg line.s1, svg path.s1, svg polyline.s1 { stroke: var(--s1); } svg rect.s1, svg circle.s1 { fill: var(--s1); }
svg line.s2, svg path.s2, svg polyline.s2 { stroke: var(--s2); } svg rect.s2, svg circle.s2 { fill: var(--s2); }
svg line.s3, svg path.s3, svg polyline.s3 { stroke: var(--s3); } svg rect.s3, svg circle.s3 { fill: var(--s3); }
svg line.s4, svg path.s4, svg polyline.s4 { stroke: var(--s4); } svg rect.s4, svg circle.s4 { fill: var(--s4); }
svg line.s5, svg path.s5, svg polyline.s5 { stroke: var(--s5); } svg rect.s5, svg circle.s5 { fill: var(--s5); }
svg line, svg path, svg polyline { fill: none; stroke-width: 1.8; }
svg .grid, svg .axis, svg .limit { stroke-width: 1; }
svg rect.muted, svg circle.muted { fill: var(--line); }
svg .band { fill: var(--s1); fill-opacity: .14; stroke: none; }
svg rect.good, svg circle.good { fill: var(--pass); } svg rect.bad, svg circle.bad { fill: var(--fail); }
svg rect.caution, svg circle.caution { fill: var(--warn); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; color: var(--soft); margin: 0 0 8px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 6px; background: var(--s1); }
.legend i.s2 { background: var(--s2); } .legend i.s3 { background: var(--s3); } .legend i.s4 { background: var(--s4); }
.legend i.s5 { background: var(--s5); } .legend i.bad { background: var(--fail); } .legend i.good { background: var(--pass); }
.legend i.caution { background: var(--warn); } .legend i.muted { background: var(--line); }

details { margin: 8px 0; }
summary { cursor: pointer; color: var(--accent); font-weight: 550; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 4px 20px; margin: 0; font-size: 14px; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.record { background: var(--surface); border: 1px solid var(--line); border-left: 4px solid var(--line); border-radius: 10px; padding: 16px 20px; margin: 14px 0; }
.record.pass { border-left-color: var(--pass); } .record.warn { border-left-color: var(--warn); } .record.fail { border-left-color: var(--fail); }
.record > h2 { margin: 0 0 8px; font-size: 17px; }
.record > h2 .badge { vertical-align: 2px; margin-left: 4px; }
.record > :last-child { margin-bottom: 0; }
.record ul { margin: 10px 0 0; padding-left: 20px; }
.record p.links { margin: 12px 0 0; font-size: 14px; }
dl.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 10px 20px; margin: 0 0 12px; }
dl.tiles div { min-width: 0; } dl.tiles .wide { grid-column: 1 / -1; }
dl.tiles dt { color: var(--soft); font-size: 12.5px; }
dl.tiles dd { margin: 0; font-size: 14.5px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.nowrap { white-space: nowrap; } td.prose { overflow-wrap: anywhere; min-width: 16em; }
footer { margin-top: 48px; padding-top: 14px; border-top: 1px solid var(--line); color: var(--faint); font-size: 12.5px; }
@media (max-width: 640px) { .card .value { font-size: 18px; } figure { overflow-x: auto; } figure svg { min-width: 560px; } figure.days { direction: rtl; } figure.days > * { direction: ltr; } .figures figure svg { min-width: 0; } .scroll table:not(.stack) td:last-child:not(.num, .nowrap) { min-width: 15em; } table.stack thead { display: none; } table.stack :is(tbody, tr, td) { display: block; }
table.stack tr { padding: 7px 0; border-bottom: 1px solid var(--line); } table.stack td { padding: 3px 14px; border: 0; } table.stack td:empty { display: none; } table.stack td.prose { min-width: 0; }
.page { padding: 24px 14px 40px; } h1 { font-size: 22px; } dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: 8px; } }
@media print { :root { color-scheme: light; } .page { max-width: none; padding: 0; } .scroll { overflow: visible; } tr, figure, .card { break-inside: avoid; } }
"""


def page(title: str, body_html: str, subtitle: str = "") -> str:
    """A whole HTML document.

    Args:
        title: Plain text; becomes the document's title and its only `<h1>`.
        body_html: HTML below the heading. Whoever builds it escapes what came from data.
        subtitle: Plain text under the heading: what, of when.
    """
    below = f'<p class="subtitle">{escape(subtitle)}</p>' if subtitle else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)} · Penstock</title>\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n"
        '<main class="page">\n<header class="masthead">'
        f'<div class="brand">Penstock</div><h1>{escape(title)}</h1>{below}</header>\n'
        f"{body_html}\n</main>\n</body>\n</html>\n"
    )


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers inside [low, high], about `wanted` of them; for a chart's axis."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / wanted
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = min((m * magnitude for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-6)
    return [round(n * step, 10) + 0.0 for n in range(first, last + 1)]


def percent(share: float) -> str:
    """`1 %`, `0.5 %`: three digits of a share of 0 to 1."""
    return f"{100 * share:.3g} %"
