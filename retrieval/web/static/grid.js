// The pictures, of which only those near the window are in the document.
//
// Every tile is as high as every other, so that where one stands follows from its number, and the
// list is as high as if all were there. Pieces of the answer are fetched when they come near, and
// forgotten when they are far away: memory does not grow with scrolling.

const KEPT = 30; // pieces
const AROUND = 2; // rows above and below the window
const SETTLED = 90; // milliseconds without scrolling, after which what is in view is fetched
const AT_ONCE = 2; // pieces on their way

export class Grid {
  // load(offset, signal) resolves to {tiles, total}; made(node, item, index) is told of every tile
  // that comes into the document; failed(error) of what could not be loaded.
  constructor(list, { piece, load, made, failed }) {
    Object.assign(this, { list, piece, load, made, failed });
    this.nodes = new Map();
    this.pieces = new Map();
    this.loading = new Map();
    this.total = 0;
    this.active = 0;
    this.timer = 0;
    this.frame = 0;
    list.classList.add("live");
    addEventListener("scroll", () => this.soon(), { passive: true });
    new ResizeObserver(() => this.resized()).observe(list);
    list.addEventListener("focusin", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) this.activate(Number(tile.dataset.index));
    });
  }

  // Another answer: its total and its first tiles, as HTML that the server escaped.
  reset(total, tiles) {
    for (const each of this.loading.values()) each.abort();
    this.loading.clear();
    this.pieces.clear();
    for (const node of this.nodes.values()) this.drop(node);
    this.nodes.clear();
    this.list.replaceChildren();
    this.active = 0;
    this.total = total;
    if (tiles.length) this.keep(0, tiles, tiles.length >= Math.min(this.piece, total));
    this.measure();
    this.render();
  }

  // Positions

  measure() {
    const style = getComputedStyle(this.list);
    const rem = parseFloat(getComputedStyle(document.documentElement).fontSize);
    const width = this.list.clientWidth;
    const least = parseFloat(style.getPropertyValue("--tile")) * rem;
    this.gap = parseFloat(style.getPropertyValue("--gap")) * rem;
    this.columns = Math.max(1, Math.floor((width + this.gap) / (least + this.gap)));
    this.width = (width - this.gap * (this.columns - 1)) / this.columns;
    this.row = this.width * 0.75 + 1.9 * rem + this.gap;
    const rows = Math.ceil(this.total / this.columns);
    this.list.style.height = `${Math.max(0, rows * this.row - this.gap)}px`;
  }

  resized() {
    const width = this.list.clientWidth;
    if (width === this.measured) return;
    this.measured = width;
    const { top } = this.list.getBoundingClientRect();
    const first = top < 0 ? Math.floor(-top / this.row) * this.columns : 0;
    this.measure();
    for (const [index, node] of this.nodes) this.place(node, index);
    if (first) scrollTo(0, this.topOf(first));
    this.render();
  }

  topOf(index) {
    const start = this.list.getBoundingClientRect().top + scrollY;
    return start + Math.floor(index / this.columns) * this.row - this.covered();
  }

  covered() {
    return document.querySelector(".top").offsetHeight + 8;
  }

  place(node, index) {
    const x = (index % this.columns) * (this.width + this.gap);
    const y = Math.floor(index / this.columns) * this.row;
    node.style.width = `${this.width}px`;
    node.style.transform = `translate(${x}px, ${y}px)`;
  }

  // The numbers of the first tile in view and of the one after the last, with rows around them.
  range(around) {
    const { top } = this.list.getBoundingClientRect();
    const first = Math.floor(-top / this.row) - around;
    const last = Math.ceil((innerHeight - top) / this.row) + around;
    const end = Math.min(this.total, Math.max(0, last) * this.columns);
    return [Math.min(Math.max(0, first) * this.columns, Math.max(0, this.total - 1)), end];
  }

  // Drawing

  soon() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    if (!this.row) this.measure();
    const [first, end] = this.range(AROUND);
    for (const [index, node] of this.nodes) {
      // Who has the focus stays, or the keyboard would be lost.
      if ((index < first || index >= end) && !node.contains(document.activeElement)) {
        this.drop(node);
        this.nodes.delete(index);
      }
    }
    let next = this.list.firstElementChild;
    for (let index = first; index < end; index++) {
      const node = this.nodes.get(index) ?? this.make(index);
      while (next && Number(next.dataset.index) < index) next = next.nextElementSibling;
      if (node === next) next = next.nextElementSibling;
      else this.list.insertBefore(node, next);
    }
    clearTimeout(this.timer);
    if (this.wanted().length) this.timer = setTimeout(() => this.fetch(), this.pieces.size ? SETTLED : 0);
  }

  make(index) {
    const html = this.html(index);
    let node;
    if (html === undefined) {
      node = document.createElement("li");
      node.className = "tile waiting";
      node.innerHTML = '<div class="picture" role="img" aria-label="Loading"></div><p class="about"></p>';
    } else {
      const template = document.createElement("template");
      template.innerHTML = html;
      node = template.content.firstElementChild;
    }
    node.dataset.index = index;
    node.setAttribute("aria-posinset", index + 1);
    node.setAttribute("aria-setsize", this.total);
    this.place(node, index);
    this.tabbable(node, index === this.active);
    this.nodes.set(index, node);
    if (html !== undefined) this.made(node, node.dataset.item, index);
    return node;
  }

  drop(node) {
    // What is not shown any more need not be loaded.
    node.querySelector("img")?.removeAttribute("src");
    node.remove();
  }

  tabbable(node, yes) {
    for (const each of node.querySelectorAll(".picture, .stack, .pick input")) each.tabIndex = yes ? 0 : -1;
  }

  activate(index) {
    if (index === this.active) return;
    const before = this.nodes.get(this.active);
    if (before) this.tabbable(before, false);
    this.active = index;
    const now = this.nodes.get(index);
    if (now) this.tabbable(now, true);
  }

  // Pieces

  html(index) {
    const piece = this.pieces.get(Math.floor(index / this.piece));
    return piece?.tiles[index % this.piece];
  }

  keep(number, tiles, whole) {
    this.pieces.delete(number);
    this.pieces.set(number, { tiles, whole });
    if (this.pieces.size <= KEPT) return;
    const [first, end] = this.range(AROUND);
    const middle = (first + end) / 2 / this.piece;
    const far = [...this.pieces.keys()].sort((a, b) => Math.abs(b - middle) - Math.abs(a - middle));
    for (const each of far.slice(0, this.pieces.size - KEPT)) this.pieces.delete(each);
  }

  // Pieces that are in view, or soon will be, and are not there yet.
  wanted() {
    const [first, end] = this.range(4 * AROUND);
    const wanted = [];
    for (let number = Math.floor(first / this.piece); number * this.piece < end; number++) {
      const there = this.pieces.get(number);
      const enough = there && (there.whole || there.tiles.length >= end - number * this.piece);
      if (!enough && !this.loading.has(number)) wanted.push(number);
    }
    return wanted;
  }

  async fetch() {
    const [first, end] = this.range(4 * AROUND);
    for (const [number, each] of this.loading) {
      if ((number + 1) * this.piece <= first || number * this.piece >= end) {
        each.abort();
        this.loading.delete(number);
      }
    }
    for (const number of this.wanted().slice(0, AT_ONCE - this.loading.size)) this.bring(number);
  }

  async bring(number) {
    const aborting = new AbortController();
    this.loading.set(number, aborting);
    try {
      const found = await this.load(number * this.piece, aborting.signal);
      if (aborting.signal.aborted) return;
      this.loading.delete(number);
      this.keep(number, found.tiles, true);
      if (found.total !== this.total) {
        this.total = found.total;
        this.measure();
      }
      this.refresh(number);
      this.render();
    } catch (error) {
      if (aborting.signal.aborted) return;
      this.loading.delete(number);
      this.failed(error);
    }
  }

  // Put tiles where only their places were.
  refresh(number) {
    for (const [index, node] of [...this.nodes]) {
      const here = Math.floor(index / this.piece) === number;
      if (index >= this.total) {
        this.drop(node);
        this.nodes.delete(index);
      } else if (here && node.classList.contains("waiting") && this.html(index) !== undefined) {
        const focused = node.contains(document.activeElement);
        const made = this.make(index);
        node.replaceWith(made);
        if (focused) made.querySelector(".picture").focus({ preventScroll: true });
      }
    }
  }

  // Moving

  focus(index) {
    index = Math.max(0, Math.min(this.total - 1, index));
    if (this.total === 0) return;
    this.activate(index);
    const top = this.topOf(index);
    const bottom = top + this.covered() + this.row - innerHeight;
    if (scrollY > top) scrollTo(0, top);
    else if (scrollY < bottom) scrollTo(0, bottom + 8);
    this.render();
    this.nodes.get(index)?.querySelector(".picture").focus({ preventScroll: true });
  }

  rows() {
    return Math.max(1, Math.floor((innerHeight - this.covered()) / this.row) - 1);
  }

  inView(index) {
    const [first, end] = this.range(0);
    return index >= first && index < end;
  }

  // The picture with a number, fetched where need be.
  async item(index) {
    if (index < 0 || index >= this.total) return null;
    const number = Math.floor(index / this.piece);
    if (this.html(index) === undefined) {
      const found = await this.load(number * this.piece, new AbortController().signal);
      this.keep(number, found.tiles, true);
    }
    return /data-item="([^"]*)"/.exec(this.html(index) ?? "")?.[1] ?? null;
  }

  indexOf(item) {
    for (const [number, { tiles }] of this.pieces) {
      const at = tiles.findIndex((html) => html.includes(`data-item="${item}"`));
      if (at >= 0) return number * this.piece + at;
    }
    return -1;
  }
}
