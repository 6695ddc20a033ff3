export {
  type Cell,
  type Column,
  type ColumnOf,
  formatHex,
  formatSize,
  type Kind,
  type Row,
  type RowSource,
  rowOf,
} from './columns.ts';
export { csv } from './csv.ts';
export { parseFilter, type RowFilter } from './filter.ts';
export { type JsonOptions, json, jsonLines } from './json.ts';
export { displayWidth, printable } from './printable.ts';
export { type RenderOptions, renderTable, streamTable, type TableOptions, table } from './table.ts';
export { type ColorChoice, PLAIN, type Theme, themeFor } from './theme.ts';
export { formatTime } from './time.ts';
