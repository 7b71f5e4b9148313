// Before anything is drawn, so that nothing flashes; what was chosen is kept in this browser.
(() => {
  let chosen = null;
  try {
    chosen = localStorage.getItem("mmsearch-theme");
  } catch {
    // Storage may be forbidden; then the system's choice holds.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  document.documentElement.classList.add("scripted");
})();
