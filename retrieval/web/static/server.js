// What is asked of the server. It says everything in its answers; a request that fails is a fault.

async function got(address, options) {
  const response = await fetch(address, options);
  if (!response.ok) {
    let detail = `The server answers with ${response.status}.`;
    try {
      detail = (await response.json()).detail ?? detail;
    } catch {
      // Not in its own words.
    }
    throw new Error(detail);
  }
  return response;
}

// A piece of the answer to what an address asks, from `offset` on; with pictures, sent each time.
export async function answer(params, offset, pictures, signal) {
  const asked = new URLSearchParams(params);
  asked.delete("open");
  asked.set("offset", offset);
  const options = { signal };
  if (pictures.length) {
    options.method = "POST";
    options.body = new FormData();
    for (const { file } of pictures) options.body.append("image", file, file.name || "picture");
  }
  return (await got(`/page/answer?${asked}`, options)).json();
}

export async function detail(params, item, signal) {
  const asked = new URLSearchParams(params);
  asked.delete("offset");
  asked.set("item", item);
  return (await got(`/page/item?${asked}`, { signal })).text();
}

export async function text(address, signal) {
  return (await got(address, { signal })).text();
}

export async function indexing() {
  return (await got("/api/v1/index")).json();
}

export async function startIndexing(library) {
  const headers = { "Content-Type": "application/json" };
  return (await got("/api/v1/index", { method: "POST", headers, body: JSON.stringify({ library }) })).json();
}
