// Pictures that somebody sends: chosen, dropped or pasted. They are kept in this tab, as an address
// cannot hold them, and are sent with every request of the question.

const kept = new Map();
let number = 0;

function add(files) {
  const ids = [];
  for (const file of files) {
    if (file.type && !file.type.startsWith("image/")) continue;
    kept.set(++number, { id: number, file, preview: URL.createObjectURL(file) });
    ids.push(number);
  }
  return ids;
}

// Those of these numbers that are still here; after the page was loaded anew none is.
export function pictures(ids) {
  return (ids ?? []).map((id) => kept.get(id)).filter(Boolean);
}

// brought(ids) is called with the numbers of what was brought.
export function takePictures(brought) {
  const bring = (files) => {
    const ids = add(files);
    if (ids.length) brought(ids);
  };
  const input = document.getElementById("pictures");
  input.addEventListener("change", () => {
    bring([...input.files]);
    input.value = "";
  });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.some((file) => file.type.startsWith("image/"))) return;
    event.preventDefault();
    bring(files);
  });
  const veil = document.getElementById("drop");
  const holdsFiles = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  addEventListener("dragenter", (event) => {
    if (!holdsFiles(event)) return;
    depth += 1;
    veil.hidden = false;
  });
  addEventListener("dragleave", (event) => {
    if (!holdsFiles(event)) return;
    depth -= 1;
    if (depth <= 0) veil.hidden = true;
  });
  addEventListener("dragover", (event) => holdsFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    depth = 0;
    veil.hidden = true;
    if (!holdsFiles(event)) return;
    event.preventDefault();
    bring([...event.dataTransfer.files]);
  });
}

// Chips for them, as the server does not know them.
export function showPictures(list, ids, leave) {
  for (const { id, file, preview } of pictures(ids)) {
    const chip = document.createElement("li");
    chip.className = "chip sent";
    const image = document.createElement("img");
    image.src = preview;
    image.alt = "";
    const said = document.createElement("span");
    said.textContent = `like ${file.name || "a picture"} (in this tab only)`;
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", `Take away: ${file.name || "the picture"}`);
    button.append("×");
    button.addEventListener("click", () => leave(id));
    chip.append(image, said, button);
    list.append(chip);
  }
}
