async ([text, edits]) => {
  const site = JSON.parse(text);
  const {SiteEngine} = await import("./static/engine.js");
  const {parseEdits} = await import("./static/edits.js");
  const engine = new SiteEngine(site),
    ids = site.model.steps.map((step) => step.id);
  const outputs = await engine.outputs(0, parseEdits(edits, site.model.steps), ids);
  return ids.map((id) => {
    const bytes = new Uint8Array(Float64Array.from(outputs.get(id).data).buffer),
      parts = [];
    for (let i = 0; i < bytes.length; i += 30000) parts.push(String.fromCharCode(...bytes.subarray(i, i + 30000)));
    return btoa(parts.join(""));
  });
};
