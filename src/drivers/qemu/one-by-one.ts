/** A function that begins `work`; once more afterwards when it was called meanwhile. What fails is left undone. */
export function oneByOne(work: () => Promise<void>): () => void {
  let under: 'nothing' | 'work' | 'again' = 'nothing';
  const run = async (): Promise<void> => {
    do {
      under = 'work';
      await work().catch(() => {});
    } while ((under as string) === 'again');
    under = 'nothing';
  };
  return () => {
    if (under === 'nothing') void run();
    else under = 'again';
  };
}
