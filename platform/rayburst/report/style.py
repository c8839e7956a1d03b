"""One visual language for every report: colours, type, page shell.

Reports are single HTML files with inline SVG. Charts name colours only by the classes and
variables defined here, so light, dark and print follow from one place. It knows nothing
about fleets or jobs.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

MARKETS = ("on-prem", "spot", "on-demand")

LIGHT = {
    "paper": "#fcfcfa",
    "ink": "#14181f",
    "quiet": "#59626f",
    "rule": "#d8dce2",
    "wash": "#f0f1ef",
    "on-prem": "#2f62d6",
    "spot": "#e08a0b",
    "on-demand": "#9440b4",
    "other": "#6d7683",
    "good": "#13795f",
    "soft": "#67b39c",
    "lost": "#cf2a3c",
    "stall": "#ee9aa2",
    "grey": "#aab2bd",
    "pale": "#dfe3e8",
}

DARK = {
    "paper": "#12151b",
    "ink": "#eceff4",
    "quiet": "#a2acba",
    "rule": "#303743",
    "wash": "#1b2029",
    "on-prem": "#7aa5ff",
    "spot": "#ffb14a",
    "on-demand": "#d18df0",
    "other": "#98a2b0",
    "good": "#3fc49e",
    "soft": "#25705c",
    "lost": "#ff6b78",
    "stall": "#93404a",
    "grey": "#697383",
    "pale": "#39414e",
}

_RULES = """
*{box-sizing:border-box}
html{background:var(--paper);color:var(--ink);
 font:16px/1.5 Inter,"Segoe UI",system-ui,-apple-system,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums;-webkit-text-size-adjust:100%;
 -webkit-print-color-adjust:exact;print-color-adjust:exact}
body{max-width:1140px;margin:0 auto;padding:40px 30px 56px}
h1{font-size:30px;line-height:1.15;margin:0;font-weight:680;letter-spacing:-.015em}
h2{font-size:19px;margin:0 0 2px;font-weight:650;letter-spacing:-.005em}
p{margin:0}
.quiet{color:var(--quiet)}
.eyebrow{font-size:14px;font-weight:600;color:var(--quiet);margin-bottom:4px}
.lead{font-size:17px;color:var(--quiet);margin-top:8px;max-width:68em}
.status{font-size:14px;font-weight:600;border:1.5px solid;border-radius:99px;padding:1px 12px;
 margin-left:12px;vertical-align:5px;letter-spacing:0}
.status.ok{color:var(--good)}.status.bad{color:var(--lost)}
.figures{display:grid;grid-template-columns:repeat(4,1fr);margin:28px 0 8px;
 border-top:2px solid var(--ink);border-bottom:1px solid var(--rule)}
.figure{padding:14px 20px 16px 0}
.figure+.figure{border-left:1px solid var(--rule);padding-left:20px}
.figure h3{margin:0;font-size:14px;font-weight:600;color:var(--quiet)}
.figure .value{font-size:36px;font-weight:680;line-height:1.25;letter-spacing:-.02em;
 display:flex;flex-wrap:wrap;align-items:baseline;column-gap:6px}
.figure .unit{font-size:16px;font-weight:500;letter-spacing:0;color:var(--quiet)}
.figure .note{font-size:14px;line-height:1.45;color:var(--quiet)}
.figure .note b{color:var(--ink);font-weight:600}
section{margin-top:38px}
section>.quiet{font-size:14px;margin-bottom:10px;max-width:76em}
.legend{display:flex;flex-wrap:wrap;gap:4px 20px;font-size:13.5px;color:var(--quiet);
 margin:8px 0 6px;padding:0;list-style:none}
