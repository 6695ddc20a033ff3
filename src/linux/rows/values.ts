import type { TypedValue } from '../../reading/expression.ts';
import { hex } from '../../reading/text.ts';
import { Pointer, type Value } from '../../reading/values.ts';

/** A value that has no parts, and how to reach it. */
export interface PlainValue {
  /** The expression that leads to it. */
  readonly place: string;
  /** A pointer is text: `0x…`. */
  readonly value: string | number | bigint | boolean;
  /** What a pointer to characters points to. */
  readonly text: string | undefined;
  /** Of the whole expression. */
  readonly type: string;
  readonly address: bigint;
}

/** The values without parts that a value is made of. */
export function valuesOf({ expression, value, type, address }: TypedValue): PlainValue[] {
  return [...leaves(expression, value)].map((leaf) => ({ ...leaf, type, address }));
}

function* leaves(place: string, value: Value): Generator<Pick<PlainValue, 'place' | 'value' | 'text'>> {
  if (value instanceof Pointer) {
    yield { place, value: hex(value.address), text: value.text };
  } else if (typeof value !== 'object') {
    yield { place, value, text: undefined };
  } else if (Array.isArray(value)) {
    for (const [index, element] of (value as readonly Value[]).entries())
      yield* leaves(`${place}[${index}]`, element);
  } else {
    for (const [member, part] of Object.entries(value)) yield* leaves(`${place}.${member}`, part as Value);
  }
}
