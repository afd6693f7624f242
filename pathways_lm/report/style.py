"""The look of the report: one style sheet, light and dark."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --edge: #e3e6eb; --strong: #1a202c;
  --ink: #4b5362; --grid: #dfe3e9; --train: #0072b2; --validation: #d55e00; --restart: #b08a3e;
  --tint: #eef4f9;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12151b; --card: #1a1f27; --edge: #2b323d; --strong: #eef1f5;
    --ink: #aab3c0; --grid: #2f3742; --train: #56b4e9; --validation: #ff9650; --restart: #d9b45b;
    --tint: #1e2a36;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
}
main { max-width: 68rem; margin: 0 auto; }
h1, h2, h3, dd, th, summary { color: var(--strong); }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { margin: 2.75rem 0 0.9rem; font-size: 1.2rem; letter-spacing: -0.01em; }
h3 { margin: 0; font-size: 0.95rem; }
p { margin: 0.35rem 0 0; }
small, .note { font-size: 0.85rem; font-weight: normal; color: var(--ink); }
section > .note { margin: 0 0 0.9rem; max-width: 46rem; }
.grid { display: grid; gap: 0.9rem; margin: 0; }
.numbers { grid-template-columns: repeat(auto-fit, minmax(min(15rem, 100%), 1fr)); margin-top: 1.5rem; }
.curves { grid-template-columns: repeat(auto-fit, minmax(min(max(20rem, 40%), 100%), 1fr)); }
.config { grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); align-items: start; }
.card {
  min-width: 0; padding: 0.9rem 1.1rem;
  background: var(--card); border: 1px solid var(--edge); border-radius: 10px;
}
.numbers dt { font-size: 0.85rem; }
.numbers dd { margin: 0.1rem 0 0; font-size: 1.55rem; font-weight: 600; line-height: 1.25; letter-spacing: -0.02em; }
.numbers dd small { display: block; margin-top: 0.2rem; line-height: 1.4; letter-spacing: 0; }
figure { margin: 0; }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: 1rem; margin-bottom: 0.5rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: inherit !important; }
code, pre, .mono { font: 0.85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.card.flush, details.card { padding: 0; }
details.card { margin-bottom: 0.5rem; }
summary { cursor: pointer; padding: 0.65rem 1.1rem; display: flex; gap: 1rem; align-items: baseline; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary::before { content: "\\25B8"; color: var(--ink); }
details[open] > summary::before { content: "\\25BE"; }
summary b { white-space: nowrap; font-variant-numeric: tabular-nums; }
summary code { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--ink); }
details[open] > summary code { visibility: hidden; }
.inside { padding: 0 1.1rem 0.9rem; }
pre {
  margin: 0 1.1rem 1.1rem; padding: 0.9rem 1rem; color: var(--strong); background: var(--page);
  border: 1px solid var(--edge); border-radius: 7px; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 4;
}
.prompt { color: var(--train); font-weight: 600; background: var(--tint); border-radius: 3px; }
.scroll { overflow-x: auto; padding: 0.4rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; }
th, td { text-align: left; padding: 0.38rem 1.1rem; border-bottom: 1px solid var(--edge); vertical-align: baseline; }
.scroll td { white-space: nowrap; }
td.long { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
th { font-weight: 600; white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
th.number, td.number { text-align: right; }
tbody tr:last-child td { border-bottom: 0; }
tfoot td { border-top: 2px solid var(--edge); border-bottom: 0; font-weight: 600; color: var(--strong); }
.config table { margin-top: 0.4rem; table-layout: auto; }
.config td { padding: 0.22rem 0; overflow-wrap: anywhere; }
.config td + td { color: var(--strong); text-align: right; padding-left: 1rem; }
.layer { margin-bottom: 0.9rem; }
.looks { display: flex; flex-wrap: wrap; gap: 1.2rem; align-items: flex-start; margin-top: 0.5rem; }
.mean { max-width: 100%; max-height: 26rem; border-radius: 4px; }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: 0.7rem; flex: 1 1 18rem; }
.heads figcaption { margin: 0.1rem 0 0; }
.map { width: 100%; image-rendering: pixelated; border: 1px solid var(--edge); }
.tokens { display: flex; flex-wrap: wrap; gap: 0.3rem; }
.tokens span { padding: 0.05rem 0.35rem; border-radius: 4px; color: var(--strong); white-space: pre; }
.tokens { font: 0.85rem/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.tokens.legend { font-size: 0.75rem; margin-bottom: 0.6rem; }
.tokens sub { opacity: 0.7; }
.unserved { border: 1px dashed var(--ink); }
.bar { display: flex; height: 1.6rem; margin-top: 0.9rem; border-radius: 5px; overflow: hidden; }
.key { display: flex; flex-wrap: wrap; gap: 0.35rem 1.3rem; margin-top: 0.7rem; font-size: 0.88rem; }
.key i { display: inline-block; width: 0.75rem; height: 0.75rem; margin-right: 0.4rem; border-radius: 2px; }
.key b { color: var(--strong); font-variant-numeric: tabular-nums; }
.beside { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 1fr); gap: 0.9rem; }
.beside { margin-bottom: 0.9rem; }
.key.runs { position: sticky; top: 0; z-index: 1; padding: 0.5rem 0; background: var(--page); }
.beside .key { margin: 0 0 0.5rem; }
.beside pre { margin: 0; }
footer { margin-top: 3rem; font-size: 0.85rem; overflow-wrap: anywhere; }
@media (max-width: 32rem) {
  body { padding: 1.5rem 0.75rem 3rem; }
  .numbers { grid-template-columns: 1fr 1fr; }
  .beside { grid-auto-flow: row; }
  .numbers dd { font-size: 1.25rem; }
  .card { padding: 0.75rem 0.8rem; }
  th, td { padding-left: 0.7rem; padding-right: 0.7rem; }
  pre { margin: 0 0.8rem 0.8rem; }
}
"""
