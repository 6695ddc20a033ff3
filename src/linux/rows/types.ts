import type { TypeRow } from '../../reading/values.ts';
import type { ColumnOf } from '../../rows/columns.ts';
import type { PlainValue } from './values.ts';

export const TYPE_COLUMNS: readonly ColumnOf<TypeRow>[] = [
  {
    name: 'offset',
    kind: 'decimal',
    about: 'in bytes, from the start of the structure; the value of an enumerator',
  },
  { name: 'size', kind: 'decimal', about: 'in bytes' },
  { name: 'type', kind: 'text', cut: true, about: 'as C declares it' },
  { name: 'name', kind: 'text', key: true, about: 'of the member' },
  {
    name: 'bits',
    kind: 'text',
    cell: ({ bits }) => bits || undefined,
    about: 'of a bit field, `bit:count` within the unit at the offset',
  },
];

export const VALUE_COLUMNS: readonly ColumnOf<PlainValue>[] = [
  { name: 'place', kind: 'text', key: true, about: 'the expression that leads to the value' },
  { name: 'value', kind: 'any', about: 'a number, a text, the name of an enumerator, or a pointer' },
  { name: 'text', kind: 'text', cut: true, about: 'what a pointer to characters points to' },
  { name: 'type', kind: 'text', wide: true, about: 'of the whole expression' },
  { name: 'address', kind: 'hex', wide: true, about: 'of the whole expression' },
];
