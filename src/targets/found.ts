/** A VM that runs on this host, whether kvmi can hook it or not. */
export interface FoundMachine {
  readonly pid: number | undefined;
  readonly name: string;
  /** As text, with dashes; undefined when the VMM does not say. */
  readonly uuid: string | undefined;
  readonly vcpus: number | undefined;
  /** Bytes of guest memory. */
  readonly memory: number | undefined;
  /** The program that runs it. */
  readonly vmm: string;
  /** `tcg`, `kvm`, …; undefined when it is not known. */
  readonly accelerator: string | undefined;
  /** How to open it: `qemu:/run/vm.qmp`, `kvm:4711`. Undefined: there is no way, see `reason`. */
  readonly target: string | undefined;
  readonly reason: string | undefined;
  /** The way in that cannot be used, or not now: opening it tells more. */
  readonly blocked?: string | undefined;
  /** What to do about the reason. */
  readonly remedy?: string | undefined;
  /** A kvmi that was killed has left something in it that nobody is about to undo. */
  readonly damaged?: boolean;
}
