// Bringing the index up to date, where the server allows it.

import { indexing, startIndexing } from "./server.js";

const OFTEN = 700; // milliseconds

const SAID = {
  scan: "Looking through the folder",
  pictures: "Reading pictures",
  describe: "Describing pictures",
  captions: "Reading captions",
  names: "Preparing",
  index: "Writing the index",
};

export function followIndexing(button, place, { done, told }) {
  let following = false;

  const follow = async () => {
    following = true;
    let running = true;
    button.disabled = true;
    while (running) {
      try {
        running = show((await indexing()).libraries);
      } catch (error) {
        place.textContent = error.message;
      }
      if (running) await new Promise((resolve) => setTimeout(resolve, OFTEN));
    }
    button.disabled = false;
    following = false;
    done();
  };

  const show = (libraries) => {
    const busy = libraries.filter((each) => each.running);
    place.hidden = false;
    if (busy.length === 0) {
      place.textContent = libraries.map(ended).filter(Boolean).join(" ");
      told(place.textContent);
      return false;
    }
    place.replaceChildren(
      ...busy.flatMap((each) => {
        const bar = document.createElement("progress");
        bar.setAttribute("aria-label", `Indexing ${each.library}`);
        if (each.total) Object.assign(bar, { max: each.total, value: each.done });
        const said = document.createElement("span");
        const count = each.total ? ` ${each.done.toLocaleString("en")} of ${each.total.toLocaleString("en")}` : "";
        said.textContent = `${each.library}: ${SAID[each.stage] ?? each.stage}${count}${each.remark ? ` · ${each.remark}` : ""}`;
        return [bar, said];
      }),
    );
    return true;
  };

  button.addEventListener("click", async () => {
    if (following) return;
    button.disabled = true;
    try {
      for (const each of (await indexing()).libraries) {
        if (!each.running) await startIndexing(each.library);
      }
      await follow();
    } catch (error) {
      button.disabled = false;
      place.hidden = false;
      place.textContent = error.message;
    }
  });

  // Somebody else may have begun.
  indexing().then(({ libraries }) => libraries.some((each) => each.running) && follow(), () => {});
}

function ended({ library, failure, report }) {
  if (failure) return `${library}: ${failure}`;
  if (!report) return "";
  const parts = ["added", "updated", "moved", "removed"].filter((name) => report[name]);
  const said = parts.map((name) => `${report[name].toLocaleString("en")} ${name}`).join(", ");
  return `${library}: ${said || "nothing changed"}.`;
}
