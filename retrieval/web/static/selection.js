// What was chosen, for export; it outlives scrolling and further questions.

export class Selection {
  constructor(bar, { most, told }) {
    this.chosen = new Map();
    this.count = bar.querySelector("#selected");
    bar.addEventListener("submit", (event) => {
      if (this.chosen.size > most) {
        event.preventDefault();
        told(`At most ${most.toLocaleString("en")} pictures can be exported at a time.`);
        return;
      }
      const input = document.createElement("input");
      Object.assign(input, { type: "hidden", name: "items", value: [...this.chosen.keys()].join() });
      bar.querySelector(".chosen").replaceChildren(input);
    });
    bar.querySelector("#unselect").addEventListener("click", () => this.clear());
  }

  // A tile has come into the document.
  adopt(tile, item) {
    const input = tile.querySelector(".pick input");
    input.removeAttribute("name"); // What is sent is what is chosen, not what is in view.
    input.checked = this.chosen.has(item);
    tile.classList.toggle("picked", input.checked);
    input.addEventListener("change", () => this.set(item, input.checked));
  }

  has(item) {
    return this.chosen.has(item);
  }

  set(item, yes) {
    if (yes) this.chosen.set(item, true);
    else this.chosen.delete(item);
    for (const tile of document.querySelectorAll(".tile")) {
      if (tile.dataset.item !== item) continue;
      tile.querySelector(".pick input").checked = yes;
      tile.classList.toggle("picked", yes);
    }
    this.tell();
  }

  clear() {
    this.chosen.clear();
    for (const tile of document.querySelectorAll(".picked")) {
      tile.classList.remove("picked");
      tile.querySelector(".pick input").checked = false;
    }
    this.tell();
  }

  get size() {
    return this.chosen.size;
  }

  tell() {
    this.count.textContent = `${this.chosen.size.toLocaleString("en")} selected`;
    document.body.classList.toggle("choosing", this.chosen.size > 0);
  }
}
