// The page made lively. Its address is its state; what the server draws is shown, and nothing else
// is known here of what parameters mean.

import { Detail } from "./detail.js";
import { Grid } from "./grid.js";
import { followIndexing } from "./indexing.js";
import { takeKeys } from "./keys.js";
import { pictures, showPictures, takePictures } from "./pictures.js";
import { Selection } from "./selection.js";
import { answer } from "./server.js";

const PAUSE = 200; // milliseconds without typing after which a question is asked

const by = (id) => document.getElementById(id);
const [form, box, list, question, help] = ["ask", "q", "grid", "question", "help"].map(by);
const settings = document.body.dataset;
const piece = Number(settings.piece);

let params = new URLSearchParams(location.search);
let uploads = history.state?.uploads ?? [];
let shown = { params, uploads }; // what the pictures in the grid answer
let asking = new AbortController();
let looked = -1; // the number of the picture that is, or was last, looked at
let typed = false; // whether the present entry of the history was made by typing

const told = (text) => {
  by("told").textContent = text;
};

const selection = new Selection(by("selection"), { most: Number(settings.export), told });

const grid = new Grid(list, {
  piece,
  load: (offset, signal) => answer(shown.params, offset, pictures(shown.uploads), signal),
  made: (tile, item) => selection.adopt(tile, item),
  failed: (error) => told(error.message),
});

const detail = new Detail(by("detail"), {
  selection,
  told,
  turn,
  open: (item) => open(item, [], true),
  closed: () => {
    if (!params.has("open")) return;
    if (history.state?.opened) history.back();
    else {
      params.delete("open");
      history.replaceState(history.state, "", address());
    }
    // The browser gives the focus back to who opened it; since then others may have been looked at.
    if (grid.total && looked >= 0) grid.focus(looked);
  },
});

// Going to another question

function address() {
  const query = params.toString();
  return query ? `/?${query}` : "/";
}

function remember() {
  history.replaceState({ ...history.state, uploads, scroll: scrollY }, "", address());
}

async function go(next, { replace = false, sent = uploads } = {}) {
  remember();
  params = next;
  params.delete("open");
  params.delete("offset");
  uploads = sent;
  detail.close();
  history[replace ? "replaceState" : "pushState"]({ uploads }, "", address());
  await ask();
}

async function ask(scroll = 0) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  document.body.classList.add("asking");
  synchronise();
  try {
    const found = await answer(params, 0, pictures(uploads), signal);
    if (signal.aborted) return;
    question.innerHTML = found.question;
    shown = { params, uploads };
    looked = -1;
    decorate();
    grid.reset(found.total, found.tiles);
    scrollTo(0, scroll);
    told(question.querySelector(".count, .failure")?.textContent.trim() ?? "");
  } catch (error) {
    if (signal.aborted) return;
    fail(error);
  }
  document.body.classList.remove("asking");
}

function fail(error) {
  const notice = document.createElement("div");
  notice.className = "notice failure";
  notice.setAttribute("role", "alert");
  notice.textContent = error instanceof TypeError ? "The server does not answer." : error.message;
  question.replaceChildren(notice);
  grid.reset(0, []);
}

function decorate() {
  document.title = params.get("q") ? `${params.get("q")} – mmsearch` : "mmsearch";
  document.querySelector("h1").textContent = params.get("q") || "All pictures";
  const chips = question.querySelector(".chips");
  if (chips) showPictures(chips, uploads, (id) => go(new URLSearchParams(params), { sent: uploads.filter((each) => each !== id) }));
}

// The form says what the address says; somebody who is typing is left alone.
function synchronise() {
  for (const field of form.elements) {
    if (!field.name || field.type === "hidden") continue;
    const values = params.getAll(field.name);
    if (field.type === "checkbox") field.checked = values.includes(field.value);
    else if (field !== document.activeElement || field !== box) field.value = values[0] ?? "";
  }
  if (document.activeElement === box && !typed) box.value = params.get("q") ?? "";
}

function asked() {
  const fields = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value.trim?.()) fields.append(name, value);
  return fields;
}

let pause = 0;
box.addEventListener("input", () => {
  clearTimeout(pause);
  pause = setTimeout(() => {
    const replace = typed;
    typed = true;
    go(asked(), { replace });
  }, PAUSE);
});
box.addEventListener("change", () => (typed = false));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(pause);
  if (asked().toString() !== withoutOpen().toString()) go(asked(), { replace: typed });
  typed = false;
});
by("filters").addEventListener("change", () => go(asked()));

function withoutOpen() {
  const plain = new URLSearchParams(params);
  plain.delete("open");
  return plain;
}

