// The theme: the system's, light or dark. Runs before the first paint, so that nothing flashes.
(() => {
  const KEY = "sedge.theme";
  const kept = () => {
    try { return localStorage.getItem(KEY); } catch { return null; }
  };
  const apply = (theme) => {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  apply(kept());

  window.sedgeTheme = {
    get: () => document.documentElement.dataset.theme ?? "auto",
    set(theme) {
      apply(theme);
      try { localStorage.setItem(KEY, theme); } catch { /* the choice then lasts until the page is left */ }
    },
  };
})();
