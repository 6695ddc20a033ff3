import { qemuLinuxSubject, qemuSubject } from './qemu-subject.ts';
import { conformance } from './suite.ts';

conformance(qemuSubject);
conformance(qemuLinuxSubject);
