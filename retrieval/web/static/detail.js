// One picture, large: what is known of it, its stack, and why it is here.

import { detail, text } from "./server.js";

export class Detail {
  // closed() is called when somebody closes it, turn(step) when the next picture is asked for.
  constructor(dialog, { closed, turn, open, selection, told }) {
    Object.assign(this, { dialog, selection, told });
    this.item = null;
    this.aborting = new AbortController();
    dialog.addEventListener("close", () => {
      this.item = null;
      this.aborting.abort();
      closed();
    });
    dialog.addEventListener("click", async (event) => {
      const at = (selector) => event.target.closest(selector);
      if (event.target === dialog || at("[data-close]")) {
        event.preventDefault();
        dialog.close();
      } else if (at(".turn")) {
        event.preventDefault();
        turn(at(".next") ? 1 : -1);
      } else if (at("[data-copy]")) {
        await this.copy(at("[data-copy]"));
      } else if (at("[data-select]")) {
        const { select } = at("[data-select]").dataset;
        selection.set(select, !selection.has(select));
        this.mark();
      } else if (at("[data-why]")) {
        event.preventDefault();
        this.explain(at("[data-why]"));
      } else if (at("#strip a")) {
        event.preventDefault();
        open(at("#strip a").dataset.member);
      }
    });
    dialog.addEventListener("change", (event) => {
      if (event.target.id === "warm") this.heat(event.target);
    });
  }

  async show(item, params, stack) {
    this.aborting.abort();
    this.aborting = new AbortController();
    const { signal } = this.aborting;
    const html = await detail(params, item, signal);
    if (signal.aborted) return;
    this.dialog.innerHTML = html;
    this.item = item;
    this.adopt(stack);
    if (!this.dialog.open) this.dialog.showModal();
  }

  // What the server drew with the page.
  adoptDrawn(item) {
    this.item = item;
    this.dialog.removeAttribute("open");
    this.adopt([]);
    this.dialog.showModal();
  }

  adopt(stack) {
    if (stack.length) this.stack = stack;
    const strip = this.dialog.querySelector("#strip");
    if (strip && this.stack?.includes(this.item)) {
      strip.hidden = false;
      strip.setAttribute("role", "group");
      strip.setAttribute("aria-label", `${this.stack.length} pictures that are alike`);
      strip.replaceChildren(...this.stack.map((member, i) => this.member(member, i)));
    }
    this.mark();
    const only = this.dialog.querySelectorAll("[data-why]");
    if (only.length === 1) only[0].textContent = "Explain";
  }

  member(member, i) {
    const link = document.createElement("a");
    link.href = "#";
    link.dataset.member = member;
    if (member === this.item) link.setAttribute("aria-current", "true");
    const image = document.createElement("img");
    const [library, id] = [member.slice(0, member.lastIndexOf("/")), member.slice(member.lastIndexOf("/") + 1)];
    image.src = `/api/v1/items/${encodeURIComponent(library)}/${id}/thumbnail?side=160&or_blank=true`;
    image.alt = `Alike, ${i + 1}`;
    image.loading = "lazy";
    link.append(image);
    return link;
  }

  mark() {
    const button = this.dialog.querySelector("[data-select]");
    if (!button) return;
    const yes = this.selection.has(button.dataset.select);
    button.setAttribute("aria-pressed", yes);
    button.textContent = yes ? "Selected" : "Select";
  }

  async copy(button) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      this.told("The path is copied.");
      button.textContent = "Copied";
    } catch {
      this.told(button.dataset.copy);
      button.textContent = button.dataset.copy;
    }
  }

  async explain(link) {
    const place = this.dialog.querySelector("#why");
    for (const each of this.dialog.querySelectorAll("[data-why]")) each.removeAttribute("aria-current");
    link.setAttribute("aria-current", "true");
    place.textContent = "Looking…";
    const { signal } = this.aborting;
    try {
      const html = await text(link.getAttribute("href"), signal);
      if (signal.aborted) return;
      place.innerHTML = html;
      this.heat(place.querySelector("#warm"));
    } catch (error) {
      if (!signal.aborted) place.textContent = error.message;
    }
  }

  heat(box) {
    const map = this.dialog.querySelector("#heat");
    map.hidden = !box?.checked;
    if (box?.checked && map.getAttribute("src") !== box.dataset.heat) {
      map.src = box.dataset.heat;
      map.alt = "The same picture, brighter where it matches";
    }
  }

  close() {
    if (this.dialog.open) this.dialog.close();
  }
}
