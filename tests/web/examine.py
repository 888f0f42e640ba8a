"""What is asked of every view in a real browser: axe's rules, contrast as rendered, and every chart in words."""

from __future__ import annotations

from typing import Any

# texts whose colour is too near to the ground behind them (WCAG 2.1, 1.4.3): what, colour, ground, ratio
FAINT = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((a, v, i) => a + v * [0.2126, 0.7152, 0.0722][i], 0);
  const over = (a, b) => { const k = a.length > 3 ? a[3] : 1; return [0, 1, 2].map(i => a[i] * k + b[i] * (1 - k)); };
  const ground = e => { const c = rgb(getComputedStyle(e).backgroundColor);
    const below = e.parentElement ? ground(e.parentElement) : [255, 255, 255];
    return c.length > 3 && c[3] === 0 ? below : over(c, below); };
  const found = [];
  const walk = document.createTreeWalker(document.querySelector('[data-testid=stApp]'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement, text = walk.currentNode.textContent.trim();
    if (!text || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    if (e.getBoundingClientRect().width <= 1) continue;  // for screen readers alone
    if (e.closest('[disabled], [aria-disabled=true], svg, canvas, [role=slider], '
      + '[data-testid=stSliderThumbValue], [class*=Placeholder], '
      + '[data-testid=stIconMaterial]')) continue;
    const style = getComputedStyle(e), back = ground(e), front = over(rgb(style.color), back);
    const [a, b] = [lum(front), lum(back)].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5) - 0.005) found.push([text.slice(0, 40), style.color, back.map(Math.round), ratio]);
  }
  return found;
}"""
# marks of charts, and their texts, whose colour is too near to what is behind them (WCAG 2.1, 1.4.11 and 1.4.3). A
# translucent band is bounded by its edges; a hatched area has the colour of its hatching.
FAINT_IN_CHARTS = """() => {
  const rgb = c => (c.match(/[\\d.]+/g) || []).map(Number);
  const lum = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((a, v, i) => a + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [lum(a), lum(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
  const page = rgb(getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor);
  const over = (c, k) => [0, 1, 2].map(i => c[i] * k + page[i] * (1 - k));
  const found = [];
  for (const e of document.querySelectorAll('.js-plotly-plot .trace path, .js-plotly-plot .fills path')) {
    const s = getComputedStyle(e), opacity = Number(s.opacity);
    const drawn = [[s.fill, Number(s.fillOpacity), 1], [s.stroke, Number(s.strokeOpacity), parseFloat(s.strokeWidth)]]
      .filter(([c, k, width]) => c.startsWith('rgb') && !(rgb(c)[3] < 0.5) && k > 0.5 && width > 0);
    if (drawn.length && !drawn.some(([c, k]) => ratio(over(rgb(c), k * opacity), page) >= 2.995))
      found.push(['a mark', e.getAttribute('class'), drawn.map(d => d[0]).join(' ')]);
  }
  for (const e of document.querySelectorAll('.js-plotly-plot text')) {
    const text = e.textContent.trim();
    if (!text || e.closest('.hoverlayer, .modebar')) continue;
    const bar = e.classList.contains('bartext-inside') && e.closest('.point').querySelector('path');
    const ground = bar ? rgb(getComputedStyle(bar).fill) : page;
    const s = getComputedStyle(e);
    if (ratio(over(rgb(s.fill), Number(s.fillOpacity)), ground) < 4.495) found.push([text, s.fill, ground.join()]);
  }
  return found;
}"""
# charts and pictures without words
WORDLESS = """() => [...document.querySelectorAll('[data-testid=stPlotlyChart], [data-testid=stMain] img')]
    .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('alt'))).map(e => e.outerHTML.slice(0, 80))"""
# widest thing on the page that is not made to scroll
OVERFLOW = "() => document.querySelector('[data-testid=stMain]').scrollWidth - window.innerWidth"
# Streamlit's own markup, which a page cannot change: its drop zone for files is marked as presentation, with a label
NOT_OURS = {"presentation-role-conflict": {"enabled": False}}


def complaints(page: Any) -> list[str]:
    """All that is wrong with what a page shows now."""
    from axe_playwright_python.sync_playwright import Axe

    axe = Axe().run(page, options={"rules": NOT_OURS, "resultTypes": ["violations"]}).response["violations"]
    found = [f"axe {v['id']}: {v['help']}: {node['html'][:120]}" for v in axe for node in v["nodes"]]
    for name, script in (("faint", FAINT), ("faint in a chart", FAINT_IN_CHARTS), ("without words", WORDLESS)):
        found += [f"{name}: {one}" for one in page.evaluate(script)]
    return found
