/** A benchmark that cannot be run as it was asked for: the text is all that the user needs. */
export class BenchError extends Error {}
