// How the page writes shapes, and the values of a channel.

import {dataTable, short} from "./dom.js";

const MOST = 64;

export function sizeText([channels, rows, columns]) {
  return `${rows}\u2009×\u2009${columns}\u2009×\u2009${channels}`;
}

// The values of one channel as a table, at most 64 rows and columns.
export function channelTable(tensor, c) {
  const {
      shape: [, rows, columns],
      data,
    } = tensor ?? {shape: [0, 0, 0]},
    across = Math.min(columns, MOST);
  const lines = Array.from({length: Math.min(rows, MOST)}, (_, y) => [
    `row ${y + 1}`,
    ...Array.from({length: across}, (__, x) => short(data[(c * rows + y) * columns + x])),
  ]);
  return dataTable(`Channel ${c + 1}`, ["row", ...Array.from({length: across}, (_, x) => String(x + 1))], lines);
}
