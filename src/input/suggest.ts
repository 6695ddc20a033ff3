/** Edit distance (insert, delete, replace, swap neighbours), given up beyond `limit`. */
function distance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) return limit + 1;
  let beforePrevious: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = previous[j - 1]! + Number(a[i - 1] !== b[j - 1]);
      let best = Math.min(previous[j]! + 1, current[j - 1]! + 1, replaced);
      const swapped = i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1];
      if (swapped) best = Math.min(best, beforePrevious[j - 2]! + 1);
      current.push(best);
    }
    beforePrevious = previous;
    previous = current;
  }
  return previous[b.length]!;
}

const LONGEST = 64;

/** Names that `word` may have meant, the closest first; at most three. */
export function suggestions(word: string, names: readonly string[]): string[] {
  const wanted = word.toLowerCase();
  if (wanted === '' || wanted.length > LONGEST) return [];
  const limit = Math.max(1, Math.floor(wanted.length / 3));
  return names
    .map((name) => {
      const candidate = name.toLowerCase();
      const part = wanted.length > 2 && candidate.includes(wanted);
      return { name, score: part ? 0.5 : distance(wanted, candidate, limit) };
    })
    .filter(({ score }) => score <= limit)
    .sort((a, b) => a.score - b.score || a.name.length - b.name.length)
    .slice(0, 3)
    .map(({ name }) => name);
}

/** ``Did you mean `regs`?``, or undefined when nothing is close. */
export function didYouMean(word: string, names: readonly string[]): string | undefined {
  const close = suggestions(word, names);
  return close.length === 0 ? undefined : `Did you mean ${close.join(' or ')}?`;
}
