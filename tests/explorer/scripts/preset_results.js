async () => {
  const {PRESETS} = await import("./static/presets.js");
  const {compute, parseChain, parseChanges} = await import("./static/chain.js");
  const {chainCode} = await import("./static/torch-code.js");
  const results = [];
  for (const {id, values} of PRESETS) {
    for (const key of ["a", "b"].filter((one) => values[one])) {
      const [rows, columns, channels] = values.in.split("x").map(Number),
        changes = parseChanges(values.w)[key];
      const shape = [channels, rows, columns],
        chain = {...compute(shape, values.data, parseChain(values[key]), changes), changes};
      const {shape: out, data} = chain.outputs.get(chain.steps.length - 1);
      results.push([
        `${id} ${key}`,
        chainCode(shape, values.data, chain),
        out,
        data.length > 40000 ? Array.from(data.subarray(0, 40000)) : Array.from(data),
        chain.error,
      ]);
    }
  }
  return results;
};
