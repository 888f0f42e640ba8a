"""The app for those who do not see it or use no mouse: axe's rules, the keyboard, and every chart in words."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.browser]

# what is Streamlit's own markup and nobody can set from a page: the rule and why it is left out
NOT_OURS = {
    "aria-allowed-attr": "placeholder",
}
# each element that Tab must reach: links, buttons, fields; of a group that arrows move in, the one with a tabindex
REACHABLE = """() => [...document.querySelectorAll('a[href], button, input, select, textarea, [tabindex]')]
    .filter(e => e.tabIndex >= 0 && !e.disabled && e.checkVisibility({visibilityProperty: true})
        && e.getClientRects().length && !e.closest('[inert]'))
    .map((e, i) => { e.dataset.reach = i; return [String(i), (e.getAttribute('aria-label') || e.innerText
        || e.outerHTML).slice(0, 80)]; })"""
FOCUSED = """() => { const e = document.activeElement; if (!e || e === document.body) return null;
    const seen = [e, e.parentElement, e.parentElement?.parentElement, e.parentElement?.parentElement?.parentElement]
        .filter(Boolean).map(x => getComputedStyle(x));
    const ring = seen.some(s => (s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 1)
        || s.boxShadow !== 'none') || e.matches('.screencast, canvas');
    return [e.dataset.reach ?? null, ring]; }"""
