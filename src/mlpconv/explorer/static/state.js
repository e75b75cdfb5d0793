// The state of the page is its address: #/view?key=value. Any view can be sent, reloaded and stepped back through.

export function readState(hash = location.hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?");
  return {view: path || "", values: Object.fromEntries(new URLSearchParams(query))};
}

function addressOf(view, values) {
  const kept = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  // Commas, dots and colons stay readable; URLSearchParams would escape them.
  const query = kept.map(
    ([key, value]) => `${key}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":")}`,
  );
  return `#/${view}${query.length ? `?${query.join("&")}` : ""}`;
}

// A new entry of the history, which opens the view anew; or with `replace` only a new address for what is shown.
// Both work on file:// too.
export function writeState(view, values, {replace = false} = {}) {
  const address = addressOf(view, values);
  if (address === location.hash) return;
  if (replace) history.replaceState(null, "", address);
  else location.hash = address;
}

export function integer(text, low, high, otherwise) {
  const number = /^\d{1,9}$/.test(text ?? "") ? Number(text) : otherwise;
  return Math.min(Math.max(number, low), high);
}
