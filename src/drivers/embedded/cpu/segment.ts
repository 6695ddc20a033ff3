/** The hidden part of a segment register, but its base, which is in Cpu.r. */
export class Segment {
  selector = 0;
  limit = 0;
  type = 0;
  system = false;
  dpl = 0;
  present = false;
  available = false;
  long = false;
  big = false;
  granular = false;

  get unusable(): boolean {
    return !this.present;
  }

  /** Attributes as in bits 8 to 23 of a descriptor's high word. */
  setAttributes(high: number): void {
    this.type = (high >>> 8) & 15;
    this.system = (high & (1 << 12)) === 0;
    this.dpl = (high >>> 13) & 3;
    this.present = (high & (1 << 15)) !== 0;
    this.available = (high & (1 << 20)) !== 0;
    this.long = (high & (1 << 21)) !== 0;
    this.big = (high & (1 << 22)) !== 0;
    this.granular = (high & (1 << 23)) !== 0;
  }

  /** A flat segment: base 0, no limit. */
  setFlat(selector: number, type: number, dpl: number, long: boolean): void {
    this.selector = selector;
    this.limit = 0xffff_ffff;
    this.type = type;
    this.system = false;
    this.dpl = dpl;
    this.present = true;
    this.available = false;
    this.long = long;
    this.big = !long;
    this.granular = true;
  }

  setNull(selector: number, dpl: number): void {
    this.selector = selector;
    this.limit = 0;
    this.type = 0;
    this.system = false;
    this.dpl = dpl;
    this.present = false;
    this.available = false;
    this.long = false;
    this.big = false;
    this.granular = false;
  }
}

/** A descriptor-table register. */
export class TableRegister {
  lo = 0;
  hi = 0;
  limit = 0;

  set(lo: number, hi: number, limit: number): void {
    this.lo = lo;
    this.hi = hi;
    this.limit = limit;
  }
}
