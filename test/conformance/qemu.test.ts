import { qemuSubject } from './qemu-subject.ts';
import { conformance } from './suite.ts';

conformance(qemuSubject(1));
conformance(qemuSubject(2));
