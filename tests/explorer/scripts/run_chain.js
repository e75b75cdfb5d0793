async ([shape, data, text]) => {
  const {compute, parseChain, writeChain} = await import("./static/chain.js");
  const {chainCode} = await import("./static/torch-code.js");
  const layers = parseChain(text),
    chain = {...compute(shape, data, layers, {}), changes: {}};
  const last = chain.outputs.get(chain.steps.length - 1);
  return [
    writeChain(layers),
    chain.error,
    last.shape,
    Array.from(last.data),
    chainCode(shape, data, chain),
    chain.costs,
  ];
};
