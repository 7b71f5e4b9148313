// The keyboard: what each key does, and when it does nothing because somebody types.

const TYPING = "input:not([type=checkbox]):not([type=file]), select, textarea";

export function takeKeys({ grid, box, detail, help, act, turn, escape }) {
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (help.open) return;
    const typing = event.target.matches?.(TYPING);
    if (detail.dialog.open) {
      if (typing) return;
      if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
        event.preventDefault();
        turn(event.key === "ArrowRight" ? 1 : -1);
      } else if (act(event.key, detail.item)) event.preventDefault();
      return;
    }
    if (typing) {
      const down = event.key === "ArrowDown" && event.target === box;
      if (down && grid.total) {
        event.preventDefault();
        grid.focus(grid.active);
      } else if (event.key === "Escape" && event.target === box && !box.value) box.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      box.focus();
      box.select();
    } else if (event.key === "?") {
      event.preventDefault();
      help.showModal();
    } else if (event.key === "Escape") escape();
    else if (inGrid(event.target)) move(event, grid, act);
  });
}

function inGrid(target) {
  return target === document.body || target.closest?.("#grid");
}

function move(event, grid, act) {
  const at = grid.active;
  const free = event.target === document.body;
  const steps = {
    ArrowLeft: at - 1,
    ArrowRight: at + 1,
    ArrowUp: at - grid.columns,
    ArrowDown: at + grid.columns,
    PageUp: at - grid.columns * grid.rows(),
    PageDown: at + grid.columns * grid.rows(),
    Home: 0,
    End: grid.total - 1,
  };
  if (event.key in steps && grid.total) {
    // Where nothing has the focus, keys that scroll go on scrolling.
    if (free && !event.key.startsWith("Arrow")) return;
    event.preventDefault();
    const lost = free && !grid.inView(at);
    const past = event.key === "ArrowDown" && steps.ArrowDown > grid.total - 1;
    grid.focus(lost ? grid.range(0)[0] : free ? at : past ? at : Math.max(0, steps[event.key]));
  } else if (!free) {
    const item = event.target.closest(".tile")?.dataset.item;
    if (item && act(event.key, item)) event.preventDefault();
  }
}