.legend svg{width:20px;height:14px;vertical-align:-2px;margin-right:6px;overflow:visible}
.chart{overflow-x:auto}
.chart svg{display:block;width:100%;min-width:760px;height:auto}
.two .chart svg{min-width:0}
table{border-collapse:collapse;font-size:14px;width:100%}
th{font-weight:600;color:var(--quiet);text-align:right;padding:5px 0 5px 18px}
td{text-align:right;padding:5px 0 5px 18px;border-top:1px solid var(--rule)}
th:first-child,td:first-child{text-align:left;padding-left:0}
td svg,th svg{width:20px;height:14px;vertical-align:-2px;margin-right:8px}
tr.total td{border-top:2px solid var(--ink);font-weight:650}
.two{display:grid;grid-template-columns:1fr 1fr;gap:0 48px}
.two section{min-width:0}
footer{margin-top:44px;border-top:1px solid var(--rule);padding-top:12px;font-size:13px;
 color:var(--quiet)}
svg text{font-family:inherit;font-size:13px;fill:var(--ink)}
svg text.quiet{fill:var(--quiet)}
svg text.small{font-size:12px}
svg text.strong{font-weight:650}
svg text.num{text-anchor:end}
svg text.mid{text-anchor:middle}
svg .rule{stroke:var(--rule);stroke-width:1}
svg .axis{stroke:var(--quiet);stroke-width:1}
svg .event{stroke:var(--lost);stroke-width:1.2;stroke-dasharray:3 3}
svg .mark{fill:var(--lost);stroke:var(--paper);stroke-width:1.4;paint-order:stroke}
svg .cross{fill:none;stroke:var(--lost);stroke-width:3;stroke-linecap:round}
svg .halo{fill:none;stroke:var(--paper);stroke-width:6;stroke-linecap:round}
svg .line{fill:none;stroke:var(--good);stroke-width:1.8;stroke-linejoin:round}
svg .lost-line{stroke:var(--lost);stroke-dasharray:4 3}
svg .worlds{fill:none;stroke:var(--ink);stroke-width:2.5}
svg .join{fill:none;stroke:var(--quiet);stroke-width:1;stroke-dasharray:2 3}
svg text.on{fill:var(--paper)}
svg text.under{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
svg .dots{fill:var(--paper);stroke:var(--ink);stroke-width:2}
svg .level{stroke:var(--quiet);stroke-width:1.3;stroke-dasharray:7 4}
@media screen and (max-width:820px){.figures{grid-template-columns:1fr 1fr}
 .two{grid-template-columns:1fr}.figure:nth-child(3){border-left:0;padding-left:0}}
@page{size:A4 landscape;margin:12mm}
@media print{:root{--paper:#fff}body{max-width:none;padding:0;zoom:.85}
 section{margin-top:24px}footer{margin-top:16px}
 .chart,.figures,.two section,tr{break-inside:avoid}h2,section>.quiet,.legend{break-after:avoid}}
"""


def _variables(colours: dict[str, str]) -> str:
    return "".join(f"--{name}:{value};" for name, value in colours.items())


def _fills() -> str:
    fills = "".join(f"svg .{name}{{fill:var(--{name})}}" for name in LIGHT if name != "quiet")
    return fills + "".join(f"svg .stroke-{name}{{stroke:var(--{name})}}" for name in LIGHT)


def css() -> str:
    """The style sheet: light by default, dark where the reader prefers it, light on paper."""
    return (
        f":root{{color-scheme:light dark;{_variables(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
        f"{_RULES}{_fills()}"
    )


def market_class(market: str) -> str:
    """The colour class of a market; a market we do not know is drawn neutral."""
    return market if market in MARKETS else "other"


def page(title: str, body: Iterable[str]) -> str:
    """One self-contained document; `body` is markup already escaped by its makers."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{css()}</style></head>\n"
        f"<body>{_hatches()}\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _hatches() -> str:
    """Stripe patterns by colour: a hatched shape is on its way out or work done twice."""
    patterns = "".join(
        f'<pattern id="hatch-{name}" width="6" height="6" patternUnits="userSpaceOnUse" '
        f'patternTransform="rotate(45)"><rect width="6" height="6" class="paper"/>'
        f'<rect width="3" height="6" class="{name}"/></pattern>'
        for name in (*MARKETS, "other", "good", "lost")
    )
    hidden = 'style="position:absolute" width="0" height="0" aria-hidden="true"'
    return f"<svg {hidden}><defs>{patterns}</defs></svg>"