// Opening a picture

async function open(item, stack = [], replace = false) {
  params.set("open", item);
  const shown = replace || detail.dialog.open;
  if (shown) history.replaceState(history.state, "", address());
  else {
    remember();
    history.replaceState({ ...history.state }, "", addressWithout("open"));
    history.pushState({ uploads, opened: true }, "", address());
  }
  try {
    await detail.show(item, params, stack);
  } catch (error) {
    if (error.name !== "AbortError") told(error.message);
  }
}

function addressWithout(name) {
  const plain = new URLSearchParams(params);
  plain.delete(name);
  return plain.size ? `/?${plain}` : "/";
}

async function turn(step) {
  const index = looked + step;
  const item = await grid.item(index);
  if (!item) return;
  grid.activate(index);
  looked = index;
  if (!grid.inView(index)) scrollTo(0, grid.topOf(index));
  await open(item, stackOf(index), true);
}

function stackOf(index) {
  const tile = grid.nodes.get(index);
  const others = tile?.querySelector(".stack")?.dataset.stack;
  return others ? [tile.dataset.item, ...others.split(" ")] : [];
}

// Links that lead to another state of this page need no new page.
addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button !== 0) return;
  const link = event.target.closest("a[data-go], a[data-open]");
  if (!link) return;
  event.preventDefault();
  const tile = link.closest(".tile");
  if (link.dataset.open) {
    looked = tile ? Number(tile.dataset.index) : -1;
    open(link.dataset.open, tile ? stackOf(Number(tile.dataset.index)) : []);
  } else {
    const fresh = link.dataset.go === "fresh" || link.getAttribute("href") === "/";
    go(new URL(link.href).searchParams, { sent: fresh ? [] : uploads });
  }
});

addEventListener("popstate", async (event) => {
  const before = withoutOpen().toString();
  const had = uploads;
  params = new URLSearchParams(location.search);
  uploads = event.state?.uploads ?? [];
  const opened = params.get("open");
  if (!opened) detail.close();
  typed = false;
  if (withoutOpen().toString() !== before || had.join() !== uploads.join()) await ask(event.state?.scroll ?? 0);
  if (!opened || detail.item === opened) return;
  looked = grid.indexOf(opened);
  await detail.show(opened, params, []);
});

// Keys and buttons that act on one picture; false where the key means nothing.
function act(key, item) {
  const next = withoutOpen();
  const without = (name) => {
    const kept = next.getAll(name).filter((each) => each !== item);
    next.delete(name);
    for (const each of kept) next.append(name, each);
  };
  switch (key) {
    case "+":
    case "-":
      without("like");
      without("dislike");
      next.append(key === "+" ? "like" : "dislike", item);
      go(next);
      return true;
    case "s":
      go(new URLSearchParams({ like: item }), { sent: [] });
      return true;
    case "x":
      selection.set(item, !selection.has(item));
      detail.mark();
      return true;
    default:
      return false;
  }
}

takeKeys({ grid, box, detail, help, act, turn, escape: () => selection.clear() });
takePictures((ids) => go(withoutOpen(), { sent: [...uploads, ...ids].slice(-Number(settings.pictures)) }));

by("help-button").addEventListener("click", () => help.showModal());
by("theme").addEventListener("click", () => {
  const { dataset } = document.documentElement;
  const dark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = dark ? "light" : "dark";
  try {
    localStorage.setItem("mmsearch-theme", dataset.theme);
  } catch {
    // It holds for this page then.
  }
});
addEventListener("click", (event) => {
  const filters = by("filters");
  if (filters.open && !filters.contains(event.target)) filters.open = false;
});
by("filters").addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  event.preventDefault();
  by("filters").open = false;
  by("filters").querySelector("summary").focus();
});
addEventListener("scroll", () => document.body.classList.toggle("scrolled", scrollY > 8), { passive: true });
if (by("index")) {
  followIndexing(by("index"), by("progress"), { told, done: () => ask(scrollY) });
}

// What the server drew is taken over.
history.scrollRestoration = "manual";
const offset = Number(list.dataset.offset);
const drawn = offset ? [] : Array.from(list.children, (tile) => tile.outerHTML);
grid.reset(Number(list.dataset.total), drawn);
decorate();
if (uploads.length) ask(history.state?.scroll ?? 0);
else if (offset || history.state?.scroll) scrollTo(0, offset ? grid.topOf(offset) : history.state.scroll);
if (params.get("open")) {
  looked = grid.indexOf(params.get("open"));
  detail.adoptDrawn(params.get("open"));
}
document.documentElement.classList.add("ready");
