// Build elements and format numbers. Text is always set as text, never as HTML: names come from files.

// h("button", {class: "x", onclick: f, disabled: true}, "text", child, ...)
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Replace the children of an element; null and false stand for nothing.
export function replace(element, ...children) {
  element.replaceChildren(
    ...children.flat().filter((child) => child !== null && child !== undefined && child !== false),
  );
}

let count = 0;

// A labelled control: the label is visible and belongs to the control.
export function field(label, control) {
  control.id ||= `f${++count}`;
  return h("div", {class: "field"}, h("label", {for: control.id}, label), control);
}

export function numberField(label, value, [low, high], onChange) {
  const input = h("input", {type: "number", min: low, max: high, step: 1, value, inputmode: "numeric"});
  input.addEventListener("change", () => {
    const number = Math.round(Number(input.value));
    input.value = Number.isFinite(number) ? Math.min(Math.max(number, low), high) : value;
    onChange(Number(input.value));
  });
  return field(label, input);
}

// options: [[value, text], ...]
export function selectField(label, value, options, onChange) {
  const items = options.map(([key, text]) => h("option", {value: key, selected: key === value}, text));
  const select = h("select", {onchange: () => onChange(select.value)}, items);
  return field(label, select);
}

// A short number for a cell or a bar: at most `digits` significant digits.
export function short(value, digits = 4) {
  if (!Number.isFinite(value)) return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return minus(String(value));
  const size = Math.abs(value);
  if (size >= 1e6 || (size < 1e-4 && size > 0)) return minus(value.toExponential(digits - 1));
  return minus(String(Number(value.toPrecision(digits))));
}

// All digits that double precision holds.
export function exact(value) {
  return minus(String(value));
}

function minus(text) {
  return text.replace(/-/g, "\u2212");
}

export function counted(value) {
  return Math.round(value).toLocaleString("en-US");
}

export function percent(value, digits = 1) {
  return `${(100 * value).toFixed(digits)} %`;
}

export function plural(number, word) {
  return `${counted(number)} ${word}${number === 1 ? "" : "s"}`;
}

// A table; the first cell of each row is its header.
export function dataTable(caption, columns, rows) {
  const head = h(
    "tr",
    {},
    columns.map((name) => h("th", {scope: "col"}, name)),
  );
  const body = rows.map(([first, ...rest]) =>
    h(
      "tr",
      {},
      h("th", {scope: "row"}, String(first)),
      rest.map((cell) => h("td", {}, cell)),
    ),
  );
  return h("table", {class: "numbers"}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, body));
}

// A disclosure whose content is built when it is first opened.
export function disclosure(title, build) {
  const box = h("details", {}, h("summary", {}, title));
  box.addEventListener("toggle", () => {
    box.querySelector(":scope > .content")?.remove();
    if (box.open)
      box.append(h("div", {class: "content scroll", tabindex: "0", role: "group", "aria-label": title}, build()));
  });
  return box;
}

export const calm = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// A button that copies text, with the text shown.
export function codeBlock(title, text) {
  const said = h("span", {class: "quiet", role: "status"});
  const code = h("pre", {tabindex: "0", role: "group", "aria-label": title}, text);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      said.textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(code);
      said.textContent = "Selected: press Ctrl+C.";
    }
  };
  const button = h("button", {type: "button", onclick: copy}, "Copy");
  return h("div", {class: "code"}, h("div", {class: "row"}, h("strong", {}, title), button, said), code);
}
