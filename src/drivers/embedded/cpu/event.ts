/** An exception or interrupt on its way to the guest. Kept and reused, one a purpose. */
export class GuestEvent {
  vector = 0;
  hasCode = false;
  code = 0;
  /** Bytes of the INT instruction that caused it: the return address is behind it. 0 for everything else. */
  softwareLength = 0;
  /** CR2 of a page fault. */
  addressLo = 0;
  addressHi = 0;
  /** True for what the instruction stream did not cause: interrupts. Sets EXT in error codes. */
  external = false;

  set(vector: number, hasCode: boolean, code: number): void {
    this.vector = vector;
    this.hasCode = hasCode;
    this.code = code;
    this.softwareLength = 0;
    this.addressLo = 0;
    this.addressHi = 0;
    this.external = false;
  }

  copy(other: GuestEvent): void {
    this.vector = other.vector;
    this.hasCode = other.hasCode;
    this.code = other.code;
    this.softwareLength = other.softwareLength;
    this.addressLo = other.addressLo;
    this.addressHi = other.addressHi;
    this.external = other.external;
  }
}
