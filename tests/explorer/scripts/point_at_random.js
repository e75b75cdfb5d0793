async ([seed, count]) => {
  let state = seed;
  const next = () => (state = (state * 1103515245 + 12345) % 2147483648) / 2147483648;
  const pads = [...document.querySelectorAll(".layers .tiles")],
    seen = [];
  const text = (row) => row?.querySelector(".value")?.title?.replace("\u2212", "-");
  for (let i = 0; i < count; i++) {
    const pad = pads[Math.floor(next() * pads.length)],
      box = pad.getBoundingClientRect();
    const place = {clientX: box.left + next() * box.width, clientY: box.top + next() * box.height, bubbles: true};
    pad.dispatchEvent(new PointerEvent("pointermove", place));
    await new Promise((resume) => setTimeout(resume));
    const panel = document.querySelector(".inspector"),
      rows = [...panel.querySelectorAll(".sum .result")];
    const value = rows.length
      ? text(rows[rows.length - 1])
      : panel.querySelector(".values dd:last-child")?.title?.replace("\u2212", "-");
    seen.push([panel.querySelector("h3").textContent, Number(value), rows.map((row) => Number(text(row)))]);
  }
  return seen;
};
