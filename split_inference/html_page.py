"""The head of a page of ours that needs nothing else: its style, light and dark, and a policy that loads nothing.

Knows HTML; what a page shows is its maker's business. Plots (plots.py) take their colours from here.
"""

from __future__ import annotations

from html import escape

_STYLE = """
:root { --bg:#fff; --fg:#1b1f24; --dim:#667; --grid:#e3e6ea; --c0:#3366cc; --c1:#dc6b19; --c2:#109618; --c3:#990099;
  --c4:#0099c6; --c5:#b82e2e; --c6:#8a8a00; --c7:#777; --c8:#22aa99; --c9:#dd4477 }
@media (prefers-color-scheme:dark) { :root { --bg:#14171a; --fg:#e6e8ea; --dim:#9aa3ad; --grid:#2b3138; --c0:#7aa2ff;
  --c1:#ffa657; --c2:#56d364; --c3:#d2a8ff; --c4:#56d4dd; --c5:#ff7b72; --c6:#d8d84a; --c7:#aaa;
  --c8:#5ee0c8; --c9:#ff9ecb } }
body { background:var(--bg); color:var(--fg); font:15px/1.45 system-ui,sans-serif; margin:2rem auto;
  max-width:1340px; padding:0 1rem }
h1 { font-size:1.5rem; margin:0 }
.dim { color:var(--dim) }
.invalid { background:var(--c5); color:#fff; padding:.6rem 1rem; font-weight:600 }
table { border-collapse:collapse; margin:1rem 0; font-variant-numeric:tabular-nums }
td, th { padding:.25rem .7rem; text-align:right; border-bottom:1px solid var(--grid) }
td:nth-child(-n+2), th:nth-child(-n+2), td:last-child, th:last-child { text-align:left }
table.numbers td:nth-child(n+2), table.numbers th:nth-child(n+2) { text-align:right }
.met { color:var(--c2) }
.missed { color:var(--c5); font-weight:600 }
.scroll { overflow-x:auto }
.plots { display:grid; grid-template-columns:repeat(auto-fit,minmax(460px,1fr)); gap:1.5rem }
figure { margin:0 }
figcaption { font-weight:600 }
.legend { display:flex; flex-wrap:wrap; gap:.2rem 1rem; font-size:13px; color:var(--dim); min-height:1.4rem }
.legend i { display:inline-block; width:.8em; height:.8em; margin-right:.35em; border-radius:2px }
svg { width:100%; height:auto }
.grid { stroke:var(--grid) }
.line { fill:none; stroke-width:1.8 }
.tick { font-size:11px; fill:var(--dim) }
.label { font-size:12px; fill:var(--fg) }
li { font-size:13px }
"""


def page_head(title: str) -> str:
    """From the document's type to its heading; `title` is escaped."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1>"
    )
